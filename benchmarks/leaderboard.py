"""Bits per byte of held-out documents after five minutes of training from random weights, with all cores.

    python benchmarks/leaderboard.py --corpus <folder> --hf <python>

The folder has the text files of MIXTURE, their documents between two empty lines. One document in a hundred, by its
hash, is held out; all others are trained on, each file with its share of the tokens, after one tokenizer of 4,096
pieces for all. What counts is the mean of the files' bits per byte, weighted by their shares. A held-out document is
read alone, in windows of the context that the model was trained with.

The clock runs in the steps alone: start-up, compilation and the tokens' preparation are left out on all sides. Peers
train as their authors recommend, with the rate that suited them best: nanoGPT's loop, which follows the clock in its
schedule, and Trainer with a Llama of our shape, whose steps are counted beforehand, as ours are.
"""

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
from harness import HEADS, INNER, LAYERS, VOCABULARY, WIDTH, Contestant, now, peak_mb

MIXTURE = {"reference": 45, "computing": 10, "sayings": 8, "manuals": 22, "code": 15}  # file: percent of the tokens
BETWEEN = "\n\n\n"  # documents
CONTEXT, BATCH = 256, 16
HELD_OUT = 0.01
SHORT = harness.Load(batch=BATCH, context=CONTEXT, steps=20, warmup=10)  # tells how many steps fit in the time
OURS = (
    "stage.optimizer._target_=components.training.optimizers.muon",
    "+stage.optimizer.momentum=0.95",
    "stage.optimizer.lr=1e-2",
)


def prepare(args: argparse.Namespace) -> None:
    """Deals the documents, trains the tokenizer and writes the training tokens of each file for the peers."""
    for part in ("train", "held_out"):
        Path(args.work, part).mkdir(parents=True, exist_ok=True)
    for name in MIXTURE:
        dealt: dict[str, list[str]] = {"train": [], "held_out": []}
        for document in filter(None, map(str.strip, Path(args.corpus, f"{name}.txt").read_text().split(BETWEEN))):
            drawn = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) / 16**8
            dealt["held_out" if drawn < HELD_OUT else "train"].append(document)
        for part, texts in dealt.items():
            Path(args.work, part, f"{name}.txt").write_text(BETWEEN.join(texts))
    harness.train(args, "stage=tokenizer", *data(args), f"tokenizer.vocab_size={VOCABULARY}")
    import numpy as np

    encode = encoder(args)
    for name in MIXTURE:
        ids = [i for text in documents(args, "train", name) for i in encode(text)]
        np.save(Path(args.work, f"{name}.npy"), np.array(ids, dtype=np.uint16))


def data(args: argparse.Namespace) -> tuple[str, ...]:
    """Overrides that read the training documents."""
    parts = ", ".join(f"{{path: {args.work}/train/{name}.txt, weight: {share}}}" for name, share in MIXTURE.items())
    return "data=text", f"data.mixture=[{parts}]", r"data.split_at='\n\n\n'", "data.val_fraction=0"


def documents(args: argparse.Namespace, part: str, name: str) -> list[str]:
    return Path(args.work, part, f"{name}.txt").read_text().split(BETWEEN)


def encoder(args: argparse.Namespace) -> Callable[[str], list[int]]:
    """Text → ids that begin with the token that separates documents."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=harness.export(args, "tokenizer") + "/tokenizer.model")
    return lambda text: [pieces.piece_to_id("<|endoftext|>"), *pieces.encode(text)]


def bits_per_byte(args: argparse.Namespace, logits_of: Callable[[Any], Any]) -> dict[str, float]:
    """Of each file's held-out documents, and their mean weighted by the shares. logits_of: (B, T) ids → (B, T, V)."""
    encode = encoder(args)
    found = {}
    for name in MIXTURE:
        texts = documents(args, "held_out", name)
        windows = [window for text in texts for window in _windows(encode(text))]
        nats = sum(_nats(batch, logits_of) for batch in _batches(windows))
        found[name] = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    return {"bits per byte": sum(MIXTURE[name] / 100 * bits for name, bits in found.items()), **found}


def _windows(ids: list[int]) -> Iterator[list[int]]:
    """Each has one token more than the context: the first is only read, the others are predicted."""
    for start in range(0, len(ids) - 1, CONTEXT):
        yield ids[start : start + CONTEXT + 1]


def _batches(windows: list[list[int]]) -> Iterator[list[list[int]]]:
    windows = sorted(windows, key=len)
    yield from (windows[start : start + 32] for start in range(0, len(windows), 32))


def _nats(windows: list[list[int]], logits_of: Callable[[Any], Any]) -> float:
    import torch

    width = max(map(len, windows))
    ids = torch.tensor([window + [0] * (width - len(window)) for window in windows])
    read = torch.arange(1, width) < torch.tensor([[len(window)] for window in windows])
    targets = torch.where(read, ids[:, 1:], -100)
    with torch.no_grad():
        logits = logits_of(ids[:, :-1]).float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))


def ours(*settings: str) -> Callable[[argparse.Namespace], dict[str, float]]:
    def run(args: argparse.Namespace) -> dict[str, float]:
        given = (
            "stage=pretrain",
            *data(args),
            f"data.batch_size={BATCH}",
            f"model.max_position_embeddings={CONTEXT}",
            *settings,
        )
        tried = harness.train(args, *given, *harness.timed(SHORT.steps, SHORT.warmup))["metrics"]
        steps = steps_in(args, tried["train/tokens_per_second"] / BATCH / CONTEXT)
        every = ("trainer.log_every_n_steps=50", "callbacks.throughput.warmup_steps=0")
        card = harness.train(args, *given, f"trainer.max_steps={steps}", *every)
        model, seconds = _exported(args), card["metrics"]["fit_seconds"]
        return figures(args, model, seconds=seconds, tokens=steps * BATCH * CONTEXT, peak=card["peak_mb"])

    return run


