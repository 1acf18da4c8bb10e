"""Where the time of a step goes, by torch's profiler: products, attention, elementwise work, optimizer, idle time.

On a GPU the kernels are what is measured: their shares and the share in which none runs (launch gaps) add up to 1.
Waiting of the host for the GPU (host synchronizations) is counted beside them, since the GPU may work meanwhile. On a
processor, where nothing is launched, it is each operation's own time.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.profiler import ProfilerActivity, profile

# The first kind one of whose words is in a kernel's (or an operation's) name, in lower case.
KINDS = {
    "attention": ("flash", "fmha", "flex_attention", "attention", "sdpa"),
    "optimizer": ("adam", "multi_tensor", "muon"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "wgmma", "_mm", "::mm", "::bmm", "linear", "splitk"),
    "copies": ("memcpy", "memset", "copy"),
}
OTHER = "elementwise"
FUSED = ("triton_poi", "triton_red", "triton_per")  # what torch.compile fuses; their names list the operations in them
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def kind_of(name: str) -> str:
    lower = name.lower()
    if lower.startswith(FUSED):
        return OTHER
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), OTHER)


def shares(spans: Iterable[tuple[str, float, float]], steps: int) -> dict[str, float]:
    """Shares of the time from the first kernel's start to the last one's end, by kind, and "idle"; "step_ms".

    spans: name, start and end in µs of everything that ran. Where two overlap (on several streams), the time is the
    first one's.
    """
    ordered = sorted(spans, key=lambda span: span[1])
    if not ordered:
        raise ValueError("breakdown: the profiler saw nothing run")
    begin = free = ordered[0][1]
    busy: Counter[str] = Counter({kind: 0.0 for kind in (*KINDS, OTHER)})
    for name, start, end in ordered:
        busy[kind_of(name)] += max(end - max(start, free), 0.0)
        free = max(free, end)
    whole = free - begin
    found = {kind: time / whole for kind, time in busy.items()}
    return {**found, "idle": max(1 - sum(found.values()), 0.0), "step_ms": whole / steps / 1000}


def measured(profiler: profile, steps: int) -> dict[str, float]:
    """The breakdown of what was profiled, from the categories of its trace."""
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = [e for e in json.loads(Path(folder, "trace.json").read_text())["traceEvents"] if "dur" in e]
    kernels = [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in ON_GPU]
    if not kernels:
        return shares(_one_after_the_other(profiler), steps)
    waits = [e["dur"] for e in events if e.get("cat") == "cuda_runtime" and e["name"] in WAITS]
    found = {"kernels": len(kernels), "host_syncs": len(waits), "host_sync_ms": sum(waits) / 1000}
    return shares(kernels, steps) | {name: total / steps for name, total in found.items()}


def _one_after_the_other(profiler: profile) -> Iterator[tuple[str, float, float]]:
    """A processor's operations, each as long as its own time."""
    end = 0.0
    for event in profiler.key_averages():
        start, end = end, end + event.self_cpu_time_total
        yield event.key, start, end


@contextmanager
def profiling(found: dict[str, Any], steps: int):
    """Fills `found` with the breakdown of the block."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    found.update(measured(profiler, steps))


class Breakdown(lightning.Callback):
    """Writes the breakdown of `steps` training steps after the first `skipped` to the JSON file `path`."""

    def __init__(self, path: str, skipped: int, steps: int) -> None:
        self.path, self.skipped, self.steps = path, skipped, steps
        self.found: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.skipped and not hasattr(self, "block"):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.block = profiling(self.found, self.steps)
            self.block.__enter__()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.skipped + self.steps and not self.found:
            self.block.__exit__(None, None, None)
            Path(self.path).write_text(json.dumps(self.found))
