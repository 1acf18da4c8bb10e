"""How models that are served or talked to come into memory: in which dtype, and what to do if there is no room."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from components.artifacts import store
from components.artifacts.peft import base_of
from components.artifacts.store import DType
from components.models.heads import CausalLM, ScalarModel
from components.system.disk import read_json
from components.system.memory import is_out_of_memory

AskedDType = Literal["auto", "float32", "bfloat16"]
HALVES = ("bfloat16", "float16")


def device_of(name: str) -> str:
    """The name of a device for torch; auto: CUDA if it is available, else the CPU."""
    return "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")


def dtype_of(folder: Path, asked: AskedDType, device: str) -> DType:
    """The dtype of the weights in memory, and so of the copy that decodes.

    auto: float32, except on CUDA: there the dtype that the folder's config.json names, with bfloat16 for float16.
    """
    if asked != "auto":
        return asked
    config = read_json((base_of(folder) or folder) / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return "bfloat16" if device.startswith("cuda") and stored in HALVES else "float32"


def load(folder: Path, *, context: int | None, device: str, dtype: AskedDType) -> CausalLM | ScalarModel:
    """The model in a folder, on a device. Raises ValueError if there is no such device, or not enough memory on it."""
    config, kind = store.load_config(folder, context=context)
    load_kind = store.load_causal_lm if kind == "CausalLM" else store.load_scalar
    own = dtype_of(folder, dtype, device_of(device))
    size = config.num_parameters() * getattr(torch, own).itemsize
    with enough_memory(f"{folder}, whose weights take {size:,} bytes in {own}", device, own):
        return _on_device(load_kind(folder, context=context, dtype=own), device)


def _on_device(model: CausalLM | ScalarModel, name: str) -> CausalLM | ScalarModel:
    try:
        return model.to(device_of(name))
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--device {name}: {reason}. Expected auto, cpu, or a device that this machine has") from None


@contextmanager
def enough_memory(what: str, device: str, dtype: str) -> Iterator[None]:
    """Turns running out of memory for something into a ValueError that says what to try instead of this device and
    dtype."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        place = device_of(device)
        tries = [] if dtype == "bfloat16" else ["--dtype bfloat16"]
        tries += [] if place.startswith("cpu") else ["--device cpu"]
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"out of memory on {place}: {what}. Try {', '.join([*tries, 'a smaller model'])}"
            f"{f' ({reason})' if reason else ''}"
        ) from None
