"""Models of random weights, their tokenizers, and data whose lengths in tokens are exact, all made on the spot.

Speed depends on neither weights nor words, so nothing is downloaded. Tokenizers have as many tokens as the models have
ids: a word of one letter is one token, so a text of n such words is n tokens.
"""

import argparse
import itertools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import harness

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def shape(vocabulary: int, layers: int, width: int, inner: int, heads: int, keys: int, **fields: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        **fields,
    }


# By the name of a folder. Sources: config.json of HuggingFaceTB/SmolLM2-135M and of Qwen/Qwen2.5-0.5B.
SHAPES = {
    "135M": shape(49152, 30, 576, 1536, 9, 3, rope_theta=100000.0),
    "0.5B": shape(151936, 24, 896, 4864, 14, 2, rope_theta=1000000.0, rms_norm_eps=1e-6, attention_bias=True),
    "tiny": shape(4096, 2, 64, 176, 4, 2),
}


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE of `size` tokens: all bytes, then pairs of bytes, those of a space and a letter first, then
    pairs and a third byte; and the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    space, *_ = (c for c in pre_tokenizers.ByteLevel.alphabet() if c == "Ġ")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first = [(space, letter) for letter in LETTERS]
    pairs = itertools.chain(first, (p for p in itertools.product(alphabet, repeat=2) if p[0] != space))
    triples = (("".join(pair), letter) for pair in itertools.product(LETTERS, repeat=2) for letter in alphabet)
    merges = list(itertools.islice(itertools.chain(pairs, triples), size - len(alphabet) - len(SPECIALS)))
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIALS])
    assert made.get_vocab_size() == size
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def words(count: int, generator: random.Random) -> str:
    """A text of `count` tokens."""
    return "".join(f" {letter}" for letter in generator.choices(LETTERS, k=count))


def write_text(file: Path, tokens: int, document: int) -> None:
    """Documents of about this many tokens each, blank lines between them."""
    generator = random.Random(0)
    lengths = [generator.randint(document // 2, document * 3 // 2) for _ in range(max(tokens // document, 2))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(words(length, generator) for length in lengths) + "\n")


def write_records(folder: Path, prompt: int, answer: int, count: int) -> None:
    """prompts.jsonl, chat.jsonl and preference.jsonl; prompts and answers have these lengths, markup included."""
    sys.path.insert(0, str(harness.ROOT))
    from components.artifacts.metadata import load_tokenizer

    tokenizer = load_tokenizer(harness.export(argparse.Namespace(work=folder), "sft"))
    asked = {"role": "user", "content": words(1, random.Random(0))}
    told = {"role": "assistant", "content": asked["content"]}
    of_prompt = len(tokenizer.render_prompt([asked])) - 1
    of_answer = len(tokenizer.render([asked, told]).ids) - of_prompt - 2
    lines: dict[str, list[dict[str, Any]]] = {"prompts": [], "chat": [], "preference": []}
    for number in range(count):
        generator = random.Random(number)
        question = [{"role": "user", "content": words(prompt - of_prompt, generator)}]
        first, second = ([{"role": "assistant", "content": words(answer - of_answer, generator)}] for _ in range(2))
        lines["prompts"].append({"prompt": question})
        lines["chat"].append({"messages": question + first})
        lines["preference"].append({"prompt": question, "chosen": first, "rejected": second})
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_models(folder: Path, name: str) -> None:
    """The artifacts sft (also as pretrain, its base) and rm below a work folder."""
    sys.path.insert(0, str(harness.ROOT))
    import torch
    from safetensors.torch import save_file

    from components.models.config import GPTConfig
    from components.models.heads import new_causal_lm, scalar_from_causal

    config = GPTConfig(**SHAPES[name])
    torch.manual_seed(0)
    with torch.device(harness.DEVICE):
        model = new_causal_lm(config)
        scalar = scalar_from_causal(model)
    args = argparse.Namespace(work=folder)
    for stage, kind, network in (("sft", "CausalLM", model), ("rm", "SequenceClassification", scalar)):
        export = Path(harness.export(args, stage))
        write_tokenizer(export, config.vocab_size)
        fields = config.to_hf(kind)
        if stage == "rm":
            fields |= {"num_labels": 1, "id2label": {"0": "score"}}
        (export / "config.json").write_text(json.dumps(fields))
        weights = {n: p.detach().cpu() for n, p in network.named_parameters() if n != "score.bias"}
        save_file(weights, export / "model.safetensors", {"format": "pt"})
    os.makedirs(Path(harness.export(args, "pretrain")).parent, exist_ok=True)
    base = Path(harness.export(args, "pretrain"))
    if not base.exists():
        base.symlink_to(Path(harness.export(args, "sft")))
