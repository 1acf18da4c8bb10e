"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors in their own folder."""

import json
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from components.artifacts.weights import GPT2_LAYER, QKV, from_gpt2
from components.models.lora import TARGETS, LoRA, adapter_name, projection_name
from components.system.disk import read_json, write_text
from components.system.foreign_fields import EMPTY

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before a module's name
GPT2_PLACES = {ours.partition(".")[2]: theirs for ours, theirs in GPT2_LAYER.items() if "_proj" in ours}
GPT2_PLACES |= dict.fromkeys(QKV, "attn.c_attn")
GPT2_NAME = re.compile(rf"{re.escape(PREFIX)}transformer\.h\.(\d+)\.(.+)\.(lora_[AB])\.weight")
TASKS = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}
# Every field of adapter_config.json is in one of these tables or raises an error. First those that are read:
READ = {"peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora"}
READ |= {"alpha_pattern", "modules_to_save", "bias"}
IN_THE_WEIGHTS = {  # the positions and ranks of adapters; names and shapes of the weights show them too
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
}
NO_PART = {  # of the computation: provenance, and details of kinds of adapters that HARMLESS rejects
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
}
HARMLESS: dict[
    str, tuple[Any, ...]
] = {  # values that keep the product alpha / r · B·A; any other value makes another kind of adapter
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "init_lora_weights": (True, False, None, "gaussian", "eva"),  # the others (pissa, olora, …) change the base too
    "layer_replication": (None,),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "ensure_weight_tying": (False, None),
}


class AdapterError(ValueError):
    """A folder's adapters are damaged or of an unsupported kind."""


