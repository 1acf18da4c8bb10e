"""All that is measured on a GPU, in one command of at most --minutes, most important first; README's tables from it.

    # where there is a network, for the python of the machine with the GPU: here 3.12, which has torch, lightning,
    # torchmetrics, transformers, accelerate, pandas, pyarrow, tokenizers, sentencepiece, tensorboard, matplotlib, rich,
    # typer, hypothesis and pytest-xdist
    FOR="--no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d wheels"
    pip download $FOR hydra-core==1.3.8 omegaconf==2.3.1 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19
    pip download $FOR pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5
    pip wheel --no-deps -w wheels antlr4-python3-runtime==4.9.3
    pip download $FOR trl==1.16.0; pip download $FOR trl==1.12.0    # the last with PPO

    # on that machine, in a checkout, without a network
    python3 benchmarks/gpu.py --wheels wheels --minutes 8

    python benchmarks/gpu.py --table       results/gpu.json into README.md
    python benchmarks/gpu.py --roofline    what a data sheet promises into README.md, to be contradicted

Parts: pretrain (ours and nanoGPT's model and loop, compiled, bf16), generation (ours by CUDA graphs, HF generate),
stages (SFT, reward, PPO, GRPO of 8 × (512 + 512) tokens, ours and TRL), breakdown (by torch's profiler) and tests
(pytest -m gpu). Each contestant is a process of its own. Every result is written at once to --out, so a run that is
cut short still tells something, and --resume measures only what is missing there. A part that has used its share of
the minutes waits for the others; what no longer fits is left out, with the reason. Without a GPU, or with --tiny, all
of it runs on a processor with tiny shapes, uncompiled: a rehearsal, whose figures mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_jobs
import gpu_tables
import harness
from gpu_jobs import Job

SHARES = {"pretrain": 0.3, "generation": 0.12, "stages": 0.33, "breakdown": 0.1, "tests": 0.15}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--wheels", default=None, help="folder of wheels: our missing requirements and the peers'")
    made.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is started")
    made.add_argument("--parts", default=",".join(SHARES), help="comma-separated")
    made.add_argument("--repeats", type=int, default=3, help="at most; a repeat comes after everything else")
    made.add_argument("--resume", action="store_true", help="keep what is in --out and measure the rest")
    made.add_argument("--tiny", action="store_true", help="a rehearsal on a processor")
    made.add_argument("--work", default="/tmp/gradus-gpu", help="folder for models and data")
    made.add_argument("--out", default=None, help="results/gpu.json; of a rehearsal, in --work")
    made.add_argument("--table", action="store_true", help="write README.md's tables of what was measured, and end")
    made.add_argument("--roofline", action="store_true", help="write README.md's table of what is predicted, and end")
    made.add_argument("--contestant", default=None, help=argparse.SUPPRESS)
    made.add_argument("--limit", type=float, default=0.0, help=argparse.SUPPRESS)
    return made


def following(jobs: Sequence[Job], spent: Counter[str], left: float, minutes: float) -> Job | None:
    """The job to run next: of those that fit in the seconds that are left the most important, and among equals one
    whose part has not used its share."""

    def order(job: Job) -> tuple[int, bool]:
        return job.importance, spent[job.part] + job.seconds > SHARES[job.part] * minutes * 60

    return min((job for job in jobs if job.seconds <= left), key=order, default=None)


def unpacked(wheels: str | None, work: Path) -> dict[str, str]:
    """PYTHONPATH by peer: all wheels but TRL's are for everybody, and each release of TRL is a peer, "trl-1.16.0"."""
    everybody = work / "site"
    paths = {"": os.pathsep.join(filter(None, [str(everybody), os.environ.get("PYTHONPATH")]))}
    for wheel in sorted(Path(wheels).glob("*.whl")) if wheels else ():
        peer = "-".join(wheel.name.split("-")[:2]) if wheel.name.startswith("trl-") else ""
        folder = work / peer if peer else everybody
        zipfile.ZipFile(wheel).extractall(folder)
        if peer:
            paths[peer] = os.pathsep.join([str(folder), paths[""]])
    return paths