def _exported(args: argparse.Namespace) -> Callable[[Any], Any]:
    import sys

    sys.path.insert(0, str(harness.ROOT))
    from components.artifacts import store

    return store.load_causal_lm(harness.export(args, "pretrain"))


def steps_in(args: argparse.Namespace, steps_per_second: float) -> int:
    return max(10, round(args.minutes * 60 * steps_per_second))


def figures(
    args: argparse.Namespace, logits_of: Callable[[Any], Any], *, seconds: float, tokens: int, peak: float
) -> dict[str, float]:
    """rate: tokens per second."""
    return {
        "rate": tokens / seconds,
        "seconds": seconds,
        "million tokens": tokens / 1e6,
        "peak_mb": peak,
        **bits_per_byte(args, logits_of),
    }


def rows(args: argparse.Namespace, generator: Any, number: int) -> Any:
    """(number, context + 1) tokens at random places of files that are chosen by their shares."""
    import numpy as np
    import torch

    files = [
        torch.from_numpy(np.load(Path(args.work, f"{name}.npy"), mmap_mode="r").astype(np.int32)) for name in MIXTURE
    ]
    shares = torch.tensor(list(MIXTURE.values()), dtype=torch.float)
    chosen = shares.multinomial(number, replacement=True, generator=generator).tolist()
    starts = torch.rand(number, generator=generator).tolist()
    width = CONTEXT + 1
    cut = [int(start * (len(files[file]) - width)) for file, start in zip(chosen, starts, strict=True)]
    return torch.stack([files[file][at : at + width] for file, at in zip(chosen, cut, strict=True)]).long()


def nanogpt(*, layers: int, heads: int, width: int, rate: float) -> Callable[[argparse.Namespace], dict[str, float]]:
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from gpt2 import GPT2, adamw

        torch.manual_seed(1337)
        generator = torch.Generator().manual_seed(1337)
        read = rows(args, generator, 200_000).split(BATCH)
        model = GPT2(vocabulary=VOCABULARY, context=CONTEXT, layers=layers, heads=heads, width=width)
        optimizer = adamw(model, lr=rate, betas=(0.9, 0.99))
        compiled, limit = torch.compile(model), args.minutes * 60
        began, done = now(), 0
        for step, ids in enumerate(read):
            if step == SHORT.warmup:  # compiled by now
                began = now()
            if (elapsed := now() - began) >= limit and step > SHORT.warmup:
                break
            share = elapsed / limit if step >= SHORT.warmup else 0.0
            falling = 0.1 + 0.45 * (1 + math.cos(math.pi * min(share, 1)))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(falling, (step + 1) / 100)
            with torch.autocast("cpu", torch.bfloat16):
                loss = compiled(ids[:, :-1], ids[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += step >= SHORT.warmup
        else:
            raise SystemExit("nanoGPT: too few rows were drawn for this time")
        seconds, peak = now() - began, peak_mb()
        return figures(args, model.eval(), seconds=seconds, tokens=done * BATCH * CONTEXT, peak=peak)

    return run


def hf_trainer(rate: float) -> Callable[[argparse.Namespace], dict[str, float]]:
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

        ids = rows(args, torch.Generator().manual_seed(0), 200_000)[:, :CONTEXT]
        read = [{"input_ids": row, "labels": row} for row in ids]

        def trained(steps: int, untimed: int) -> tuple[LlamaForCausalLM, float]:
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
            )
            model, watch = LlamaForCausalLM(config), harness.Stopwatch(SHORT._replace(steps=steps, warmup=untimed))

            class Watch(TrainerCallback):
                def on_step_end(self, *_: Any, **__: Any) -> None:
                    watch.step()

            settings = TrainingArguments(
                output_dir=f"{args.work}/hf",
                max_steps=steps + untimed,
                per_device_train_batch_size=BATCH,
                learning_rate=rate,
                lr_scheduler_type="cosine",
                warmup_steps=100,
                weight_decay=0.1,
                bf16=True,
                torch_compile=True,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            )
            Trainer(model, settings, train_dataset=read, callbacks=[Watch()]).train()
            return model, watch.seconds

        _, seconds = trained(SHORT.steps, SHORT.warmup)
        steps = steps_in(args, SHORT.steps / seconds)
        model, seconds = trained(steps, SHORT.warmup)
        peak, tokens = peak_mb(), steps * BATCH * CONTEXT
        return figures(args, lambda x: model(x).logits, seconds=seconds, tokens=tokens, peak=peak)

    return run


CONTESTANTS = {
    "gradus": Contestant(ours(*OURS)),
    "gradus, default settings": Contestant(ours()),
    "nanoGPT compiled, of our width": Contestant(nanogpt(layers=LAYERS, heads=HEADS, width=WIDTH, rate=3e-3)),
    "nanoGPT compiled, for laptops": Contestant(nanogpt(layers=4, heads=4, width=128, rate=3e-3)),
    "HF Trainer bf16 compiled": Contestant(hf_trainer(3e-3), needs=("hf",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__)
    parser.add_argument("--corpus", required=True, help="folder with the text files of MIXTURE")
    parser.add_argument("--minutes", type=float, default=5, help="of training")
    harness.contest(
        __file__,
        parser,
        CONTESTANTS,
        unit="tokens/s",
        prepare=prepare,
        more=("bits per byte", "million tokens", *MIXTURE),
    )