def write_adapters(
    folder: Path,
    weights: dict[str, torch.Tensor],
    lora: LoRA,
    *,
    kind: str,
    base: str,
    head: tuple[str, ...] = (),
    gpt2: bool = False,
) -> None:
    """Writes the weights named adapters.*, and those that `head` names, in PEFT's format.

    weights: a model's, by name. kind: "CausalLM" or "SequenceClassification"; base: path of the model without adapters.
    gpt2: the modules have GPT-2's names, where q, k and v are one c_attn. Its A stacks theirs vertically and its B is
    block-diagonal in theirs, so its rank is the sum of theirs.
    """
    folder.mkdir(parents=True)
    adapters = {name: weight for name, weight in weights.items() if name.startswith("adapters.")}
    named = (
        _gpt2_named(adapters) if gpt2 else {PREFIX + adapter_name(name): weight for name, weight in adapters.items()}
    )
    named |= {f"{PREFIX}{name}": weights[name] for name in head}
    config = {
        "peft_type": "LORA",
        "task_type": TASKS[kind],
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({GPT2_PLACES[name] for name in lora.targets} if gpt2 else lora.targets),
        "bias": "none",
        "fan_in_fan_out": gpt2,
        "modules_to_save": ["score"] if head else None,
    }
    joined = len(set(lora.targets) & set(QKV))
    if gpt2 and joined:
        config |= {"rank_pattern": {"attn.c_attn": joined * lora.rank}}
        config |= {"alpha_pattern": {"attn.c_attn": joined * lora.alpha}}
    save_file({n: w.contiguous() for n, w in named.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    # in ASCII, since PEFT reads it in the locale's encoding
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def base_of(folder: str | Path) -> Path | None:
    """Path of the base model of a folder that contains only adapters; None for the folder of a whole model.

    Raises AdapterError if the base model is not a local folder.
    """
    folder = Path(folder)
    if (folder / "config.json").exists() or not (folder / CONFIG).exists():
        return None
    base = Path(str(read_json(folder / CONFIG, AdapterError).get("base_model_name_or_path")))
    if not base.is_dir() or (base / CONFIG).exists():
        raise AdapterError(
            f"{folder}: its adapters belong to the model {base}, which is not a local model folder. "
            f"Set base_model_name_or_path in {folder / CONFIG} to one"
        )
    return base


def read_adapters(folder: str | Path) -> tuple[LoRA, dict[str, torch.Tensor], str]:
    """(settings, weights by our names, kind of model) of a folder that PEFT or `write_adapters` wrote.

    The weights are adapters of one rank and scale, and whole weights that replace the base's (modules_to_save, biases).
    Raises AdapterError for a damaged folder, and for unsupported features by name.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG, AdapterError)
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS} is missing or damaged: {error}") from None
    gpt2 = any(GPT2_NAME.fullmatch(name) for name in stored)
    _check_fields(config | ({"fan_in_fan_out": False} if gpt2 else {}), folder)  # PEFT sets it for GPT-2's layers
    stored = _split_qkv(stored) if gpt2 else stored
    weights = {_our_name(name, config, folder): weight for name, weight in stored.items()}
    places = {name.rpartition(".")[0] for name in weights if name.startswith("adapters.")}
    halves = [place for place in places if not {f"{place}.down", f"{place}.up"} <= weights.keys()]
    if halves:
        raise AdapterError(f"{folder / WEIGHTS}: {sorted(halves)[0]} has only one of lora_A and lora_B")
    targets = {place.rpartition(".")[2] for place in places}
    ranks = {place: len(weights[f"{place}.down"]) for place in places}
    try:
        rank, root = max([int(config["r"]), *ranks.values()]), 0.5 if config.get("use_rslora") else 1.0
        lora = LoRA(
            rank=rank,
            alpha=float(config["lora_alpha"]) * (rank / int(config["r"]) ** root),
            dropout=float(config.get("lora_dropout") or 0.0),
            targets=tuple(name for name in TARGETS if name in targets),
        )
        patterns = (config.get("alpha_pattern") or {}).items()
        alphas = [(re.compile(rf"(.*\.)?({key})$"), float(alpha)) for key, alpha in patterns]  # as PEFT reads them
    except (KeyError, TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise AdapterError(f"{folder / CONFIG}: r, lora_alpha, alpha_pattern or lora_dropout: {error!r}") from None
    for place, own in ranks.items():
        _, _, layer, target = place.split(".")
        module = f"transformer.h.{layer}.{GPT2_PLACES[target]}" if gpt2 else projection_name(int(layer), target)
        matching = [alpha for pattern, alpha in alphas if pattern.match(module)]
        scale = (matching[0] if matching else float(config["lora_alpha"])) / own**root
        if own != rank:
            weights[f"{place}.down"] = pad(weights[f"{place}.down"], (0, 0, 0, rank - own))
            weights[f"{place}.up"] = pad(weights[f"{place}.up"], (0, rank - own))
        if scale != lora.scale:
            weights[f"{place}.up"] = weights[f"{place}.up"].float() * (scale / lora.scale)
    kinds = {task: kind for kind, task in TASKS.items()} | {None: "CausalLM"}
    return lora, from_gpt2(weights) if gpt2 else weights, kinds[config.get("task_type")]


def _check_fields(config: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError for an unknown field, or a value that makes another kind of adapter."""
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder}: peft_type {config.get('peft_type')!r}; only LORA is supported")
    if config.get("task_type") not in (None, *TASKS.values()):
        raise AdapterError(f"{folder}: task_type {config['task_type']!r}; supported: {', '.join(TASKS.values())}")
    for name, value in config.items():
        if name in READ | IN_THE_WEIGHTS | NO_PART:
            continue
        if value not in HARMLESS.get(name, EMPTY):
            raise AdapterError(
                f"{folder / CONFIG}: {name}={value!r} is not supported, only plain LoRA is. Merge the adapters into "
                "their base with PEFT's merge_and_unload(), and use the folder that save_pretrained() writes"
            )


def _gpt2_named(adapters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {}
    for name, weight in adapters.items():
        _, _, layer, target, part = name.split(".")
        place = f"{PREFIX}transformer.h.{layer}.{GPT2_PLACES[target]}.{'lora_A' if part == 'down' else 'lora_B'}.weight"
        if target in QKV:
            start = name.removesuffix(f"{target}.{part}")
            parts = [adapters.get(f"{start}{projection}.{part}") for projection in QKV]
            width = weight.shape[0]  # the same for q, k and v: GPT-2 has the same number of heads for each
            whole = [p if p is not None else weight.new_zeros(width, 0) for p in parts]
            weight = torch.block_diag(*whole) if part == "up" else torch.cat([p for p in parts if p is not None])
        named[place] = weight
    return named


def _split_qkv(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's names → the Llama family's: q, k and v each get c_attn's A and their rows of its B."""
    ours = {theirs: target for target, theirs in GPT2_PLACES.items() if target not in QKV}
    split: dict[str, torch.Tensor] = {}
    for name, weight in stored.items():
        matched = GPT2_NAME.fullmatch(name)
        layer, inner, half = matched.groups() if matched else ("", "", "")
        if inner == "attn.c_attn":
            parts = weight.chunk(3) if half == "lora_B" else [weight] * 3
            split |= {
                f"{PREFIX}{projection_name(int(layer), t)}.{half}.weight": p for t, p in zip(QKV, parts, strict=True)
            }
        elif inner in ours:
            split[f"{PREFIX}{projection_name(int(layer), ours[inner])}.{half}.weight"] = weight
        else:
            split[name] = weight
    return split


def _our_name(name: str, config: dict[str, Any], folder: Path) -> str:
    inner = name.removeprefix(PREFIX)
    parts = inner.split(".")
    known = len(parts) == 7 and parts[:2] == ["model", "layers"] and parts[2].isdigit() and parts[6] == "weight"
    if known and parts[5] in ("lora_A", "lora_B") and projection_name(int(parts[2]), parts[4]) == ".".join(parts[:5]):
        return f"adapters.layers.{int(parts[2])}.{parts[4]}.{'down' if parts[5] == 'lora_A' else 'up'}"
    module, _, kind = inner.replace(".base_layer.", ".").rpartition(".")
    # PEFT also saves embeddings whose number has changed
    whole = [*(config.get("modules_to_save") or []), "embed_tokens", "lm_head"]
    parents = accumulate(module.split("."), "{}.{}".format)
    saved = any(parent.endswith(tuple(whole)) for parent in parents)  # "norm" means every module whose name ends in it
    if (saved and kind in ("weight", "bias")) or (kind == "bias" and config.get("bias", "none") != "none"):
        return f"{module}.{kind}"
    raise AdapterError(
        f"{folder}: the adapter {name} is not on a supported projection ({', '.join(TARGETS)} of a layer)"
    )
