"""Which settings decide what a stage makes, which only watch or place it, and which it does not use.

Every setting is an input unless a rule here says otherwise, with the reason, so a forgotten key can make an artifact
stale without need, but never hide that it is stale.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from typing import Any, NamedTuple

from components.launch.resolvers import is_builtin
from components.rewards.function_file import Place, entries, place_of

INPUT, HARMLESS, UNUSED = "input", "harmless", "unused"  # decides the result; is used but does not; is not used


class Rule(NamedTuple):
    """The kind of the keys that match a pattern, or are below a key that does, and the reason."""

    pattern: str
    kind: str
    reason: str


EVERYWHERE = (
    Rule("task", HARMLESS, "the program, which the stage names"),
    Rule("run", HARMLESS, "the name of a folder"),
    Rule("paths", HARMLESS, "where things are"),
    Rule("reads", HARMLESS, "what is read counts by its content, as reads.<name>"),
    Rule("logger", HARMLESS, "how a run is watched"),
    Rule("from", HARMLESS, "what is read counts by its content, as reads.<name>"),
    Rule("parents", HARMLESS, "how missing artifacts are made"),
    Rule("force", HARMLESS, "whether it is made again, not what is made"),
    Rule("resume", HARMLESS, "a resumed run ends with the same weights; a checkpoint of other settings is an input"),
    Rule("after_sweep", HARMLESS, "what runs after a sweep"),
    Rule("stages", UNUSED, "only stage=all runs other stages"),
    Rule("overrides", UNUSED, "only stage=all passes them to its stages"),
    *(
        Rule(name, UNUSED, "a recipe's own: other settings refer to it")
        for name in ("files", "rollouts", "exact", "verified", "sizes", "depth", "dial", "reward", "value_model")
    ),
)
WATCHES = "it watches training and does not change it"
TRAINING = (  # of stages that train a model
    Rule("tokenizer", UNUSED, "only stage=tokenizer trains a tokenizer; this stage reads one"),
    Rule("world", UNUSED, "only data and rewards of the built-in world refer to it"),
    Rule("tokens_at_once", UNUSED, "training uses data.batch_size instead"),
    Rule("gradient_checkpointing", HARMLESS, "layers are computed twice, with the same result"),
    *(
        Rule(f"callbacks.{name}", HARMLESS, WATCHES)
        for name in ("progress", "throughput", "samples", "dashboard", "diagnosis", "budget", "hparams")
    ),
    Rule("callbacks.graceful_stop", HARMLESS, "a run that it stops resumes with the same result"),
    *(
        Rule(f"callbacks.checkpoints.{name}", HARMLESS, "how often a run is saved, and where")
        for name in ("folder", "every_n_steps", "every_minutes", "keep")
    ),
    Rule("trainer.default_root_dir", HARMLESS, "where things are"),
    Rule("trainer.log_every_n_steps", HARMLESS, "how a run is watched"),
    Rule("trainer.enable_*", HARMLESS, "how a run is watched"),
    Rule("trainer.profiler", HARMLESS, "how a run is watched"),
    Rule("trainer.num_sanity_val_steps", HARMLESS, "a test of validation, before training"),
    Rule("trainer.max_time", HARMLESS, "a run that it stops resumes with the same result"),
    Rule("trainer.strategy", HARMLESS, "how processes share the work"),
    Rule("trainer.dry_run", HARMLESS, "nothing is trained with it"),
    Rule("*.num_workers", HARMLESS, "which processes make batches"),
)
UNTRAINED = "nothing is trained here"
MEASURING = (  # of stages that run models without training one
    Rule("trainer.accelerator", INPUT, "where models run"),
    Rule("trainer.precision", INPUT, "the precision that models run in"),
    *(
        Rule(name, UNUSED, UNTRAINED)
        for name in ("trainer", "callbacks", "lora", "gradient_checkpointing", "compile", "determinism", "gate")
    ),
    Rule("ema_decay", UNUSED, UNTRAINED),
    Rule("tokenizer", UNUSED, "only stage=tokenizer trains a tokenizer; this stage reads one"),
    Rule("model", HARMLESS, "must match the shape of the weights that are read"),
    Rule("*.num_workers", HARMLESS, "which processes make batches"),
)
NO_MODEL = "a tokenizer is trained without a model"
TASKS = {  # by a task's last name, the rules that precede EVERYWHERE; a task of another name has none
    "fit": TRAINING,
    "train_tokenizer": (
        *(Rule(name, UNUSED, NO_MODEL) for name in ("model", "context", "lora", "compile", "gradient_checkpointing")),
        *(Rule(name, UNUSED, NO_MODEL) for name in ("trainer", "callbacks", "gate", "determinism", "tokens_at_once")),
        Rule("ema_decay", UNUSED, NO_MODEL),
        Rule("seed", UNUSED, "tokenizer training is not random"),
        Rule("world", UNUSED, "only data of the built-in world refer to it"),
        Rule("data.batch_size", UNUSED, "texts are read in one pass, not in batches"),
        Rule("data.num_workers", UNUSED, "texts are read in one pass, not in batches"),
    ),
    "evaluate": (
        Rule("stage.techniques", UNUSED, "only reward=function measures techniques"),
        Rule("stage.models", UNUSED, "without reward=function, the report is of all models in reads"),
        *MEASURING,
    ),
    "compare": MEASURING,
    "measure": (
        *(Rule(name, UNUSED, "functions score responses to the prompts alone") for name in ("comparisons", "text")),
        *(Rule(f"stage.{name}", UNUSED, "of a report without functions") for name in ("best_of", "text_batches")),
        *(Rule(f"stage.{name}", UNUSED, "scores are shown as is") for name in ("score_scale", "missing_end_score")),
        *MEASURING,
    ),
    "optimum": (Rule("data", UNUSED, "the prompts are the table world's"), *MEASURING),
    "overoptimization": (Rule("stage.runs", HARMLESS, "its runs count by their content"), *MEASURING),
    "pipeline": (Rule("*", HARMLESS, "its stages use it"),),
    "scaling_law": (
        Rule("stage.runs", HARMLESS, "its runs count by their content"),
        Rule("stage.forecast", HARMLESS, "it counts by its content"),
        *(Rule(name, INPUT, "decides what is made") for name in ("stage", "seed")),
        *EVERYWHERE,
        Rule("*", UNUSED, "a law is fitted to runs that are there"),
    ),
    "summary": (*EVERYWHERE, Rule("*", UNUSED, "a summary reads what the jobs of a sweep have written")),
}
OF_THE_WORLD = {  # settings of the built-in world's records, by data module
    "TextData": ("num_documents",),
    "ChatData": ("demonstrations",),
    "PreferenceData": ("comparisons", "completions", "answers_seed"),
    "UnpairedData": ("comparisons", "completions", "answers_seed"),
}
FUNCTIONS = ("function_reward", "FunctionJudge")  # what takes reward functions as `path` or `functions`
VALIDATION = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")  # how often, and on how much
OF_A_PATH = ("subset", "split", "held_out_split", "files", "columns")
OF_FILES = ("split_at",)


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of dotted keys to plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{path}.{key}" if path else str(key))
    return flat


def rules_of(cfg: dict[str, Any]) -> list[Rule]:
    """The rules of a composed config's stage; the first one that matches a key applies."""
    task = last_name(cfg.get("task", ""))
    if task == "evaluate" and "reward" in function_settings(cfg):
        task = "measure"  # what the stage becomes (components/tasks/reward_functions.py)
    return [
        *_of_small_data(cfg, task),
        *_of_what_is_read(cfg, task),
        *_of_validation(cfg, task),
        *_of_schedule(cfg),
        *_of_data(cfg, ""),
        *TASKS.get(task, ()),
        *EVERYWHERE,
    ]


