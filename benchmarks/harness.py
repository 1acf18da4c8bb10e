"""What every comparison shares: contestants in processes of their own, taking turns; medians, spread, ratios; a table.

A script names its contestants, ours first. `contest` runs each as `<python> <script> --contestant <name>` in a fresh
process, all of them once per repeat, so that a noisy minute hits everybody; the last line that it prints is its result.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PEERS = {
    "hf": "python of an environment with transformers, peft and trl==1.16.0",
    "trl-ppo": "python of an environment with trl==1.12.0, the last with PPO",
    "litgpt": "python of an environment with litgpt==0.5.13",
}
FILES = {
    "text": "a text file, also for the tokenizer",
    "chat": 'a .jsonl(.gz) file of {"messages"}',
    "preference": 'a .jsonl(.gz) file of {"prompt", "chosen", "rejected"}',
}
GPU = Path(sys.argv[0]).name == "gpu.py" and "--tiny" not in sys.argv and shutil.which("nvidia-smi") is not None
DEVICE = "cuda" if GPU else "cpu"
PACKAGES = ("torch", "lightning", "transformers", "trl", "peft", "litgpt", "accelerate")


class Load(NamedTuple):
    """What one contestant's run consists of: records a step, tokens of the longest, timed steps, steps before them."""

    batch: int
    context: int
    steps: int
    warmup: int


class Contestant(NamedTuple):
    """run: the arguments → {"rate": …, "peak_mb": …, …}; needs: the peers' arguments that it cannot do without, its
    python first."""

    run: Callable[[argparse.Namespace], dict[str, float]]
    needs: tuple[str, ...] = ()


def arguments(description: str, *files: str) -> argparse.ArgumentParser:
    """The parser of a comparison that needs these of FILES."""
    parser = argparse.ArgumentParser(description=description)
    for file in files:
        parser.add_argument(f"--{file}", required=True, help=FILES[file])
    for peer, what in PEERS.items():
        parser.add_argument(f"--{peer}", help=f"{what}; its contestants are left out without it")
    parser.add_argument("--work", default="/tmp/gradus-bench", help="folder for models and tokenized data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=None, help="comma-separated contestants")
    parser.add_argument("--contestant", default=None, help=argparse.SUPPRESS)
    return parser


def contest(
    script: str,
    parser: argparse.ArgumentParser,
    contestants: Mapping[str, Contestant],
    *,
    unit: str,
    prepare: Callable[[argparse.Namespace], None] | None = None,
    more: Sequence[str] = (),
    finish: Callable[[argparse.Namespace, Sequence[str]], Mapping[str, Any]] | None = None,
) -> None:
    """Runs the comparison, or in a child one contestant; prints the table and writes results/<script>.json.

    more: names of measured figures that the table shows too. finish: after the last repeat, the arguments and the
    contestants → what to record beside the figures.
    """
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps({**contestants[args.contestant].run(args), "versions": versions()}))
        return
    if prepare:
        prepare(args)
    given = {name: getattr(args, name.replace("-", "_")) for name in PEERS}
    chosen = [n for n, c in contestants.items() if all(given[peer] for peer in c.needs)]
    chosen = [n for n in chosen if not args.only or n in args.only.split(",")]
    pythons = {n: given[contestants[n].needs[0]] if contestants[n].needs else sys.executable for n in chosen}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    used: dict[str, dict[str, str]] = {}
    for repeat in range(args.repeats):
        for name in chosen:
            result = _measured(pythons[name], script, name)
            used[name] = result.pop("versions")
            found[name].append(result)
            print(f"repeat {repeat + 1}/{args.repeats} {name}: {result}", flush=True)
    finished = finish(args, chosen) if finish else {}
    _report(Path(script).stem, found, unit, {"machine": hardware(), "versions": used, **finished}, more)


def _measured(python: str, script: str, name: str) -> dict[str, float]:
    """One run of one contestant; its peak memory is that of its whole process tree's largest process."""
    command = [python, script, *sys.argv[1:], "--contestant", name]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])  # progress of libraries may stand before it


def _report(
    name: str,
    found: Mapping[str, list[dict[str, float]]],
    unit: str,
    record: Mapping[str, Any],
    more: Sequence[str] = (),
) -> None:
    print("\n" + table(name, found, unit, *more) + f"\n\n{record['machine']}")
    medians = {n: _medians(runs) for n, runs in found.items()}
    save(name, {"unit": unit, **record, "median": medians, "runs": found})


