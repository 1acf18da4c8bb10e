"""What gpu.py measures: each job a contestant in a process of its own, with about how long it takes on an H200."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import generation
import harness
import pretrain
import random_models
import reward
import rl
import sft
from harness import GPU, ROOT, Load

Run = Callable[[argparse.Namespace], dict[str, Any]]
# layers, width, inner width, heads: GPT-2 small's and medium's parameters in a Llama-family shape
PRETRAINED = {"124M": (12, 768, 2048, 12), "350M": (24, 1024, 2752, 16), "tiny": (2, 64, 176, 4)}
VOCABULARY, CONTEXT = (50304, 1024) if GPU else (4096, 64)
PROMPT, ANSWER, ROWS = (512, 512, 8) if GPU else (32, 32, 8)
PRECISION = "trainer.precision=bf16-mixed" if GPU else "trainer.precision=auto"
COMPILE = f"compile={str(GPU).lower()}"
STEPS = Load(batch=ROWS, context=PROMPT + ANSWER, steps=10 if GPU else 2, warmup=5 if GPU else 1)
ITERATIONS = STEPS._replace(steps=2 if GPU else 1, warmup=1)
TRL, TRL_PPO = "trl-1.16.0", "trl-1.12.0"
TRL_SETTINGS = {"bf16": GPU, "gradient_checkpointing": False}


class Job(NamedTuple):
    """importance: 1 is the first to be measured; model: of random_models, that has to be there; peer: of `unpacked`."""

    part: str
    name: str
    run: Run
    seconds: int
    importance: int = 1
    model: str = ""
    peer: str = ""


def jobs() -> list[Job]:
    """All of them on a GPU; the first of every kind in a rehearsal."""
    if not GPU:
        return [
            *_pretrain("tiny", 4, 1, documents=1),
            *_stages("tiny", (1, 1)),
            *_generation("tiny", (1, 2)),
            *_breakdown("tiny", "tiny"),
            Job("tests", "pytest -m gpu", tests, 30),
        ]
    return [
        *_pretrain("124M", 32, 1, documents=2),
        *_generation("135M", (1, 16, 256)),
        *_stages("135M", (1, 2)),
        *_breakdown("124M", "135M"),
        *_pretrain("350M", 16, 1, documents=3),
        Job("tests", "pytest -m gpu", tests, 70),
        *_pretrain("124M", 64, 2, documents=4),
        *_stages("0.5B", (3, 4)),
        *_pretrain("124M", 16, 3, documents=5),
        *_pretrain("350M", 32, 3, documents=5),
    ]


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The model, tokenizer and records that the contestant "prepare: <model>" names."""
    name = args.contestant.removeprefix("prepare: ")
    folder = Path(args.work, name)
    if not (folder / "preference.jsonl").exists():
        random_models.write_models(folder, name)
        random_models.write_records(folder, PROMPT, ANSWER, 64)
    return {}


def _in(name: str, run: Run) -> Run:
    """`run` in the work folder of a random model, with its records."""

    def inside(args: argparse.Namespace) -> dict[str, Any]:
        folder = f"{args.work}/{name}"
        files = {file: f"{folder}/{file}.jsonl" for file in ("chat", "preference")}
        return run(argparse.Namespace(**{**vars(args), **files, "work": folder, "model": None}))  # the folder's own

    return inside


def _pretrain(size: str, rows: int, importance: int, documents: int) -> list[Job]:
    """documents: the importance of rows of several documents, which nanoGPT does not have."""
    load = Load(batch=rows, context=CONTEXT, steps=20 if GPU else 2, warmup=15 if GPU else 1)
    work = f"{size}, {rows} rows"
    return [
        Job("pretrain", f"{work}: gradus", pretrained(size, load, "whole"), 45, importance),
        Job("pretrain", f"{work}: nanoGPT", nanogpt(size, load), 55, importance),
        Job("pretrain", f"{work}: gradus, documents", pretrained(size, load, "documents"), 50, documents),
    ]


def pretrained(size: str, load: Load, text: str, *settings: str) -> Run:
    """Our pretraining. text: "whole", rows of one text as nanoGPT reads; "documents", of about 600 tokens."""
    layers, width, inner, heads = PRETRAINED[size]

    def run(args: argparse.Namespace) -> dict[str, Any]:
        tokenizer, file = Path(args.work, "tokenizer"), Path(args.work, f"{text}.txt")
        if not tokenizer.exists():
            random_models.write_tokenizer(tokenizer, VOCABULARY)
        if not file.exists():
            tokens = 600 * CONTEXT
            random_models.write_text(file, tokens, document=tokens if text == "whole" else 600)
        card = harness.train(
            args,
            "stage=pretrain",
            f"paths.folder=pretrain-{size}",
            f"artifacts.tokenizer={tokenizer}",
            "data=text",
            f"data.path={file}",
            "data.longest_document=100000000",
            "data.val_fraction=0",
            f"data.batch_size={load.batch}",
            COMPILE,
            PRECISION,
            *harness.timed(load.steps, load.warmup),
            *settings,
            model=(
                "model=medium",
                f"model.num_hidden_layers={layers}",
                f"model.hidden_size={width}",
                f"model.intermediate_size={inner}",
                f"model.num_attention_heads={heads}",
                f"model.num_key_value_heads={heads}",
                f"model.max_position_embeddings={CONTEXT}",
            ),
        )
        metrics = card["metrics"]
        return {
            "rate": metrics["train/tokens_per_second"],
            "MFU": metrics["train/mfu"],
            "ms a step": metrics["train/step_seconds"] * 1000,
            "peak_mb": card["peak_mb"],
        }

    return run