def rule_of(key: str, rules: list[Rule]) -> Rule:
    """The rule for a full key; an input unless a rule says otherwise."""
    matching = (rule for rule in rules if _within(rule.pattern).match(key))
    return next(matching, Rule(key, INPUT, "decides what is made"))


@functools.cache
def _within(pattern: str) -> re.Pattern[str]:
    """Matches the keys that match a pattern, and those below them."""
    return re.compile(f"{translate(pattern)}|{translate(f'{pattern}.*')}")


def inputs_of(cfg: dict[str, Any], parents: dict[str, dict[str, str]], data: str) -> dict[str, Any]:
    """Everything that decides what a stage produces, flat: its settings, the content of the artifacts that it reads,
    the data's fingerprint. A path to such an artifact is replaced by its content, so is the place of a reward function,
    and the path of a class by its name."""
    rules, contents = rules_of(cfg), {parent["path"]: parent["content"] for parent in parents.values()}
    contents |= {place.written: place.content() for place in reward_functions(cfg)}
    inputs: dict[str, Any] = {}
    for key, value in flatten(cfg).items():
        if rule_of(key, rules).kind == INPUT:
            inputs[key] = last_name(value) if key.endswith("_target_") else contents.get(str(value), value)
    if inputs.get("compile") == "auto":  # off on a processor; where it is on, results differ by rounding alone
        inputs["compile"] = False
    inputs |= {f"reads.{name}": parent["content"] for name, parent in parents.items()}
    return {**inputs, "data (content)": data}


