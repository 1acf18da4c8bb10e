"""The work of a stage from its config, without torch."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from components.artifacts.metadata import load_config, load_tokenizer
from components.launch import composing, settings
from components.launch.mistyped import CONF
from components.launch.resolvers import is_builtin
from components.launch.signatures import attribute_of
from components.models.config import GPTConfig
from components.planning.data_set_sizes import RECORDS
from components.planning.work import Network, Rollouts, Work
from components.system import hub
from components.system.disk import present
from components.training.compiling import compiles
from components.training.replicas import shards_of

HEADS = {  # by what builds a network
    "new_or_loaded": "lm_head",
    "load_causal_lm": "lm_head",
    "load_scalar_from_causal": "score",
    "load_scalar": "score",
    "load_value": "score",
}
STATES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 4.0}  # bytes for a trained weight; of Muon: for matrices in layers


class Records(NamedTuple):
    """The built-in world's records. sizes: the settings whose product is their number. of_record: tokens of one."""

    sizes: tuple[str, ...]
    of_record: int


TOKENS = {  # by stage; on-policy stages sample theirs
    "pretrain": Records(("num_documents",), 29),
    "sft": Records(("demonstrations",), 28),
    **dict.fromkeys(("rm", "dpo", "simpo", "orpo"), Records(("comparisons",), 45)),
    "kto": Records(("comparisons", "completions"), 28),
}
WORLD_PROMPT, WORLD_RESPONSE = 10, 8  # tokens: a question alone, and what PPO samples to it in the mean
ANSWERS = 2  # of a comparison
KEPT = {"Rejection": 1}  # responses to a prompt that are trained on, by stage; others train on all
BYTES_PER_TOKEN = 4  # of English text, with a vocabulary of tens of thousands


class Machine(NamedTuple):
    """What a config leaves to the machine. per_node: what devices=auto is. mixed: what precision=auto is. kind: cuda or
    cpu."""

    per_node: int
    mixed: bool
    kind: str


def work_of(cfg: DictConfig, machine: Machine, *, devices: int | None = None, tokens: float | None = None) -> Work:
    """The work of the composed stage. devices, tokens: to train on, in place of those that the config says.

    Raises ValueError if the config does not say how much is trained on, or the model is not on this machine.
    """
    plain = composing.plain(cfg)
    entry, trainer = HydraConfig.get().runtime.choices["stage"], plain["trainer"]
    devices = devices or _devices(trainer, machine)
    networks = networks_of(cfg, plain)
    strategy = trainer["strategy"] if isinstance(trainer["strategy"], dict) else {}
    sharded = devices > 1 and settings.last_name(strategy.get("_target_", "")) == "FullySharded"
    replicas = strategy.get("replicas", 1) if sharded else 1
    shards_of(devices, replicas)
    common = {
        "entry": entry,
        "networks": networks,
        "devices": devices,
        "strategy": "one" if devices == 1 else "fsdp" if sharded else "ddp",
        "replicas": replicas,
        "recompute": plain["gradient_checkpointing"],
        "mixed": machine.mixed if trainer["precision"] == "auto" else "16" in str(trainer["precision"]),
        "states": STATES.get(settings.last_name(plain["stage"]["optimizer"]["_target_"]), STATES["adamw"]),
    }
    made = _on_policy(plain, common, tokens) if "sampling" in plain["stage"] else _offline(plain, common, tokens)
    compiled = compiles(plain["compile"], machine.kind, made.steps)
    on_cpu = machine.kind == "cpu"
    return made._replace(compiled=compiled, on_cpu=on_cpu, lean=compiled or on_cpu)


def networks_of(cfg: DictConfig, plain: dict[str, Any]) -> tuple[Network, ...]:
    """The stage's models: those that its settings build, and the reference that it starts from."""
    stage, lora = plain["stage"], plain["lora"] or {}
    frozen = attribute_of(stage["_target_"], "frozen")
    built = {key: value for key, value in stage.items() if isinstance(value, dict) and _builder(value) in HEADS}
    first = next((name for name in built if name not in frozen), None)
    if first is None:
        raise ValueError(f"{stage['_target_']}: its settings build no model to train, so its work is unknown")
    if "reference" in frozen:
        built["reference"] = built[first]
    on_policy = "sampling" in stage
    networks = []
    for name, builder in built.items():
        trained = name not in frozen
        adapted = bool(lora) and trained
        networks.append(
            Network(
                name,
                _shape(cfg, plain, builder.get("path")),
                HEADS[_builder(builder)],
                trained,
                dict.fromkeys(lora["targets"], lora["rank"]) if adapted else {},
                own_trunk=not (lora and name == "reference"),
                reads=not trained and (not on_policy or name == "teacher"),
                base=lora.get("base") if adapted else None,
                bytes_per_weight=2.0 if builder.get("dtype") == "bfloat16" else 4.0,
            )
        )
    return tuple(sorted(networks, key=lambda network: network.name != first))