def nanogpt(size: str, load: Load) -> Run:
    layers, width, _, heads = PRETRAINED[size]
    shape = dict(vocabulary=VOCABULARY, context=load.context, layers=layers, heads=heads, width=width)

    def run(args: argparse.Namespace) -> dict[str, Any]:
        import torch

        sys.path.insert(0, str(ROOT))
        from components.callbacks.throughput import measured_peak

        def rows(_: argparse.Namespace) -> torch.Tensor:
            return torch.randint(VOCABULARY, (8 * load.batch, load.context + 1))

        loop = pretrain.loop(lambda _: pretrain.nanogpt(**shape), "bf16" if GPU else "fp32", GPU, load, rows)
        found = loop(args)
        peak = measured_peak(torch.device(harness.DEVICE), torch.bfloat16 if GPU else torch.float32)
        weights = 12 * layers * width**2 + VOCABULARY * width
        flops = 6 * weights + 12 * layers * width * load.context
        rate = found["rate"]
        more = {"MFU": rate * flops / peak, "ms a step": load.batch * load.context / rate * 1000}
        return {"rate": rate, **more, "peak_mb": found["peak_mb"]}

    return run


def _generation(model: str, rows: tuple[int, ...]) -> list[Job]:
    def all_rows(one: Callable[[int, bool], Run]) -> Run:
        def run(args: argparse.Namespace) -> dict[str, Any]:
            return {f"{count} row{'s' * (count > 1)}": one(count, GPU)(args) for count in rows}

        return _in(model, run)

    return [
        Job("generation", f"{model}: gradus", all_rows(generation.ours), 30, 1, model),
        Job("generation", f"{model}: HF generate", all_rows(generation.transformers), 70, 1, model),
    ]


def stage(name: str, rate: Callable[[dict[str, float]], float], load: Load, *settings: str, updates: int = 1) -> Run:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        start, scored = (harness.export(args, parent) for parent in ("sft", "rm"))
        card = harness.train(
            args,
            f"stage={name}",
            f"paths.folder=ours-{name}",
            PRECISION,
            *(setting.format(work=args.work) for setting in settings),
            *harness.timed(load.steps * updates, load.warmup * updates),
            model=("model=hf", f"model.path={start}", f"artifacts.sft={start}", f"artifacts.rm={scored}"),
        )
        return {"rate": rate(card["metrics"]), "peak_mb": card["peak_mb"]}

    return run


def per_update(updates: int) -> Callable[[dict[str, float]], float]:
    """Records per second, of metrics that count steps of which a rollout takes `updates`."""
    return lambda metrics: ROWS / (metrics["train/step_seconds"] * updates)