def save(name: str, record: Mapping[str, Any]) -> None:
    """Writes results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def table(name: str, found: Mapping[str, list[dict[str, float]]], unit: str, *more: str) -> str:
    """Medians and ranges, and more of the measured by name; contestants called "<work>: <name>" are compared with the
    first of the same work."""
    columns = [name, f"{unit} (min – max)", "ours is faster by", "peak MB", "our share of it", *more]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    medians = {n: _medians(runs) for n, runs in found.items()}
    firsts: dict[str, str] = {}
    for n, runs in found.items():
        ours = medians[firsts.setdefault(n.split(": ")[0] if ": " in n else "", n)]
        rates = [run["rate"] for run in runs]
        faster = "" if ours is medians[n] else f"{ours['rate'] / medians[n]['rate']:.2f} ×"
        share = "" if ours is medians[n] else f"{ours['peak_mb'] / medians[n]['peak_mb']:.2f}"
        rate = f"{figure(medians[n]['rate'])} ({figure(min(rates))} – {figure(max(rates))})"
        rest = [figure(medians[n][key]) if key in medians[n] else "" for key in more]
        lines.append(f"| {' | '.join([n, rate, faster, format(medians[n]['peak_mb'], '.0f'), share, *rest])} |")
    return "\n".join(lines)


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def hardware() -> dict[str, Any]:
    """The machine, the versions and the commit that figures belong to."""
    try:
        model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        processor = model.split(":")[1].strip()
    except (OSError, StopIteration):
        processor = platform.processor()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    card = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = {"gpu": subprocess.run(card, capture_output=True, text=True).stdout.strip()} if GPU else {}
    return {
        **gpu,
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "commit": git.stdout.strip(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_mb() -> float:
    """The most memory that this process has had so far, on a GPU that of its tensors there, in MB (2^20 bytes)."""
    if GPU:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def train(args: argparse.Namespace, *overrides: str, model: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs our train.py as a user would, in the benchmark's folder; its card, with the child's peak memory.

    model: overrides that choose the model, in place of SHAPE.
    """
    run_train(args, *(SHAPE if model is None else model), *QUIET, *overrides)
    given = dict(override.split("=", 1) for override in overrides)
    card = json.loads(Path(export(args, given.get("paths.folder", given["stage"])), "card.json").read_text())
    resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    card["peak_mb"] = card["metrics"].get("train/peak_memory_mb", resident)
    return card


def run_train(args: argparse.Namespace, *overrides: str) -> None:
    """Runs our train.py as a user would, in the benchmark's folder."""
    # an executable started from a large process would inherit its peak: this one has imported nothing heavy yet
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *overrides,
        f"run={RUN}",
        f"paths.logs={args.work}",
        "force=true",
    ]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stdout[-2000:]}{process.stderr[-3000:]}")


RUN = "bench"
VOCABULARY = 4096
# The models of every comparison on a processor: 4.2M parameters.
LAYERS, WIDTH, INNER, HEADS = 4, 256, 688, 4
SHAPE = (
    "model=small",
    f"model.num_hidden_layers={LAYERS}",
    f"model.hidden_size={WIDTH}",
    f"model.intermediate_size={INNER}",
    f"model.num_attention_heads={HEADS}",
    f"model.num_key_value_heads={HEADS}",
)
QUIET = (
    f"trainer={'gpu' if GPU else 'cpu'}",
    "callbacks.samples=null",
    "callbacks.hparams=null",
    "trainer.num_sanity_val_steps=0",
    "trainer.limit_val_batches=0",
)


def timed(steps: int, warmup: int) -> tuple[str, ...]:
    """Overrides that make the figures of the last `steps` steps the ones in the card."""
    total = steps + warmup
    return (
        f"trainer.max_steps={total}",
        f"trainer.log_every_n_steps={total}",
        f"callbacks.throughput.warmup_steps={warmup}",
    )


def records(path: str, count: int) -> list[dict[str, Any]]:
    """The first records of a .jsonl or .jsonl.gz file."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count))]


def export(args: argparse.Namespace, stage: str) -> str:
    return str(Path(args.work) / RUN / stage / "export")


class Stopwatch:
    """Seconds of `steps` steps after `warmup` others, by the clock and of this process on processors; call `step` after
    each. A GPU is waited for twice only."""

    def __init__(self, load: Load) -> None:
        self.load, self.done, self.seconds, self.cpu_seconds = load, 0, 0.0, 0.0
        self._began = self._cpu_began = 0.0

    def step(self) -> None:
        self.done += 1
        if self.done == self.load.warmup:
            self._began, self._cpu_began = now(), time.process_time()
        elif self.done == self.load.warmup + self.load.steps:
            self.seconds, self.cpu_seconds = now() - self._began, time.process_time() - self._cpu_began

    @property
    def steps_per_second(self) -> float:
        return self.load.steps / self.seconds


def now() -> float:
    """Seconds on a clock, once a GPU has finished what it was given."""
    if GPU:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
