"""Several processes on this machine, started as a cluster would: forked, each gets its rank from its environment."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from components.data.loading.experience import Minibatch
from components.generation.generate import Samples
from components.stages.rollouts import RolloutStage
from components.training.fsdp import FullySharded
from tests.kit.tiny_stages import END, PAD, PROMPTS, Batches

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ddp": DDPStrategy,
    "fsdp": FullySharded,
    "hybrid": partial(FullySharded, replicas=2),
}
SECONDS = 300  # after which processes that wait for each other are ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(work: Callable[[int], Any], folder: Path, world_size: int = 2, seconds: float = SECONDS) -> list[Any]:
    """What `work(rank)` gives on every rank. Raises RuntimeError where one fails or they do not end in time.

    A strategy finds the ranks as it would in processes that a cluster started (LOCAL_RANK and its like are set).
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    pids = [_fork(work, folder, rank, world_size, port) for rank in range(world_size)]
    codes = _wait(pids, seconds)
    if any(codes):
        raise RuntimeError(f"exit statuses {codes}")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _fork(work: Callable[[int], Any], folder: Path, rank: int, world_size: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ |= {
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        torch.save(work(rank), folder / f"{rank}.pt")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the parent's fixtures and reports are not this process's to end


def _wait(pids: list[int], seconds: float) -> list[int]:
    """Exit statuses; -9 of those that had to be killed when the time was over."""
    deadline = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in [p for p in pids if p not in codes]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


class GivenResponses(RolloutStage):
    """Returns given responses, which depend on the number of the prompt and the rollout alone."""

    def sample(self, prompts: list[list[int]], generator: torch.Generator) -> Samples:
        tokens = torch.Generator().manual_seed(self.rollout)
        each = self.samples_per_prompt
        ids = torch.randint(3, 10, (len(PROMPTS), each, 6), generator=tokens)
        lengths = torch.tensor([1, 6, 2, 6, 1, 2, 1, 3])[:, None]  # of the first five prompts together 16, then 6
        lengths = (lengths + torch.arange(each)).clamp_max(6)
        mask = torch.arange(6) < lengths[:, :, None]
        ids.scatter_(2, lengths[:, :, None] - 1, END)
        ids[3, 0, 5] = 3  # one without an end
        finished = torch.ones(len(PROMPTS), each, dtype=torch.bool)
        finished[3, 0] = False
        mine = [[known["ids"] for known in PROMPTS].index(prompt) for prompt in prompts[::each]]
        return Samples(*(tensor[mine].flatten(0, 1) for tensor in (ids.where(mask, PAD), mask, finished)))

    def collect(self, prompts: list[dict], rollout: int, further=None) -> list[Minibatch]:
        self.rollout = rollout
        return super().collect(prompts, rollout, further)


class Rollouts(Batches):
    """Collects one rollout after the other; of several ranks, each on its own prompts."""

    def __init__(self, stage: RolloutStage, *prompts_of_ranks: list[dict], count: int = 2, updates: int = 1) -> None:
        super().__init__(*([prompts] * count for prompts in prompts_of_ranks))
        self.stage, self.updates = stage, updates

    def __len__(self) -> int:
        return super().__len__() * self.updates

    def __iter__(self) -> Iterator[Minibatch]:
        for rollout, prompts in enumerate(super().__iter__()):
            yield from self.stage.collect(prompts, rollout)