def _builder(value: dict[str, Any]) -> str:
    return settings.last_name(str(value.get("_target_", "")))


def _shape(cfg: DictConfig, plain: dict[str, Any], path: str | None) -> GPTConfig:
    """The shape of the artifact that is read, if it is there, else of the model group."""
    named = plain["model"].get("path")
    for folder in (path, named):
        if folder and present(folder):
            return load_config(folder, context=plain["context"])[0]
    if named:
        what = "is not on this machine" if hub.MODEL.fullmatch(named) else "does not exist"
        raise ValueError(f"model.path={named} {what}, so its shape is unknown. Give the folder of a model")
    fields = {name: value for name, value in plain["model"].items() if name != "_target_"}
    shape = GPTConfig(**fields | {"context": plain["context"] or 0})
    if shape.vocab_size:
        return shape
    tokenizer = plain["artifacts"].get("tokenizer") or ""
    return shape.with_vocab(
        load_tokenizer(tokenizer).vocab_size if present(tokenizer) else plain["tokenizer"]["vocab_size"]
    )


def model_named(name: str) -> GPTConfig:
    """The shape of a file of conf/model that has a vocabulary."""
    fields = yaml.safe_load((CONF / f"model/{name}.yaml").read_text(encoding="utf-8"))
    return GPTConfig(**{key: value for key, value in fields.items() if key != "_target_"})


def _devices(trainer: dict[str, Any], machine: Machine) -> int:
    each = trainer["devices"]
    count = len(each) if isinstance(each, list) else int(each) if str(each).isdigit() else machine.per_node
    return count * trainer["num_nodes"]


def _offline(plain: dict[str, Any], common: dict[str, Any], tokens: float | None) -> Work:
    """Training on records, or on rows of text."""
    data, trainer, devices = plain["data"], plain["trainer"], common["devices"]
    context = common["networks"][0].config.longest
    rows = settings.last_name(data["_target_"]) == "TextData"
    length, records = (context, None) if rows else _record(plain, common["entry"], context)
    micro, accumulation = data["batch_size"], trainer["accumulate_grad_batches"]
    steps, epochs = trainer["max_steps"], trainer["max_epochs"]
    if records and tokens is None and (few := settings.small_data_of(plain)):
        from components.callbacks.small_data import enough  # imports Lightning; only for few records of one's own

        many = {"world_size": devices, "accumulated": accumulation}
        micro, epochs = enough(records, micro, epochs, steps=few["steps"], batch=few["batch"], **many)
    per_step = micro * devices * accumulation
    if rows and tokens is None and (whole := _text_tokens(plain, epochs)) is not None:
        tokens = min(whole, steps * per_step * length) if steps > 0 else whole
    if tokens is not None:
        steps = math.ceil(tokens / (per_step * length))
    elif epochs and epochs > 0 and records is not None:
        limit = math.ceil(records / per_step) * epochs
        steps = min(steps, limit) if steps > 0 else limit
        tokens = min(records * epochs, steps * per_step) * length
    elif steps > 0:
        tokens = float(steps * per_step * length)
    else:
        raise ValueError(_unknown(common["entry"]))
    unit = f"rows of {length:,} tokens" if rows else f"records of {_about(plain, length)}"
    algebra = f"{_times(micro, unit, devices, accumulation)} = {per_step * length:,} tokens a step, {steps:,} steps"
    return Work(
        **common,
        tokens=float(tokens),
        steps=float(steps),
        at_once=micro * length,
        batch=micro,
        accumulation=accumulation,
        algebra=(algebra,),
    )


