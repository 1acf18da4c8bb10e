"""The folder that one stage hands to the next: a Hugging Face model folder plus card.json.

    config.json, generation_config.json, model.safetensors    a model (absent from a tokenizer's artifact)
    tokenizer.model, tokenizer_config.json, …                 the tokenizer and its chat template
    card.json                                                 stage, parents, fingerprints, seed, commit, metrics
    README.md                                                 the same for human readers, in the Hub's format
    adapter/                                                  in PEFT's format, if adapters were trained

Plain data only: loading it runs no code. A folder from elsewhere needs no card; one with PEFT's adapter_config.json
is the model that it names, with those adapters.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from components.artifacts.metadata import CARD as CARD
from components.artifacts.metadata import (
    KINDS,
    README,
    ArtifactError,
    content_hash,
    load_config,
    load_tokenizer,
    read_card,
)
from components.artifacts.model_card import model_card
from components.artifacts.peft import CONFIG, base_of, read_adapters, write_adapters
from components.artifacts.weights import (
    WeightsError,
    bytes_of,
    check_shapes,
    drop_equal,
    from_gpt2,
    read_weights,
    to_gpt2,
)
from components.models.config import GPTConfig
from components.models.gpt import GPT
from components.models.heads import (
    CausalLM,
    ScalarModel,
    Score,
    new_causal_lm,
    scalar_from_causal,
    value_from_causal,
)
from components.models.lora import Adapters, merged
from components.models.quantized import dense_weights
from components.system.disk import present as present
from components.system.disk import swap, sync, write_json
from components.tokenizer import folder as tokenizer_folder
from components.tokenizer.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
DType = Literal["float32", "bfloat16"]


def write_artifact(
    path: str | Path,
    *,
    card: Mapping[str, Any] = MappingProxyType({}),
    tokenizer: Tokenizer | None = None,
    model: CausalLM | ScalarModel | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes an artifact under a temporary name, syncs it to disk and renames it to `path`.

    weights: the model's, if `whole_weights` has gathered them already.
    Replaces an existing artifact only after the new one is complete. The card gains `content`, a hash of everything
    else in the folder except README.md, which repeats the card. Adapters are written next to the weights that they were
    merged into. Raises ArtifactError if the disk is full or read-only.
    """
    path = Path(path)
    staging = path.with_name(f"{path.name}.writing-{os.getpid()}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        if tokenizer is not None:
            tokenizer.save(staging, reads_chats=isinstance(model, ScalarModel))
        kind, shape, shift = "tokenizer", "", None
        if model is not None:
            weights = weights or whole_weights(model)
            kind = _write_model(staging, model, weights, tokenizer, card)
            shape = f"{model.config.num_hidden_layers} layers of width {model.config.hidden_size}"
            shift = float(weights["score.bias"]) if kind == "SequenceClassification" else None
        card = {**card, "content": content_hash(staging)}
        write_json(staging / CARD, card, lenient=True)
        (staging / README).write_text(model_card(card, kind=kind, shape=shape, shift=shift), encoding="utf-8")
        for weights_file in staging.rglob("*.safetensors"):  # safetensors makes them readable by the owner only
            shutil.copymode(staging / CARD, weights_file)
        for file in staging.rglob("*"):
            sync(file)
        swap(staging, path)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):  # safetensors has its own error for a full disk
            raise ArtifactError(
                f"could not write the artifact {path}: {getattr(error, 'strerror', None) or error}; "
                "the previous contents are untouched"
            ) from error
        raise


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights by name, on the CPU. Gathers shards, so every process must call it. Quantized weights become
    dense; adapters stay separate (adapters.*)."""
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in model.state_dict().items()}
    whole |= dense_weights(model)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}


def load_shape(path: str | Path) -> GPTConfig:
    """The shape of the language model in a folder. Raises ArtifactError if there is none."""
    return _expect_kind(path, "CausalLM", 1)


def load_causal_lm(
    path: str | Path, *, dropout: float = 0.0, context: int | None = None, dtype: DType = "float32"
) -> CausalLM:
    """The language model in a folder, in eval mode. Raises ArtifactError if there is none.

    context: as in load_config. dtype: of the weights in memory, independent of the file's; training needs float32. Ids
    without a token in the folder's tokenizer are never predicted (see heads.Vocabulary).
    """
    config = _expect_kind(path, "CausalLM", context)
    config = replace(config, dropout=dropout, unused_ids=_unused_ids(path, config.vocab_size))
    with torch.device("meta"):
        model = CausalLM(config)
    _fill(model, path, dtype)
    model.tie()
    return model.eval()


def load_scalar(
    path: str | Path, *, context: int | None = None, dtype: DType = "float32", trunk: GPT | None = None
) -> ScalarModel:
    """The reward (or value) model in a folder, in eval mode. Raises ArtifactError if there is none.

    trunk: of the model that the adapters in this artifact were trained on (see `adapts`), to share it.
    """
    config = _expect_kind(path, "SequenceClassification", context)
    with torch.device("meta"):
        model = ScalarModel(config, trunk)
    if trunk is None:
        _fill(model, path, dtype)
        return model.eval()
    lora, weights, _ = read_adapters(Path(path) / ADAPTER)
    model.score = Score(config.hidden_size)
    model.adapters = Adapters(config, lora)
    own = model.state_dict().keys() - {f"model.{name}" for name in trunk.state_dict()}
    if own != weights.keys():
        raise ArtifactError(f"{path}: its adapters do not fit: {sorted(own ^ weights.keys())[:4]}")
    model.load_state_dict(weights, strict=False)
    return model.eval()


def adapts(path: str | Path, base: str) -> bool:
    """Whether the artifact at `path` holds adapters that were trained on the artifact with the content `base`."""
    parent = read_card(path).get("parents", {}).get("model", {})
    return (Path(path) / ADAPTER / CONFIG).exists() and "" != base == parent.get("content")


def load_scalar_from_causal(path: str | Path, *, context: int | None = None) -> ScalarModel:
    """A new reward model on the trunk of the language model in a folder; the global seed initializes its head."""
    return scalar_from_causal(load_causal_lm(path, context=context))


def load_value(path: str | Path, *, context: int | None = None) -> ScalarModel:
    """A value model to train: the reward or value model in a folder, or a new head on the language model in it."""
    if load_config(path, context=context)[1] == "CausalLM":
        return value_from_causal(load_causal_lm(path, context=context))
    return load_scalar(path, context=context)


def new_or_loaded(config: GPTConfig, *, path: str | None = None, context: int | None = None) -> CausalLM:
    """The language model in the folder `path`, or, if that is None, a new model of shape `config`."""
    if path is not None:
        return load_causal_lm(path, context=context)
    return new_causal_lm(replace(config, context=context or 0))


def _unused_ids(path: str | Path, size: int) -> tuple[int, ...]:
    """Ids below `size` without a token in the tokenizer of the model's folder, or of its base's."""
    for folder in (path, base_of(path)):
        if folder is not None and tokenizer_folder.is_present(Path(folder)):
            return load_tokenizer(folder).unused_ids(size)
    return ()


def _expect_kind(path: str | Path, kind: str, context: int | None) -> GPTConfig:
    config, actual = load_config(path, context=context)
    if actual != kind:
        raise ArtifactError(f"{path}: expected {KINDS[kind]} (…For{kind}), got {KINDS[actual]} (…For{actual})")
    try:
        size = bytes_of(base_of(path) or path)
    except WeightsError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if config.num_parameters() > size:  # a parameter takes at least one byte; building it first could exhaust memory
        raise ArtifactError(
            f"{path}: config.json describes a model of {config.num_parameters():,} parameters, but its "
            f"weights are only {size:,} bytes"
        )
    return config


def _fill(model: CausalLM | ScalarModel, path: str | Path, dtype: DType) -> None:
    """Loads the weights of a folder into a model on the meta device; their names and shapes must match exactly."""
    config, kind = model.config, getattr(torch, dtype)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}  # a tied matrix once
    try:
        base = base_of(path)
        weights = read_weights(base or path, kind)
        weights = from_gpt2(weights) if config.norm == "layer" else weights
        if base is not None:
            lora, own, _ = read_adapters(path)
            if config.tie_word_embeddings:  # adapters that replace one of the two untie them
                weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
            weights = merged(weights | {name: weight.to(kind) for name, weight in own.items()}, lora)
            unused = "lm_head.weight" if isinstance(model, ScalarModel) else "score.weight"
            weights.pop(unused, None)  # the base's head, if the adapters are of the other kind
        if isinstance(model, ScalarModel):  # classifiers from elsewhere have no bias
            weights.setdefault("score.bias", torch.zeros(1, dtype=kind))
        elif config.tie_word_embeddings:
            drop_equal(weights, "lm_head.weight", "model.embed_tokens.weight")
        check_shapes(weights, shapes)
    except WeightsError as error:
        raise ArtifactError(f"{path}: {error}") from error
    model.load_state_dict(weights, strict=False, assign=True)


def _write_model(
    folder: Path, model: Any, weights: dict[str, torch.Tensor], tokenizer: Tokenizer | None, card: Mapping[str, Any]
) -> str:
    """Writes config and weights; returns the kind of model."""
    causal = isinstance(model, CausalLM)
    kind = "CausalLM" if causal else "SequenceClassification"
    config = model.config.to_hf(kind)
    if not causal:
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    if tokenizer is not None:
        ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
        config |= {**ids, "eos_token_id": tokenizer.eos_id}
        if causal:
            unused = tokenizer.unused_ids(model.config.vocab_size)
            barred = {"suppress_tokens": list(unused)} if unused else {}  # the only way to express it in transformers
            ends = {"eos_token_id": list(tokenizer.stop_ids)}
            write_json(folder / "generation_config.json", {**ids, **ends, **barred}, lenient=True)
    write_json(folder / "config.json", config, lenient=True)
    if model.adapters is not None:
        lora, head = model.adapters.lora, () if causal else ("score.weight", "score.bias")
        base = card.get("parents", {}).get("model", {}).get("path", "")
        base = str(Path(base).resolve()) if base else ""  # PEFT resolves it from its working directory
        gpt2 = model.config.norm == "layer"
        write_adapters(folder / ADAPTER, weights, lora, kind=kind, base=base, head=head, gpt2=gpt2)
        weights = merged(weights, lora)
    left_out = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    left_out |= {"score.bias"} if not causal and not weights["score.bias"].any() else set()  # as in other classifiers
    weights = {name: weight for name, weight in weights.items() if name not in left_out}
    weights = to_gpt2(weights) if model.config.norm == "layer" else weights
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return kind
