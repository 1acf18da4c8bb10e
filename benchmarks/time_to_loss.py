"""Seconds to a validation loss: Shakespeare by characters, against nanoGPT's recipe for a processor.

    python benchmarks/time_to_loss.py --text shakespeare.txt

nanoGPT trains as its README says for a laptop: 4 layers of 128, 64 characters of context, batch 12, 2 000 steps. Both
learn from the first nine tenths and are measured, after the clock has stopped, on the same 64 characters at a time of
the last tenth. Seconds are those of the steps; start-up and evaluation are left out on both sides.
"""

import argparse
import math
import time
from pathlib import Path

import harness
from harness import Contestant, peak_mb

CONTEXT, BATCH, STEPS = 64, 12, 2000
OURS = (  # found on this text; a row holds 128 characters
    "data.batch_size=8",
    "trainer.max_steps=280",
    "model.num_hidden_layers=4",
    "model.hidden_size=128",
    "model.intermediate_size=352",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=4",
    "model.max_position_embeddings=128",
    "stage.optimizer._target_=components.training.optimizers.muon",
    "+stage.optimizer.momentum=0.95",
    "stage.optimizer.lr=1e-2",
    "stage.optimizer.weight_decay=0.1",
)


def parts(args: argparse.Namespace) -> tuple[str, str]:
    text = Path(args.text).read_text()
    cut = int(0.9 * len(text))
    return text[:cut], text[cut:]


def prepare(args: argparse.Namespace) -> None:
    Path(args.work).mkdir(parents=True, exist_ok=True)
    Path(args.work, "shakespeare-train.txt").write_text(parts(args)[0])
    harness.train(
        args, "stage=tokenizer", "data=text", f"data.path={args.work}/shakespeare-train.txt", "tokenizer.vocab_size=323"
    )


def ours(args: argparse.Namespace) -> dict[str, float]:
    import sys

    card = harness.train(
        args,
        "stage=pretrain",
        "data=text",
        f"data.path={args.work}/shakespeare-train.txt",
        "data.val_fraction=0.01",
        "trainer.log_every_n_steps=10",
        "callbacks.throughput.warmup_steps=0",
        *OURS,
    )
    seconds = card["metrics"]["fit_seconds"]
    sys.path.insert(0, str(harness.ROOT))
    import torch

    from components.artifacts import store

    model = store.load_causal_lm(harness.export(args, "pretrain"))
    encode = store.load_tokenizer(harness.export(args, "pretrain")).encode
    with torch.no_grad():
        loss = held_out_loss(torch.tensor(encode(parts(args)[1])), lambda x: model(x))
    return {"rate": 1 / seconds, "seconds": seconds, "loss": loss, "peak_mb": card["peak_mb"]}


def held_out_loss(ids, logits_of) -> float:
    """Nats per character, CONTEXT at a time."""
    import torch

    rows = ids[: (len(ids) - 1) // CONTEXT * CONTEXT + 1]
    x, y = rows[:-1].view(-1, CONTEXT), rows[1:].view(-1, CONTEXT)
    total = 0.0
    for a, b in zip(x.split(256), y.split(256), strict=True):
        total += torch.nn.functional.cross_entropy(logits_of(a).flatten(0, 1), b.flatten(), reduction="sum").item()
    return total / y.numel()


def nanogpt(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from gpt2 import GPT2, adamw

    torch.manual_seed(1337)
    train, held_out = parts(args)
    letters = {letter: number for number, letter in enumerate(sorted(set(train + held_out)))}
    ids, held = (torch.tensor([letters[c] for c in text]) for text in (train, held_out))
    model = GPT2(vocabulary=len(letters), context=CONTEXT, layers=4, heads=4, width=128)
    optimizer = adamw(model, lr=1e-3, betas=(0.9, 0.99))
    began = time.perf_counter()
    for step in range(STEPS):
        rate = 1e-3 * step / 100 if step < 100 else 1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi * (step - 100) / 1900))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,))
        x = torch.stack([ids[i : i + CONTEXT] for i in starts])
        y = torch.stack([ids[i + 1 : i + 1 + CONTEXT] for i in starts])
        loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        loss = held_out_loss(held, model)
    return {"rate": 1 / seconds, "seconds": seconds, "loss": loss, "peak_mb": peak_mb()}


CONTESTANTS = {"gradus": Contestant(ours), "nanoGPT's recipe": Contestant(nanogpt)}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text")
    harness.contest(__file__, parser, CONTESTANTS, unit="runs/s", prepare=prepare)