def reward_functions(cfg: Mapping[str, Any]) -> list[Place]:
    """The reward functions that a stage or its judge calls. Raises RewardError for one that is not there."""
    return [
        place_of(entry.written, entry.key)
        for key, node in function_settings(cfg).items()
        for entry in entries(node, key)
    ]


def function_settings(cfg: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The settings of reward functions, by the key that they have on the command line."""
    nodes = {"reward": (cfg.get("stage") or {}).get("reward") or {}, "judge": cfg.get("judge") or {}}
    return {key: node for key, node in nodes.items() if last_name(node.get("_target_", "")) in FUNCTIONS}


def last_name(target: str) -> str:
    """The name of a function or class without its module, which may change."""
    return target.rpartition(".")[2]


def _of_what_is_read(cfg: dict[str, Any], task: str) -> Iterator[Rule]:
    """Rules that depend on what the stage reads: artifacts, the built-in world or other records."""
    reads, data = cfg.get("reads", {}), cfg.get("data")
    for name, path in (cfg.get("artifacts") or {}).items():
        if path in reads.values():
            yield Rule(f"artifacts.{name}", HARMLESS, "what is read counts by its content, as reads.<name>")
        elif task != "pipeline":
            yield Rule(
                f"artifacts.{name}",
                UNUSED,
                f"this stage reads {', '.join(dict.fromkeys(reads.values())) or 'no artifact'}",
            )
    if task == "fit" and "model" in reads:
        yield Rule("model", HARMLESS, "must match the shape of the weights that are read")
    if task == "fit" and cfg.get("examination"):
        for name in ("tokens_at_once", "examination.tokens_at_once"):
            yield Rule(name, HARMLESS, "how much the examination reads at once, not what it finds")
    if task == "fit" and ("reward" in reads or cfg.get("examination")):
        yield Rule("gate", HARMLESS, "whether a policy is trained against a reward model, not how")
    elif task == "fit":
        yield Rule("gate", UNUSED, "no reward model is read or examined here")
    if task in ("evaluate", "compare") and isinstance(data, dict) and not is_builtin(data):
        yield Rule("world", UNUSED, "the prompts are not the built-in world's")
        for name in ("comparisons", "text"):
            if is_builtin(cfg.get(name) or {}):
                yield Rule(name, UNUSED, "those of the built-in world say nothing about models of other data")


def _of_validation(cfg: dict[str, Any], task: str) -> Iterator[Rule]:
    """If neither the exported weights nor the end of training depend on validations, these decide nothing."""
    stopping = (cfg.get("callbacks") or {}).get("early_stopping") or {}
    stops = stopping.get("patience") is not None or small_data_of(cfg).get("patience") is not None
    if task == "fit" and not stops:
        reason = "without patience it stops nothing"
        yield from (
            Rule(f"callbacks.early_stopping.{name}", UNUSED, reason) for name in ("min_delta", "metric", "mode")
        )
        yield Rule("callbacks.early_stopping", HARMLESS, reason)
    if task == "fit" and not stops and cfg.get("export") != "best":
        reason = "validations matter only with export=best or early stopping"
        for name in ("selection", "callbacks.checkpoints.metric", "callbacks.checkpoints.mode"):
            yield Rule(name, UNUSED, reason)
        yield from (Rule(f"trainer.{name}", HARMLESS, reason) for name in VALIDATION)
    if task not in ("fit", "pipeline"):
        yield from (Rule(name, UNUSED, UNTRAINED) for name in ("export", "selection"))


def _of_schedule(cfg: dict[str, Any]) -> Iterator[Rule]:
    """The settings of a learning-rate schedule that its kind does not have."""
    schedule = (cfg.get("stage") or {}).get("schedule") or {}
    kind = schedule.get("kind")
    if last_name(schedule.get("_target_", "")) != "schedule":
        return
    if kind == "constant" or (kind == "wsd" and schedule.get("decay_share") == 0):
        yield Rule("stage.schedule.final_fraction", UNUSED, "this schedule does not decay")
        yield Rule("stage.schedule.decay_shape", UNUSED, "this schedule does not decay")
    if kind != "wsd":
        for name in ("decay_share", "decay_shape"):
            yield Rule(f"stage.schedule.{name}", UNUSED, f"only kind=wsd has it, and this one is {kind}")


def _of_small_data(cfg: dict[str, Any], task: str) -> Iterator[Rule]:
    if not cfg.get("small_data"):
        yield Rule("small_data", HARMLESS, "without it training is as long as its own settings say")
    elif task != "pipeline" and not small_data_of(cfg):
        yield Rule("small_data", UNUSED, "it only adds to a stage's own epochs, on data of your own")


def small_data_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make training longer if there are few records: training by epochs, on all of its records, which
    are not the built-in world's. {} for any other."""
    trainer, data = cfg.get("trainer") or {}, cfg.get("data") or {}
    by_epochs = (trainer.get("max_epochs") or -1) > 0 and (trainer.get("max_steps") or -1) < 0
    whole = not trainer.get("limit_train_batches") and not trainer.get("overfit_batches")
    own = bool(data) and not is_builtin(data)
    trains = last_name(cfg.get("task", "")) == "fit"
    small_data = cfg.get("small_data") or {}
    return small_data if small_data.get("steps") and trains and by_epochs and whole and own else {}


def _of_data(node: dict[str, Any], path: str) -> Iterator[Rule]:
    """Rules for every data module below a node: the settings that are about a source that it does not read."""
    for key, inner in node.items():
        if isinstance(inner, dict):
            yield from _of_data(inner, f"{path}{key}.")
    if not {"path", "mixture", "world"} <= node.keys():
        return
    of_the_world = ("world", *OF_THE_WORLD.get(last_name(node.get("_target_", "")), ()))
    if node["path"]:
        unused, reason = ("mixture", "root", *of_the_world), f"{path}path is what is read"
        if node.get("held_out_split"):
            yield Rule(f"{path}val_fraction", UNUSED, f"{path}held_out_split is what is held out")
    elif node["mixture"]:
        unused, reason = (*OF_A_PATH, *of_the_world), f"{path}mixture is what is read, whose parts have their own"
    else:
        unused, reason = ("mixture", "root", *OF_A_PATH, *OF_FILES), "the built-in world is what is read"
    yield from (Rule(f"{path}{name}", UNUSED, reason) for name in unused)