def _stages(model: str, importance: tuple[int, int]) -> list[Job]:
    """importance: of reward models, PPO and GRPO of ours and of TRL's GRPO; of all else."""
    first, second = importance
    context = f"context={STEPS.context}"
    batch = (f"data.batch_size={ROWS}", "trainer.max_epochs=null", context)
    rollout = (
        "data=prompts",
        "data.path={work}/prompts.jsonl",
        "data.val_fraction=0",
        f"stage.sampling.max_new_tokens={ANSWER}",
        "stage.minibatches=1",
        "gate.enabled=false",
    )
    group = (
        *rollout,
        f"context={PROMPT + ROWS * ANSWER}",  # one row holds the prompt and all its answers
        "data.prompts_per_rollout=1",
        f"stage.samples_per_prompt={ROWS}",
        "stage.epochs=1",
    )
    ppo = (*rollout, context, f"data.prompts_per_rollout={ROWS}", f"stage.epochs={rl.EPOCHS}")
    comparisons = ("data=preference", "data.path={work}/preference.jsonl", "data.num_demonstrations=8")
    chat = ("data=chat", "data.path={work}/chat.jsonl", *batch)

    def job(name: str, run: Run, seconds: int, level: int, peer: str = "") -> Job:
        return Job("stages", name, _in(model, run), seconds, level, model, peer)

    return [
        job(f"GRPO {model}, samples/s: gradus", stage("grpo", per_update(1), ITERATIONS, *group), 40, first),
        job(f"GRPO {model}, samples/s: TRL", rl.trl_grpo(ITERATIONS, ANSWER, **TRL_SETTINGS), 80, first, TRL),
        job(
            f"reward {model}, comparisons/s: gradus",
            stage("rm", per_update(1), STEPS, *comparisons, "examination=null", *batch),
            35,
            first,
        ),
        job(f"reward {model}, comparisons/s: TRL", reward.trl(STEPS, **TRL_SETTINGS), 40, second, TRL),
        job(
            f"PPO {model}, samples/s: gradus",
            stage("ppo", per_update(rl.EPOCHS), ITERATIONS, *ppo, updates=rl.EPOCHS),
            50,
            first,
        ),
        job(
            f"PPO {model}, samples/s: TRL",
            rl.trl_ppo(ITERATIONS, ANSWER, per_device_train_batch_size=ROWS, **TRL_SETTINGS),
            90,
            second,
            TRL_PPO,
        ),
        job(
            f"SFT {model}, tokens/s: gradus",
            stage("sft", lambda metrics: metrics["train/tokens_per_second"], STEPS, *chat, COMPILE),
            45,
            second,
        ),
        job(f"SFT {model}, tokens/s: TRL", sft.trl(STEPS, **TRL_SETTINGS), 40, second, TRL),
    ]


def _breakdown(trained: str, model: str) -> list[Job]:
    rows = 32 if GPU else 4
    steps = 3 if GPU else 1
    load = Load(batch=rows, context=CONTEXT, steps=steps, warmup=15 if GPU else 1)

    def training(args: argparse.Namespace) -> dict[str, Any]:
        file = Path(args.work, "breakdown.json")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.getenv("PYTHONPATH")]))
        callback = f"+callbacks.breakdown={{_target_: breakdown.Breakdown, path: {file}"
        pretrained(trained, load, "whole", f"{callback}, skipped: {load.warmup}, steps: {steps}}}")(args)
        return json.loads(file.read_text())

    return [
        Job("breakdown", f"training step, {trained}, {rows} rows", training, 45),
        *(
            Job("breakdown", f"decoding step, {model}, {count} rows", _in(model, decoding(count)), 25, level, model)
            for count, level in ((16, 1), (256, 2))[: 2 if GPU else 1]
        ),
    ]


def decoding(rows: int) -> Run:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        import torch

        sys.path.insert(0, str(ROOT))
        import breakdown

        from components.artifacts import store
        from components.functional.seeding import seeded
        from components.generation.generate import Sampling, pick
        from components.generation.graph import step_of

        model = store.load_causal_lm(harness.export(args, "sft")).eval().to(harness.DEVICE)
        dtype = torch.bfloat16 if GPU else torch.float32
        starts = torch.zeros(rows, dtype=torch.int64, device=harness.DEVICE)
        ids = torch.tensor(generation.prompts(rows), device=harness.DEVICE)
        generator, found, steps = seeded(harness.DEVICE, 0), {}, 16
        with torch.no_grad():
            cache = model.new_cache(starts, generation.PROMPT + 2 * steps, dtype=dtype)
            logits = model.next_logits(ids, cache)
            advance = step_of(model, cache)
            for _ in range(steps // 2):
                logits = advance(pick(logits, Sampling(steps), generator))
            with breakdown.profiling(found, steps):
                for _ in range(steps):
                    logits = advance(pick(logits, Sampling(steps), generator))
        return found

    return run


def tests(args: argparse.Namespace) -> dict[str, Any]:
    """Passed, failed and skipped tests; those that the limit cut off are missing in all of them."""
    files = {str(file.relative_to(ROOT)) for file in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in file.read_text()}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-m", "gpu", "-v", "-rN"]
    command += ["-p", "no:cacheprovider", *(["-n", "8"] * GPU), *sorted(files)]
    log = Path(args.work, "tests.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as written, suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=ROOT, stdout=written, stderr=subprocess.STDOUT, timeout=max(args.limit - 5, 1))
    return outcomes(log.read_text())


def outcomes(log: str) -> dict[str, Any]:
    """How many tests passed, failed, met an error and were skipped in what `pytest -v` wrote, with xdist or without;
    names: of those that failed."""
    words = ("PASSED", "FAILED", "ERROR", "SKIPPED")
    found = re.findall(rf"^(?:\[gw\d+\].*?)?({'|'.join(words)})? ?(\S+::\S+)(?: ({'|'.join(words)}))?", log, re.M)
    ended = [(before or after, name) for before, name, after in found if before or after]
    counts = Counter(word for word, _ in ended)
    names = sorted(name for word, name in ended if word in ("FAILED", "ERROR"))
    return {**{word.lower(): counts[word] for word in words}, "names": names}
