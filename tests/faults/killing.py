"""Runs of real stages that are killed, started again by the same command, and compared with a run that was not."""

import hashlib
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.faults.nursery import Nursery
from tests.kit import rewards

BASE = ["model=micro", "trainer=cpu", "gate.enabled=false", "callbacks.samples=null"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
RL = [
    "data.prompts_per_rollout=6",
    "data.batch_size=6",
    "trainer.max_steps=20",
    "stage.epochs=2",
    "stage.minibatches=2",
    "stage.sampling.max_new_tokens=8",
]
STEPS = ["trainer.max_epochs=-1", "trainer.max_steps=20", "data.batch_size=6"]
VALIDATION = [
    "trainer.num_sanity_val_steps=0",
    "trainer.val_check_interval=4",
    "trainer.check_val_every_n_epoch=null",
    "trainer.limit_val_batches=1",
]
CHOSEN = [
    "stage.freeze=[model.embed_tokens]",
    "stage.learning_rates={model.layers.0: 0.5}",
    "stage.schedule.kind=wsd",
]
# X+function: stage X, with functions as its reward
STAGES = {  # seconds each; every one keeps what could be lost: dropout, a schedule, rollouts, an adaptive beta
    "tokenizer": ["data.num_documents=300", "tokenizer.vocab_size=500"],
    "pretrain": ["data.num_documents=300", "data.batch_size=4", "trainer.max_steps=20", "+model.dropout=0.1", *CHOSEN],
    "sft": [
        *STEPS,
        "data.demonstrations=60",
        "stage.model.dropout=0.1",
        "stage.neftune_alpha=5",
        "ema_decay=0.8",
        "data.num_workers=1",
        "trainer.accumulate_grad_batches=2",
    ],
    "rm": [*STEPS, "data.comparisons=60", "data.val_fraction=0.2", "examination=null"],
    "dpo": [*STEPS, "data.comparisons=60", "data.val_fraction=0.2"],
    "kto": [*STEPS, "data.comparisons=60", "data.val_fraction=0.2"],
    "ppo": [
        *RL,
        "ema_decay=0.8",
        "stage.kl_target=1.0",
        "stage.kl_horizon=50",
        "stage.target_kl=0.05",
        "stage.missing_end_score=-1",
    ],
    "grpo": [*RL, "stage.samples_per_prompt=2"],
    "distill": [*RL, "artifacts.teacher=${artifacts.pretrain}", "stage.divergence=jsd"],
    "ppo+function": [*RL, "reward=function", f"reward.path={rewards.__file__}:vowels", "stage.kl_target=1.0"],
    "grpo+function": [
        *RL,
        "stage.samples_per_prompt=2",
        "reward=function",
        f"reward.functions={{a: '{rewards.__file__}:vowels', b: {{path: '{rewards.__file__}:short', weight: 0.1}}}}",
        "reward.processes=1",
    ],
}
MAKING = {  # the models that the victims start from learn a little more, so that answers end
    "tokenizer": [],
    "pretrain": ["data.num_documents=2000", "data.batch_size=16", "trainer.max_steps=120"],
    "sft": ["data.demonstrations=400", "data.batch_size=16", "trainer.max_steps=60", "trainer.max_epochs=-1"],
    "rm": ["trainer.max_steps=20", "trainer.max_epochs=-1", "data.comparisons=200", "examination=null"],
}
LEFTOVERS = ("*.tmp", "*.writing-*", ".writing-*", "*.previous", ".making-*", "*.dropped-*")


class Done(NamedTuple):
    """A run that ended: its exit status, all that it printed, and what it was asked."""

    returncode: int
    stdout: str
    arguments: list[str]


@dataclass
class Tally:
    """What a number of trials came to."""

    kills: int = 0
    resumed: int = 0  # starts after a kill that went on from a checkpoint
    trials: int = 0
    equal: int = 0  # trials that ended bit for bit where the unbroken run did
    faults: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Tally") -> "Tally":
        for name in ("kills", "resumed", "trials", "equal", "faults"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Ground:
    """A folder with the artifacts that stages start from, and unbroken runs to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nursery = Nursery()
        self._unbroken: dict[tuple[str, int], tuple[str, int]] = {}

    def train(self, stage: str, *overrides: str, run: str) -> Done:
        """`python train.py`, in a process group of its own."""
        arguments = [f"stage={stage.partition('+')[0]}", *BASE, f"run={run}", *overrides]
        return Done(*self.nursery.run(arguments, self.folder), arguments)

    def make_parents(self) -> None:
        for stage, settings in MAKING.items():
            done = self.train(stage, *(settings or STAGES[stage]), run="parents")
            assert done.returncode == 0, done.stdout

    def settings(self, stage: str, processes: int) -> list[str]:
        parents = [f"artifacts.{name}=logs/parents/{name}/export" for name in MAKING if name != stage]
        often = [] if stage == "tokenizer" else ["callbacks.checkpoints.every_n_steps=1", *VALIDATION]
        return [*STAGES[stage], *parents, *often, *(TWO if processes == 2 else [])]

    def unbroken(self, stage: str, processes: int) -> tuple[str, int]:
        """The hash of what an unbroken run exports, and how many file operations it has."""
        key = (stage, processes)
        if key not in self._unbroken:
            run, journal = f"whole-{stage}-{processes}", self.folder / f"{stage}-{processes}.journal"
            # a cache of its own, so that its making is among the operations
            places = [f"paths.cache=logs/{run}/cache", at_file(run, 0, journal=str(journal))]
            done = self.train(stage, *self.settings(stage, processes), *places, run=run)
            assert done.returncode == 0, done.stdout
            self._unbroken[key] = self.export_hash(run, stage), len(journal.read_text().splitlines())
        return self._unbroken[key]

    def export_hash(self, run: str, stage: str) -> str:
        """SHA-256 over the names and bytes of an artifact's files but its cards, which hold times."""
        digest = hashlib.sha256()
        for file in sorted((self.folder / "logs" / run / stage.partition("+")[0] / "export").iterdir()):
            if file.name not in ("card.json", "README.md"):
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()

    def leftovers(self, run: str) -> list[str]:
        return [str(path) for pattern in LEFTOVERS for path in (self.folder / "logs" / run).rglob(pattern)]

    def trial(self, stage: str, processes: int, kills: int, seed: int) -> Tally:
        """One run that is killed up to `kills` times, until it ends by itself."""
        expected, operations = self.unbroken(stage, processes)
        draw, tally, run = random.Random(seed), Tally(trials=1), f"{stage}-{processes}-{seed}"
        settings = [*self.settings(stage, processes), f"paths.cache=logs/{run}/cache"]
        for attempt in range(kills + 1):
            death = [a_death(draw, run, stage, processes, operations)] if attempt < kills else []
            done = self.train(stage, *settings, *death, run=run)
            tally.resumed += "resuming from" in done.stdout
            if done.returncode != -signal.SIGKILL:
                break
            tally.kills += 1
        where = f"{run} (last command: {' '.join(map(repr, done.arguments))})"
        if done.returncode != 0:
            tally.faults.append(f"{where} ended with {done.returncode}:\n{done.stdout}")
        elif self.export_hash(run, stage) != expected:
            tally.faults.append(f"{where} ended in other weights")
        elif self.leftovers(run):
            tally.faults.append(f"{where} left {self.leftovers(run)}")
        else:
            tally.equal = 1
        return tally


def at_file(run: str, count: int, *, after: bool = False, rank: int = 0, journal: str = "") -> str:
    values = f"folder: logs/{run}, count: {count}, after: {after}, rank: {rank}, journal: '{journal}'"
    return f"+hydra.callbacks.death={{_target_: deaths.AtFile, {values}}}"


def in_training(event: str, count: int, *, seconds: float = 0.0, rank: int = 0) -> str:
    values = f"event: {event}, count: {count}, seconds: {seconds}, rank: {rank}"
    return f"+hydra.callbacks.death={{_target_: deaths.InTraining, {values}}}"


def a_death(draw: random.Random, run: str, stage: str, processes: int, operations: int) -> str:
    """A moment not far from the start of this process, so that the run is not over before: at a file or in a step."""
    rank = draw.randrange(processes)
    most = operations if stage == "tokenizer" else operations // 6
    if stage == "tokenizer" or draw.random() < 0.4:
        return at_file(run, draw.randint(1, most), after=draw.random() < 0.5)
    if draw.random() < 0.4:  # somewhere in the milliseconds that writing takes
        return in_training("save", draw.randint(1, 4), seconds=round(draw.uniform(0.0005, 0.02), 5), rank=rank)
    event = draw.choice(("batch", "backward", "step", "end", "validation"))
    return in_training(event, 1 if event == "validation" else draw.randint(1, 4), rank=rank)
