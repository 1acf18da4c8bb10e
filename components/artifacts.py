"""The folder that one stage hands to the next: a Hugging Face model folder plus card.json.

    config.json, generation_config.json, model.safetensors    a model (absent from a tokenizer's artifact)
    tokenizer.model, tokenizer_config.json, …                 the tokenizer and its chat template
    card.json                                                 stage, parents, fingerprints, seed, commit, metrics

Plain data only: nothing in it runs on loading. A folder that somebody else made needs no card.
"""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from components.models.config import GPTConfig
from components.models.heads import CausalLM, ScalarModel, scalar_from_causal
from components.tokenizer.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "card.json"


class ArtifactError(ValueError):
    """An artifact is missing, damaged, or not what the reader needs."""


def write_artifact(
    path: str | Path,
    *,
    card: dict[str, Any],
    tokenizer: Tokenizer | None = None,
    model: CausalLM | ScalarModel | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes an artifact under a temporary name, syncs it to disk and renames it to `path`.

    weights: the model's, where `whole_weights` has gathered them already.
    An artifact that lies there is replaced only after the new one is whole. The card gains `content`, a hash of
    everything else in the folder. Raises ArtifactError when the disk refuses (full, read-only).
    """
    path = Path(path)
    staging = path.with_name(f"{path.name}.writing-{os.getpid()}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        if tokenizer is not None:
            tokenizer.save(staging)
        if model is not None:
            _write_model(staging, model, weights or whole_weights(model), tokenizer)
        _write_json(staging / CARD, {**card, "content": content_hash(staging)})
        for file in staging.iterdir():
            _sync(file)
        _swap(staging, path)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):  # safetensors has its own error for a full disk
            raise ArtifactError(f"could not write the artifact {path}: {getattr(error, 'strerror', None) or error}; "
                                "what lay there before is untouched") from error  # fmt: skip
        raise


def present(path: str | Path) -> bool:
    """Whether an artifact lies at `path`; one that a kill left under its `.previous` name is put back first."""
    path = Path(path)
    previous = path.with_name(f"{path.name}.previous")
    if not path.exists() and previous.is_dir():
        previous.rename(path)
    return path.is_dir()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights by name, on the CPU; shards are gathered, so every process must call it."""
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in model.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}


def read_card(path: str | Path) -> dict[str, Any]:
    """The artifact's card.json; {} for a folder that has none. Raises ArtifactError if it is not JSON."""
    file = Path(path) / CARD
    return _read_json(file) if file.exists() else {}


def content_hash(path: str | Path) -> str:
    """sha256 over the names and bytes of an artifact's files, its card excepted."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.name == CARD or not file.is_file():
            continue
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in an artifact (any stage's)."""
    _expect_folder(path)
    return Tokenizer.load(Path(path))


def load_config(path: str | Path) -> tuple[GPTConfig, str]:
    """(shape, kind) of the model in a folder; kind is "CausalLM" or "SequenceClassification".

    Raises ArtifactError for a folder without a config.json, or an architecture that is neither.
    """
    _expect_folder(path)
    file = Path(path) / "config.json"
    if not file.exists():
        raise ArtifactError(f"{path} has no config.json: expected a model's folder, found {_listing(path)}")
    fields = _read_json(file)
    architecture = (fields.get("architectures") or ["?"])[0]
    for kind in ("CausalLM", "SequenceClassification"):
        if architecture.endswith(f"For{kind}"):
            try:
                return GPTConfig.from_hf(fields), kind
            except KeyError as error:
                raise ArtifactError(f"{file} lacks the field {error}") from error
            except ValueError as error:
                raise ArtifactError(f"{path}: {error}") from error
    raise ArtifactError(f"{file}: architecture {architecture!r} is neither a CausalLM nor a SequenceClassification")


def load_causal_lm(path: str | Path, *, dropout: float = 0.0) -> CausalLM:
    """The language model in a folder, in eval mode. Raises ArtifactError if there is none."""
    config = replace(_expect_kind(path, "CausalLM"), dropout=dropout)
    model = CausalLM(config)
    _load_weights(model, path, tied={"lm_head.weight"} if config.tie_word_embeddings else set())
    return model.eval()


def load_scalar(path: str | Path) -> ScalarModel:
    """The reward (or value) model in a folder, in eval mode. Raises ArtifactError if there is none."""
    model = ScalarModel(_expect_kind(path, "SequenceClassification"))
    nn.init.zeros_(model.score.bias)  # other people's classifiers have none
    _load_weights(model, path, optional={"score.bias"})
    return model.eval()


def load_scalar_from_causal(path: str | Path) -> ScalarModel:
    """A fresh reward model on the trunk of the language model in a folder; its head draws from the global seed."""
    return scalar_from_causal(load_causal_lm(path))


def _expect_kind(path: str | Path, kind: str) -> GPTConfig:
    config, found = load_config(path)
    if found != kind:
        names = {"CausalLM": "a language model", "SequenceClassification": "a reward model"}
        raise ArtifactError(f"{path}: expected {names[kind]} (…For{kind}), got {names[found]} (…For{found})")
    return config


def _load_weights(model: nn.Module, path: str | Path, *, tied=frozenset(), optional=frozenset()) -> None:
    folder = Path(path)
    if (folder / INDEX).exists():
        names = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
    else:
        files = [folder / WEIGHTS]
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.exists():
            raise ArtifactError(f"{file} is missing: the model's weights are expected there as safetensors")
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ArtifactError(f"{file} is damaged: {error}. Make it again with force=true") from error
    wanted = model.state_dict()
    missing = wanted.keys() - weights.keys() - set(tied) - set(optional)
    unknown = weights.keys() - wanted.keys()
    if missing or unknown:
        raise ArtifactError(f"{folder}: weights do not fit config.json: missing {sorted(missing)[:4]}, "
                            f"unknown {sorted(unknown)[:4]}")  # fmt: skip
    for name, weight in weights.items():
        if weight.shape != wanted[name].shape:
            raise ArtifactError(f"{folder}: {name} has shape {tuple(weight.shape)}, "
                                f"config.json asks for {tuple(wanted[name].shape)}")  # fmt: skip
    model.load_state_dict(weights, strict=False)


def _write_model(folder: Path, model: nn.Module, weights: dict[str, torch.Tensor], tokenizer: Tokenizer | None) -> None:
    causal = isinstance(model, CausalLM)
    config = model.config.to_hf("CausalLM" if causal else "SequenceClassification")
    if not causal:
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    if tokenizer is not None:
        ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
        config |= {**ids, "eos_token_id": tokenizer.eos_id}
        if causal:
            _write_json(folder / "generation_config.json", {**ids, "eos_token_id": list(tokenizer.stop_ids)})
    _write_json(folder / "config.json", config)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    save_file({n: w for n, w in weights.items() if n not in tied}, folder / WEIGHTS, metadata={"format": "pt"})


def _swap(staging: Path, path: Path) -> None:
    """Puts `staging` in the place of `path`; at every moment one whole artifact exists, see `present`."""
    previous = path.with_name(f"{path.name}.previous")
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    try:
        staging.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise
    shutil.rmtree(previous, ignore_errors=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _expect_folder(path: str | Path) -> None:
    if not present(path):
        raise ArtifactError(f"no artifact at {path}: expected a folder with config.json or tokenizer.model")


def _listing(path: str | Path) -> str:
    return ", ".join(sorted(p.name for p in Path(path).iterdir())[:6]) or "nothing"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
