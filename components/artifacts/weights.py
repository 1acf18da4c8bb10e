"""Weights of a Hugging Face folder: finds them, reads them into memory once, and renames them to ours and back."""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from components.system.disk import read_json

FILES = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read, whole or as an index of its shards
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # constants in old files
GPT2_LAYER = {  # name in our layer: in GPT-2's
    "input_layernorm": "ln_1",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
GPT2_OUTSIDE = {
    "embed_tokens.weight": "wte.weight",
    "embed_positions.weight": "wpe.weight",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
QKV = ("q_proj", "k_proj", "v_proj")


class WeightsError(ValueError):
    """A folder's weights are missing, damaged, or not only weights."""


def read_weights(folder: str | Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a folder in `dtype`, by their names in the files.

    Files are memory-mapped and copied tensor by tensor, which makes one copy of the model whatever its stored type.
    Reads model.safetensors, or pytorch_model.bin without running code in it, whole or in shards. Raises WeightsError
    naming the file and what is wrong with it.
    """
    weights: dict[str, Tensor] = {}
    for file in _files(Path(folder)):
        for name, tensor in _tensors(file):
            if not name.endswith(NO_WEIGHTS):
                weights[name] = tensor.to(dtype, copy=True)
    return weights


def from_gpt2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's names and matrices → ours: c_attn becomes three projections, and matrices are (out, in).

    The prefix `transformer.` can be missing, as in OpenAI's own files.
    """
    layer = {theirs: ours for ours, theirs in GPT2_LAYER.items()}
    outside = {theirs: f"model.{ours}" for ours, theirs in GPT2_OUTSIDE.items()}
    renamed: dict[str, Tensor] = {}
    for full, tensor in weights.items():
        name = full.removeprefix("transformer.")
        parts = name.split(".")
        if name in outside:
            renamed[outside[name]] = tensor
        elif parts[0] == "h" and len(parts) > 3:
            number, inner, kind = parts[1], ".".join(parts[2:-1]), parts[-1]
            tensor = tensor.t() if tensor.dim() == 2 else tensor
            if inner == "attn.c_attn":
                for part, chunk in zip(QKV, tensor.chunk(3), strict=True):
                    renamed[f"model.layers.{number}.self_attn.{part}.{kind}"] = chunk.contiguous()
            else:
                renamed[f"model.layers.{number}.{layer.get(inner, inner)}.{kind}"] = tensor.contiguous()
        else:
            renamed[full] = tensor  # the heads; and unknown weights, under their own names
    return renamed


def to_gpt2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and matrices → GPT-2's: the inverse of `from_gpt2`."""
    renamed: dict[str, Tensor] = {}
    for full, tensor in weights.items():
        parts = full.split(".")
        outside = GPT2_OUTSIDE.get(full.removeprefix("model."))
        if outside:
            renamed[f"transformer.{outside}"] = tensor
        elif parts[:2] == ["model", "layers"]:
            start, inner, kind = f"transformer.h.{parts[2]}", ".".join(parts[3:-1]), parts[-1]
            if inner == "self_attn.q_proj":
                tensor = torch.cat([weights[full.replace("q_proj", part)] for part in QKV])
                inner = "attn.c_attn"
            elif inner.startswith("self_attn.") and inner not in GPT2_LAYER:
                continue  # k_proj and v_proj are joined with q_proj
            tensor = tensor.t().contiguous() if tensor.dim() == 2 else tensor
            renamed[f"{start}.{GPT2_LAYER.get(inner, inner)}.{kind}"] = tensor
        else:
            renamed[full] = tensor
    return renamed


def drop_equal(weights: dict[str, Tensor], name: str, other: str) -> None:
    """Drops a matrix that is tied to another. Raises WeightsError if the file contains both and they differ."""
    dropped = weights.pop(name, None)
    if dropped is not None and other in weights and not torch.equal(dropped, weights[other]):
        raise WeightsError(
            f"config.json sets tie_word_embeddings, but {name} differs from {other}; "
            "set tie_word_embeddings to false in it"
        )


def check_shapes(weights: dict[str, Tensor], shapes: dict[str, torch.Size]) -> None:
    """Raises WeightsError unless the weights have exactly these names and shapes and are finite."""
    missing, unknown = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
    if missing or unknown:
        raise WeightsError(
            f"weights do not fit config.json: missing {sorted(missing)[:4]}, unknown {sorted(unknown)[:4]}"
        )
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise WeightsError(f"{name} has shape {tuple(weight.shape)}, config.json asks for {tuple(shapes[name])}")
        if not weight.isfinite().all():
            raise WeightsError(f"{name} contains values that are not finite: its training diverged")


def bytes_of(folder: str | Path) -> int:
    """Total size of a folder's weight files. Raises WeightsError as `read_weights` does."""
    return sum(file.stat().st_size for file in _files(Path(folder)))


def _files(folder: Path) -> list[Path]:
    for name in FILES:
        index = folder / f"{name}.index.json"
        if index.exists():
            return _shards(index)
        if (folder / name).exists():
            return [folder / name]
    raise WeightsError(f"{folder / FILES[0]} is missing: the model's weights are expected there, or in {FILES[1]}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names; they must be in the same folder."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of weights: {error.__cause__ or error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise WeightsError(f"{index} names the file {name!r}: expected the plain name of a file in the same folder")
        if not (index.parent / name).exists():
            raise WeightsError(f"{index.parent / name} is missing: {index.name} names it")
    return [index.parent / name for name in names]


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise WeightsError(f"{file} is damaged: {error}. Download or make it again") from error
        return
    try:  # weights_only: loading a pickle could otherwise run any code
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{file} contains something other than weights, or is damaged: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise WeightsError(f"{file} contains something other than weights by name")
    yield from content.items()