class Measurement:
    """Runs jobs while there is time, and keeps the results on disk."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.began = args, time.monotonic()
        self.out = Path(args.out or (harness.RESULTS if harness.GPU else Path(args.work)) / "gpu.json")
        self.paths = unpacked(args.wheels, Path(args.work))
        self.record: dict[str, Any] = {
            "machine": {**harness.hardware(), **harness.versions()},
            "rehearsal": not harness.GPU,
        }
        self.record |= {"minutes": args.minutes, "results": {}, "left_out": {}}
        if args.resume and self.out.exists():
            self.record["results"] = json.loads(self.out.read_text())["results"]
        self.spent: Counter[str] = Counter()
        self.prepared: set[str] = set()

    def run(self, jobs: Sequence[Job]) -> None:
        waiting = list(jobs)
        for job in jobs:
            if job.peer not in self.paths:
                self.leave_out(job, f"needs --wheels with {job.peer}")
            if job.peer not in self.paths or len(self.record["results"].get(job.part, {}).get(job.name, ())):
                waiting.remove(job)
        waiting = [j._replace(importance=j.importance + 10 * r) for r in range(self.args.repeats) for j in waiting]
        while job := following(waiting, self.spent, self.left, self.args.minutes):
            waiting.remove(job)
            if not self.measure(job):
                waiting = [other for other in waiting if other.name != job.name]
        for job in waiting:
            if job.importance < 10:
                self.leave_out(job, f"no time left: {self.left:.0f} s, it takes about {job.seconds}")
        self.save()

    @property
    def left(self) -> float:
        return self.args.minutes * 60 - (time.monotonic() - self.began)

    def measure(self, job: Job) -> bool:
        """Runs a job once; whether it has a result."""
        began = time.monotonic()
        result, error = {}, ""
        if job.model and job.model not in self.prepared:
            result, error = self.child(f"prepare: {job.model}", "", self.left)
            self.prepared.add(job.model)
        if result is not None:
            limit = min(self.left, max(60, 3 * job.seconds)) if harness.GPU else self.left
            result, error = self.child(job.name, job.peer, limit)
        seconds = time.monotonic() - began
        self.spent[job.part] += seconds
        if result is None:
            self.leave_out(job, error)
        else:
            of_part = self.record["results"].setdefault(job.part, {})
            of_part.setdefault(job.name, []).append({**result, "seconds": round(seconds, 1)})
        print(f"{seconds:4.0f} s, {self.left:4.0f} s left  {job.name}: {result or error.splitlines()[-1]}", flush=True)
        self.save()
        return result is not None

    def child(self, name: str, peer: str, limit: float) -> tuple[dict[str, Any] | None, str]:
        """(a contestant's result, "") or (None, what went wrong). At the limit all of it is killed."""
        command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name, "--limit", str(limit)]
        environment = os.environ | {"PYTHONPATH": self.paths[peer], "TOKENIZERS_PARALLELISM": "true"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return None, f"stopped after {limit:.0f} s"
        finally:  # also where the user interrupts
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            return None, errors[-2000:].strip() or f"exit code {process.returncode}"
        return json.loads(printed.strip().splitlines()[-1]), ""

    def leave_out(self, job: Job, why: str) -> None:
        self.record["left_out"][f"{job.part}: {job.name}"] = why

    def save(self) -> None:
        """Writes everything so far, whole or not at all."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        new = self.out.with_suffix(".new")
        new.write_text(json.dumps(self.record, indent=1) + "\n")
        new.replace(self.out)


def main() -> None:
    args = parser().parse_args()
    if args.table or args.roofline:
        if args.table:
            file = Path(args.out or harness.RESULTS / "gpu.json")
            if not file.exists():
                raise SystemExit(f"{file}: nothing measured yet. On a machine with a GPU: python benchmarks/gpu.py")
            gpu_tables.write("measured", gpu_tables.measured(json.loads(file.read_text())))
        if args.roofline:
            gpu_tables.write("predicted", gpu_tables.predicted())
        return
    jobs = gpu_jobs.jobs()
    if args.contestant:
        run = next((job.run for job in jobs if job.name == args.contestant), gpu_jobs.prepare)
        print(json.dumps(run(args)))
        return
    unknown = set(args.parts.split(",")) - SHARES.keys()
    if unknown:
        raise SystemExit(f"--parts: got {', '.join(unknown)}, expected some of {', '.join(SHARES)}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no contestant outlives this
    measurement = Measurement(args)
    measurement.run([job for job in jobs if job.part in args.parts.split(",")])
    print(gpu_tables.measured(measurement.record))
    print(f"\n{measurement.out}")


if __name__ == "__main__":
    main()
