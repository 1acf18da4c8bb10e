"""Bits per byte of held-out documents after five minutes of training from random weights, with all cores.

    python benchmarks/leaderboard.py --corpus <folder> --hf <python>

The folder has the text files of MIXTURE, their documents between two empty lines. One document in a hundred, by its
hash, is held out; all others are trained on, each file with its share of the tokens, after one tokenizer of 4,096
pieces for all. What counts is the mean of the files' bits per byte, weighted by their shares. A held-out document is
read alone, in windows of the context that the model was trained with.

Peers are nanoGPT's loop, whose schedule follows the clock, and HF Trainer with a Llama of our shape, whose number of
steps is estimated beforehand, as ours is; both with a cosine from 3e-3. Their clock runs in the steps alone, after
compilation; ours also counts what Lightning does before the first and after the last step.
"""

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pretrain
from harness import VOCABULARY, Contestant, now, peak_mb

MIXTURE = {"reference": 45, "computing": 10, "sayings": 8, "manuals": 22, "code": 15}  # file: percent of the tokens
BETWEEN = "\n\n\n"  # documents
CONTEXT, BATCH = pretrain.LOAD.context, pretrain.LOAD.batch
HELD_OUT = 0.01
SHORT = pretrain.LOAD._replace(steps=20, warmup=10)  # tells how many steps fit in the time
RATE, WARMUP, DRAWN = 3e-3, 100, 200_000  # of peers: peak of the rate, steps up to it, rows to train on
# Chosen on training documents that were held out for that. Narrower than harness.SHAPE, it reads more in the time.
TUNED = (
    "model.hidden_size=128",
    "model.intermediate_size=384",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "stage.optimizer._target_=components.training.optimizers.muon",
    "+stage.optimizer.momentum=0.95",
    "stage.optimizer.lr=1e-2",
    "stage.learning_rates={model.embed_tokens: 8}",
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


def ours(*settings: str, batch: int = BATCH) -> Callable[[argparse.Namespace], dict[str, float]]:
    def run(args: argparse.Namespace) -> dict[str, float]:
        given = (
            "stage=pretrain",
            *data(args),
            f"data.batch_size={batch}",
            f"model.max_position_embeddings={CONTEXT}",
            *settings,
        )
        tried = harness.train(args, *given, *harness.timed(SHORT.steps, SHORT.warmup))["metrics"]
        steps = steps_in(args, tried["train/tokens_per_second"] / batch / CONTEXT)
        every = ("trainer.log_every_n_steps=50", "callbacks.throughput.warmup_steps=0")
        card = harness.train(args, *given, f"trainer.max_steps={steps}", *every)
        model, seconds = _exported(args), card["metrics"]["fit_seconds"]
        return figures(args, model, seconds=seconds, tokens=steps * batch * CONTEXT, peak=card["peak_mb"])

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


def rows(args: argparse.Namespace, generator: Any) -> Any:
    """(DRAWN, context + 1) tokens at random places of files that are chosen by their shares."""
    import numpy as np
    import torch

    files = [torch.from_numpy(np.load(Path(args.work, f"{name}.npy")).astype(np.int32)) for name in MIXTURE]
    shares = torch.tensor(list(MIXTURE.values()), dtype=torch.float)
    chosen = shares.multinomial(DRAWN, replacement=True, generator=generator).tolist()
    starts = torch.rand(DRAWN, generator=generator).tolist()
    width = CONTEXT + 1
    cut = [int(start * (len(files[file]) - width)) for file, start in zip(chosen, starts, strict=True)]
    return torch.stack([files[file][at : at + width] for file, at in zip(chosen, cut, strict=True)]).long()


def nanogpt(**shape: int) -> Callable[[argparse.Namespace], dict[str, float]]:
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch

        torch.manual_seed(1337)
        model, loss_of, optimizer = pretrain.nanogpt(args, **shape)
        compiled, limit = torch.compile(model), args.minutes * 60
        for step, ids in enumerate(rows(args, torch.Generator().manual_seed(1337)).split(BATCH)):
            if step <= SHORT.warmup:
                began = now()  # compiled by the last of these
            elapsed = now() - began
            if elapsed >= limit:
                break
            falling = 0.1 + 0.45 * (1 + math.cos(math.pi * elapsed / limit))
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(falling, (step + 1) / WARMUP)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(compiled, ids[:, :-1], ids[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        else:
            raise SystemExit("nanoGPT: too few rows were drawn for this time")
        tokens = (step - SHORT.warmup) * BATCH * CONTEXT
        return figures(args, model.eval(), seconds=elapsed, tokens=tokens, peak=peak_mb())

    return run


def hf_trainer(args: argparse.Namespace) -> dict[str, float]:
    import torch

    ids = rows(args, torch.Generator().manual_seed(0))[:, :CONTEXT]
    settings = {"learning_rate": RATE, "lr_scheduler_type": "cosine", "warmup_steps": WARMUP, "weight_decay": 0.1}
    settings |= {"bf16": True, "torch_compile": True}
    _, tried = pretrain.trained_llama(args, ids, SHORT, **settings)
    load = SHORT._replace(steps=steps_in(args, tried.steps_per_second))
    model, watch = pretrain.trained_llama(args, ids, load, **settings)
    tokens, peak = load.steps * BATCH * CONTEXT, peak_mb()
    return figures(args, lambda x: model(x).logits, seconds=watch.seconds, tokens=tokens, peak=peak)


CONTESTANTS = {
    "gradus": Contestant(ours(*TUNED, batch=8)),
    "gradus default": Contestant(ours()),
    "nanoGPT compiled at our width": Contestant(nanogpt()),
    "nanoGPT compiled for laptops": Contestant(nanogpt(layers=4, heads=4, width=128)),
    "HF Trainer bf16 compiled": Contestant(hf_trainer, needs=("hf",)),
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