def _on_policy(plain: dict[str, Any], common: dict[str, Any], tokens: float | None) -> Work:
    """Training on responses that the policy samples. tokens: of prompts and responses, in every epoch."""
    data, stage, trainer, devices = plain["data"], plain["stage"], plain["trainer"], common["devices"]
    context, world = common["networks"][0].config.longest, is_builtin(data)
    most = stage["sampling"]["max_new_tokens"]
    rollouts = Rollouts(
        number=0.0,
        prompts=data["prompts_per_rollout"],
        samples_per_prompt=stage.get("samples_per_prompt", 1),
        prompt=WORLD_PROMPT if world else data["max_prompt"] or context // 2,
        response=min(WORLD_RESPONSE, most) if world else most,
        epochs=stage["epochs"],
        minibatches=stage["minibatches"],
        width=stage.get("rollout_width"),
        kept=KEPT.get(settings.last_name(stage["_target_"])),
    )
    updates = rollouts.epochs * rollouts.minibatches
    text = data["pretraining"]["batch_size"] * context if data.get("pretraining") else 0
    in_rollout = (rollouts.trained_on + text * updates) * devices
    if tokens is None and trainer["max_steps"] <= 0:
        raise ValueError(_unknown(common["entry"]))
    number = tokens / in_rollout if tokens is not None else trainer["max_steps"] / updates
    each = math.ceil(rollouts.prompts * rollouts.trained_each / rollouts.minibatches)
    samples = rollouts.responses * devices
    asked = f"{_times(rollouts.prompts, 'prompts', devices, 1)} × {rollouts.samples_per_prompt} = {samples:,} samples"
    made = f"{rollouts.minibatches} minibatches of {each * devices:,} × {rollouts.epochs} epochs = {updates:,} steps"
    steps = number * updates
    whole = f"{math.ceil(number):,} rollouts = {math.ceil(steps):,} steps, {math.ceil(number * samples):,} samples"
    lengths = f"{rollouts.prompt} + {rollouts.response} tokens{'' if world else ' at most'}"
    more = f"; {text * devices:,} tokens of text a step" if text else ""
    algebra = f"{asked} a rollout → {made}; {whole} of {lengths}{more}"
    return Work(
        **common,
        tokens=number * in_rollout,
        steps=steps,
        at_once=math.ceil(rollouts.in_minibatch) + text,
        batch=each,
        rollouts=rollouts._replace(number=number),
        algebra=(algebra,),
    )


def _record(plain: dict[str, Any], entry: str, context: int) -> tuple[int, int | None]:
    """Tokens of a record, the most if the data do not say, and how many records there are; None if unknown."""
    data = plain["data"]
    if is_builtin(data) and entry in TOKENS:
        sizes, each = TOKENS[entry]
        return each, math.prod(data[size] for size in sizes)
    longest = context * (ANSWERS if settings.last_name(data["_target_"]) == "PreferenceData" else 1)
    path = data.get("path") or ""
    if path.endswith(".jsonl") and Path(path).is_file():
        content = Path(path).read_bytes()
        lines = max(content.count(b"\n"), 1)
        return min(longest, math.ceil(len(content) / lines / BYTES_PER_TOKEN)), lines
    return longest, RECORDS.get(path.partition("@")[0])


def _text_tokens(plain: dict[str, Any], epochs: int | None) -> float | None:
    """Tokens of all training documents, read `epochs` times; None if unknown."""
    data = plain["data"]
    if not epochs or epochs < 0:
        return None
    if is_builtin(data):
        sizes, each = TOKENS["pretrain"]
        return epochs * each * math.prod(data[size] for size in sizes) * (1 - data["val_fraction"])
    file = Path(data.get("path") or "")
    return epochs * file.stat().st_size / BYTES_PER_TOKEN if file.suffix == ".txt" and file.is_file() else None


def _about(plain: dict[str, Any], length: int) -> str:
    return f"{length:,} tokens{'' if is_builtin(plain['data']) else ' at most'}"


def _times(micro: int, unit: str, devices: int, accumulation: int) -> str:
    more = [f"{devices:,} devices"] * (devices > 1) + [f"{accumulation} micro-batches"] * (accumulation > 1)
    return " × ".join([f"{micro:,} {unit}", *more])


def _unknown(entry: str) -> str:
    return (
        f"stage={entry}: its settings do not say how much it trains on: the number of records is known when they are "
        f"read. Add tokens.{entry}=<number>, or trainer.max_steps=<number>"
    )
