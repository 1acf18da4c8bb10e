"""Tokenizers as other people publish them, made small: byte-level BPE and SentencePiece, with their chat templates."""

import io
import json
import random
from pathlib import Path

import sentencepiece

TEXTS = [
    "Where does dax live? In the cave, I'm told; it's 12345 steps away.",
    "def double(x):\n    if x:\n        return 2 * x\n\treturn 0\r\n",
    "Où est le café ? Là-bas. 今天天气很好，我们去公园。 Привет, мир! नमस्ते 😀 👩\u200d🚀",
    "one\n\ntwo\n\nthree\n\nUSER: hello ASSISTANT: hi [INST] <<SYS>> [/INST]",
    "<|user|>\nbe brief</s> <|im_start|> system",
]

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for message in turns %}{% if message['role'] == 'user' %}"
    "{% if loop.last and turns | length != messages | length %}"
    "{{ '[INST] ' + messages[0]['content'] + '\n\n' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'].strip() + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'].strip() + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def byte_level(words: str | None, specials: list[str], normalizer: object = None, size: int = 500):
    """A byte-level BPE that cuts text into words by a pattern (None: as GPT-2) and then adds the specials."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(ignore_merges=words == LLAMA3_WORDS))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        cut = pre_tokenizers.Split(Regex(words), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 5, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    return made


def qwen2(folder: Path) -> Path:
    """No bos; pad and eos apart; ChatML with a default system message; an added token that is not special."""
    from tokenizers import AddedToken, normalizers

    made = byte_level(QWEN2_WORDS, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    made.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    write_json(folder / "tokenizer.json", json.loads(made.to_str()))
    added = {
        str(i): {
            name: getattr(token, name)
            for name in ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        }
        for i, token in made.get_added_tokens_decoder().items()
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "added_tokens_decoder": added,
            "chat_template": CHATML,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "add_bos_token": False,
        },
    )
    ends = [made.token_to_id("<|im_end|>"), made.token_to_id("<|endoftext|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ends})
    return folder


def llama3(folder: Path) -> Path:
    """No pad; bos by the post-processor; the template in a file of its own."""
    from tokenizers import processors

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made = byte_level(LLAMA3_WORDS, names)
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))]
    )
    write_json(folder / "tokenizer.json", json.loads(made.to_str()))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0], "eos_token": names[1]}
    write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(LLAMA3, "utf-8")
    ends = [made.token_to_id("<|end_of_text|>"), made.token_to_id("<|eot_id|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ends})
    return folder


def gpt2(folder: Path, template: str | None = None) -> Path:
    """One special, named by nothing but the class; the config says only how long a text may be."""
    write_json(folder / "tokenizer.json", json.loads(byte_level(None, ["<|endoftext|>"]).to_str()))
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))
    return folder


def sentencepiece_model(**options) -> bytes:
    """A BPE as Llama 2's: dummy prefix, byte fallback, unk, bos and eos at 0, 1 and 2, no pad."""
    written = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 600,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": True,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "character_coverage": 1.0,
        "minloglevel": 2,
    }
    lines = [line for text in TEXTS for line in text.splitlines()] * 5
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=written, **settings | options)
    return written.getvalue()


def llama2(folder: Path, template: str | None = LLAMA2, **config) -> Path:
    """tokenizer.model alone, as the first Llama 2 folders; specials as objects, in a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    chat = {"chat_template": template} if template else {}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": False} | chat | config)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", {n: {"content": c} | flags for n, c in specials.items()})
    return folder


def converted(folder: Path, source: Path, template: str, **config) -> Path:
    """A SentencePiece folder's tokenizer.json as older converters wrote it: Prepend and Replace in the normalizer."""
    from components.tokenizer.llama import from_sentencepiece

    definition = from_sentencepiece((source / "tokenizer.model").read_bytes())
    unknown = {"id": 0, "content": "<unk>", "special": True}
    definition["added_tokens"] = [
        unknown | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
        *definition["added_tokens"],
    ]
    definition["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    definition["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]}
    decoders = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    definition["decoder"] = {"type": "Sequence", "decoders": decoders}
    write_json(folder / "tokenizer.json", definition)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | names | config)
    return folder


PARTS = [
    "dax",
    " lives",
    "cave",
    "12345",
    "I'm",
    "IT'S",
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\0",
    "\x1c",
    "é",
    "e\u0301",
    "ﬁ",
    "今天",
    "天气很好",
    "Привет",
    "नमस्ते",
    "안녕",
    "שלום",
    "مرحبا",
    "ไทย",
    "😀",
    "👩\u200d🚀",
    "🇫🇷",
    "\ufeff",
    "\u3000",
    "\u2581",
    "\ue000",
    "\uf8fe0\uf8fe501\uf8ff",
    "<0x0A>",
    "return",
    ".",
    "]",
    "[INST]",
    "[/INST]",
    "USER:",
    "ASSISTANT:",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<bos>",
    "<|user|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<tool_call>",
]


def texts(count: int, seed: int = 0, without: tuple[str, ...] = ()) -> list[str]:
    """Mixed strings of many scripts, kinds of space and look-alikes of specials."""
    draw, parts = random.Random(seed), [part for part in PARTS if part not in without]
    return ["".join(draw.choices(parts, k=draw.randint(0, 15))) for _ in range(count)]
