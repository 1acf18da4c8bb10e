"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors in a folder of their own."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from components.models.lora import TARGETS, LoRA, place_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name
TASKS = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}
REFUSED = {  # fields of adapter_config.json that make other adapters than A and B on projections; harmless values
    "use_dora": (False, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "modules_to_save": (None, [], ["score"], ["classifier", "score"]),
    "trainable_token_indices": (None,),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
}


class AdapterError(ValueError):
    """A folder's adapters are damaged, or of a kind that is not known here."""


def write_adapters(
    folder: Path, weights: dict[str, torch.Tensor], lora: LoRA, *, kind: str, base: str, head: tuple[str, ...] = ()
) -> None:
    """weights: a model's by name, of which those named adapters.* are written, and the ones that `head` names.

    kind: "CausalLM" or "SequenceClassification"; base: where the model without adapters lies.
    """
    folder.mkdir(parents=True)
    named = {_peft_name(name): weight for name, weight in weights.items() if name.startswith("adapters.")}
    named |= {f"{PREFIX}{name}": weights[name] for name in head}
    config = {
        "peft_type": "LORA",
        "task_type": TASKS[kind],
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": ["score"] if head else None,
    }
    save_file({n: w.contiguous() for n, w in named.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def base_of(folder: str | Path) -> Path | None:
    """Where the model lies that a folder of adapters alone belongs to; None for the folder of a whole model.

    Raises AdapterError where there is no such folder.
    """
    folder = Path(folder)
    if (folder / "config.json").exists() or not (folder / CONFIG).exists():
        return None
    base = Path(str(_config_in(folder).get("base_model_name_or_path")))
    if not base.is_dir() or (base / CONFIG).exists():
        raise AdapterError(
            f"{folder}: its adapters belong to the model {base}, which is no folder of a model here. "
            f"Set base_model_name_or_path in {folder / CONFIG} to one"
        )
    return base


def read_adapters(folder: str | Path) -> tuple[LoRA, dict[str, torch.Tensor], str]:
    """(how, weights by our names with those of a head, kind of model) of a folder that PEFT or `write_adapters` wrote.

    Raises AdapterError for a damaged folder and for every feature that is not known here.
    """
    folder = Path(folder)
    config = _config_in(folder)
    try:
        found = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS} is missing or damaged: {error}") from None
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder}: peft_type {config.get('peft_type')!r}; only LORA is known")
    for feature, harmless in REFUSED.items():
        if config.get(feature) not in harmless:
            raise AdapterError(f"{folder}: {feature}={config[feature]!r} is not supported")
    weights = {_our_name(name, folder): weight for name, weight in found.items()}
    targets = {name.split(".")[3] for name in weights if name.startswith("adapters.")}
    try:
        rank = int(config["r"])
        alpha = float(config["lora_alpha"]) * (rank**0.5 if config.get("use_rslora") else 1.0)  # by alpha / √rank then
        lora = LoRA(
            rank=rank,
            alpha=alpha,
            dropout=float(config.get("lora_dropout", 0.0)),
            targets=tuple(name for name in TARGETS if name in targets),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG}: r, lora_alpha or lora_dropout: {error!r}") from None
    kinds = {task: kind for kind, task in TASKS.items()}
    return lora, weights, kinds.get(config.get("task_type"), "CausalLM")


def _config_in(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG} is missing or no JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{folder / CONFIG}: expected a JSON object, got {type(config).__name__}")
    return config


def _peft_name(name: str) -> str:
    _, _, layer, target, part = name.split(".")
    return f"{PREFIX}{place_of(int(layer), target)}.{'lora_A' if part == 'down' else 'lora_B'}.weight"


def _our_name(name: str, folder: Path) -> str:
    parts = name.removeprefix(PREFIX).split(".")
    if parts[0] == "score":
        return f"score.{parts[-1]}"
    known = len(parts) == 7 and parts[:2] == ["model", "layers"] and parts[2].isdigit() and parts[6] == "weight"
    if known and parts[5] in ("lora_A", "lora_B") and place_of(int(parts[2]), parts[4]) == ".".join(parts[:5]):
        return f"adapters.layers.{int(parts[2])}.{parts[4]}.{'down' if parts[5] == 'lora_A' else 'up'}"
    raise AdapterError(
        f"{folder}: the adapter {name} is not on a projection known here ({', '.join(TARGETS)} of a layer)"
    )
