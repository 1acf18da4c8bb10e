"""Every key of every stage's config: an input of what the stage makes, or in the list of those that are not, with the
reason."""

import ast
import functools
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from components.artifacts import lineage
from components.launch import settings
from components.launch.settings import HARMLESS, INPUT, UNUSED
from tests.kit.composed_configs import compose_config

ROOT = Path(__file__).resolve().parents[2]
STAGES = sorted(file.stem for file in (ROOT / "conf/stage").glob("*.yaml"))
TRAINED = ("pretrain", "sft", "rm", "ppo", "dpo", "kto", "simpo", "orpo", "grpo", "rloo", "rejection", "distill")
MEASURED = ("eval", "compare", "optimum", "overoptimization")
WATCHERS = ("progress", "throughput", "samples", "dashboard", "diagnosis", "budget", "hparams", "graceful_stop")
NOT_OF_TRAINING = {  # the whole list, by hand
    "task run reads from parents logger force resume after_sweep": HARMLESS,
    "paths.logs paths.cache paths.folder paths.stage paths.export": HARMLESS,
    "gradient_checkpointing data.num_workers": HARMLESS,
    " ".join(f"callbacks.{name}" for name in WATCHERS): HARMLESS,
    "callbacks.checkpoints.folder callbacks.checkpoints.every_n_steps callbacks.checkpoints.keep": HARMLESS,
    "callbacks.checkpoints.every_minutes": HARMLESS,
    "trainer.default_root_dir trainer.log_every_n_steps trainer.profiler trainer.max_time trainer.strategy": HARMLESS,
    "trainer.dry_run": HARMLESS,
    "trainer.enable_progress_bar trainer.enable_model_summary trainer.num_sanity_val_steps": HARMLESS,
    "callbacks.early_stopping._target_ callbacks.early_stopping.patience": HARMLESS,
    "callbacks.early_stopping.min_delta callbacks.early_stopping.metric callbacks.early_stopping.mode": UNUSED,
    "stages overrides tokenizer world tokens_at_once small_data sizes": UNUSED,
    "stage.schedule.decay_share stage.schedule.decay_shape": UNUSED,  # of another kind of schedule
}
NOT_OF_MEASURING = {
    "task run reads from parents logger force resume after_sweep model": HARMLESS,
    "paths.logs paths.cache paths.folder paths.stage paths.export": HARMLESS,
    "export selection ema_decay": UNUSED,
    "stages overrides tokenizer lora gradient_checkpointing compile determinism gate callbacks": UNUSED,
    "small_data sizes": UNUSED,
}
OF_VALIDATION = {  # where the weights of the last step are exported
    "selection callbacks.checkpoints.metric callbacks.checkpoints.mode": UNUSED,
    "trainer.val_check_interval trainer.check_val_every_n_epoch trainer.limit_val_batches": HARMLESS,
}
WORLD_DATA = {
    "mixture root subset split held_out_split files columns split_at": UNUSED
}  # of a data module that reads the world


@functools.cache
def composed(*overrides: str) -> dict:
    return OmegaConf.to_container(compose_config(overrides))


def kinds(*overrides: str) -> dict[str, str]:
    """The kind of every key of a config."""
    cfg = composed(*overrides)
    rules = settings.rules_of(cfg)
    found = {key: settings.rule_of(key, rules) for key in settings.flatten(cfg)}
    assert all(len(rule.reason) > 10 for rule in found.values())
    return {key: rule.kind for key, rule in found.items()}


def expected(listed: dict[str, str], keys) -> dict[str, str]:
    """The kinds in a list made by hand; a name stands for all keys below it, and what is not listed is an input."""
    by_name = {name: kind for names, kind in listed.items() for name in names.split()}
    within = {key: [name for name in by_name if key == name or key.startswith(f"{name}.")] for key in keys}
    return {key: by_name[names[0]] if names else INPUT for key, names in within.items()}


def of_data(*sections: str) -> dict[str, str]:
    return {" ".join(f"{part}.{n}" for part in sections for n in names.split()): k for names, k in WORLD_DATA.items()}


def of_artifacts(cfg: dict) -> dict[str, str]:
    read = {name for name, path in cfg["artifacts"].items() if path in cfg["reads"].values()}
    return {
        " ".join(f"artifacts.{name}" for name in read): HARMLESS,
        " ".join(f"artifacts.{name}" for name in cfg["artifacts"].keys() - read): UNUSED,
    }


@pytest.mark.parametrize("stage", TRAINED)
def test_every_setting_of_training_is_an_input_or_listed(stage):
    cfg, found = composed(f"stage={stage}"), kinds(f"stage={stage}")
    listed = NOT_OF_TRAINING | of_artifacts(cfg) | of_data("data")
    listed |= OF_VALIDATION if cfg["export"] == "last" else {}
    if stage == "rm":  # whose examination reads with it
        listed = {"tokens_at_once examination.tokens_at_once": HARMLESS} | {
            names.replace(" tokens_at_once", ""): kind for names, kind in listed.items()
        }
    listed["gate"] = HARMLESS if stage in ("rm", "ppo", "grpo", "rloo", "rejection") else UNUSED
    if stage != "pretrain":
        listed["model"] = HARMLESS
    listed |= {"value_model": UNUSED} if "value_model" in cfg else {}
    assert found == expected(listed, found)


@pytest.mark.parametrize("stage", MEASURED)
def test_every_setting_of_measuring_is_an_input_or_listed(stage):
    cfg, found = composed(f"stage={stage}"), kinds(f"stage={stage}")
    listed = NOT_OF_MEASURING | of_artifacts(cfg)
    listed[" ".join(f"trainer.{name}" for name in cfg["trainer"] if name not in ("accelerator", "precision"))] = UNUSED
    sections = [name for name in ("data", "comparisons", "text") if name in cfg]
    listed |= {"data": UNUSED} if stage == "optimum" else of_data(*sections)
    listed |= {" ".join(f"{name}.num_workers" for name in sections if stage != "optimum"): HARMLESS}
    listed |= {"stage.runs": HARMLESS} if stage == "overoptimization" else {}
    listed |= {"stage.techniques stage.models": UNUSED} if stage == "eval" else {}
    listed |= {"value_model": UNUSED} if "value_model" in cfg else {}
    assert found == expected(listed, found)


def test_an_evaluation_by_functions_uses_techniques_and_no_comparisons():
    found = kinds("stage=eval", "reward=function", "reward.path=r.py:f")
    assert found["stage.techniques"] == INPUT and found["comparisons.batch_size"] == UNUSED


@pytest.mark.parametrize("stage", ["sft", "rm", "dpo", "kto"])
def test_a_few_records_of_the_users_own_are_trained_on_for_longer(stage):
    own = {key: kind for key, kind in kinds(f"stage={stage}", "data.path=mine.jsonl").items() if "small_data" in key}
    assert own == dict.fromkeys(("small_data.steps", "small_data.batch", "small_data.patience"), INPUT)


@pytest.mark.parametrize(
    "overrides",
    [
        ["stage=sft"],
        ["stage=pretrain", "data.path=mine.txt"],
        ["stage=ppo", "data.path=mine.jsonl"],
        ["stage=sft", "data.path=mine.jsonl", "trainer.max_steps=20"],
        ["stage=sft", "data.path=mine.jsonl", "trainer.limit_train_batches=2"],
        ["stage=sft", "data.path=mine.jsonl", "small_data.steps=null"],
    ],
)
def test_training_on_the_world_or_not_by_epochs_is_as_long_as_it_says(overrides):
    assert not settings.small_data_of(composed(*overrides))
    assert not [key for key in settings.inputs_of(composed(*overrides), {}, "") if "small_data" in key]


def test_sizes_of_the_world_do_not_apply_to_other_data():
    own = [
        composed(f"stage={stage}", "model=small", "data.path=mine")["trainer"] for stage in ("pretrain", "sft", "rm")
    ]
    of_the_world = [composed(f"stage={stage}", "model=small")["trainer"] for stage in ("pretrain", "sft", "rm")]
    assert [(one["max_steps"], one["max_epochs"]) for one in own] == [(700, None), (-1, 3), (-1, 1)]
    assert [(one["max_steps"], one["max_epochs"]) for one in of_the_world] == [(450, None), (-1, 1), (-1, 1)]


def test_a_tokenizer_is_made_from_its_settings_and_its_data():
    found = kinds("stage=tokenizer")
    inputs = {key for key, kind in found.items() if kind == INPUT}
    assert {key.split(".")[0] for key in inputs} == {"tokenizer", "data"}
    assert "data.num_documents" in inputs and "data.batch_size" not in inputs


@pytest.mark.parametrize("stage", [*TRAINED, *MEASURED])
def test_the_context_is_an_input_of_every_stage_that_runs_a_model(stage):
    assert kinds(f"stage={stage}")["context"] == INPUT


def test_a_setting_without_a_rule_is_an_input():
    cfg = composed("stage=sft")
    cfg = cfg | {"invented": 1, "callbacks": cfg["callbacks"] | {"average": {"decay": 0.9}}}
    inputs = settings.inputs_of(cfg, {}, "")
    assert inputs["invented"] == 1 and inputs["callbacks.average.decay"] == 0.9
    assert inputs["callbacks.spike_guard.action"] == "off" and inputs["compile"] is False


def test_what_is_read_counts_by_its_content_wherever_its_path_is_set():
    cfg = {
        "reads": {"model": "logs/sft", "reward": "logs/rm"},
        "stage": {
            "_target_": "components.stages.ppo.PPO",
            "policy": {"path": "logs/sft"},
            "value": {"path": "logs/rm"},
        },
    }
    parents = {"model": {"path": "logs/sft", "content": "c0ffee"}, "reward": {"path": "logs/rm", "content": "beef"}}
    found = settings.inputs_of(cfg, parents, "d")
    assert found == {
        "stage._target_": "PPO",
        "stage.policy.path": "c0ffee",
        "stage.value.path": "beef",
        "reads.model": "c0ffee",
        "reads.reward": "beef",
        "data (content)": "d",
    }


def in_other_modules(value):
    """A config after all modules of components/ have moved."""
    if isinstance(value, dict):
        return {key: in_other_modules(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [in_other_modules(inner) for inner in value]
    ours = isinstance(value, str) and value.startswith("components.")
    return f"components.moved.{value.rpartition('.')[2]}" if ours else value


@pytest.mark.parametrize("stage", ["tokenizer", "rm", "ppo", "eval"])
def test_an_artifact_made_before_a_module_moves_is_up_to_date_afterwards(stage, tmp_path):
    before = composed(f"stage={stage}")
    after = in_other_modules(before)
    assert after["task"] == f"components.moved.{settings.last_name(before['task'])}"
    inputs = settings.inputs_of(before, {}, "d")
    (tmp_path / "card.json").write_text(json.dumps({"inputs": inputs}))
    assert lineage.is_up_to_date(tmp_path, settings.inputs_of(after, {}, "d"), force=False)
    assert not any("components." in str(value) for value in inputs.values())


@pytest.mark.parametrize(
    ("source", "unused", "used"),
    [
        ({"path": "a.jsonl"}, "world.num_names mixture root demonstrations", "path split files val_fraction"),
        ({"path": "a.jsonl", "held_out_split": "test"}, "val_fraction", "path held_out_split"),
        ({"mixture": [{"path": "a", "weight": 1}]}, "split world.num_names demonstrations", "root mixture.0.path"),
        ({}, "split root files", "demonstrations world.num_names val_fraction"),
    ],
)
def test_settings_of_a_source_that_is_not_read_are_not_used(source, unused, used):
    cfg = composed("stage=sft")
    rules = settings.rules_of(cfg | {"data": cfg["data"] | source})
    assert {settings.rule_of(f"data.{key}", rules).kind for key in unused.split()} == {UNUSED}
    assert {settings.rule_of(f"data.{key}", rules).kind for key in used.split()} == {INPUT}


def test_the_worlds_comparisons_and_text_are_not_used_for_models_of_other_data():
    cfg = composed("stage=eval")
    rules = settings.rules_of(cfg | {"data": cfg["data"] | {"path": "a.jsonl"}})
    for key in ("world.seed", "comparisons.comparisons", "text.batch_size"):
        assert settings.rule_of(key, rules).kind == UNUSED


def test_when_a_run_validates_is_an_input_if_something_depends_on_it():
    comparing = ["selection.metric", "callbacks.checkpoints.mode"]
    names = [*comparing, *(f"trainer.{name}" for name in settings.VALIDATION)]

    def kinds_with(export: str, patience: int | None) -> dict[str, str]:
        cfg = composed("stage=sft")
        stopping = cfg["callbacks"]["early_stopping"] | {"patience": patience}
        cfg = cfg | {"export": export, "callbacks": cfg["callbacks"] | {"early_stopping": stopping}}
        rules = settings.rules_of(cfg)
        return {name: settings.rule_of(name, rules).kind for name in [*names, "callbacks.early_stopping.min_delta"]}

    gain = {"callbacks.early_stopping.min_delta": UNUSED}
    assert kinds_with("last", None) == dict.fromkeys(names, HARMLESS) | dict.fromkeys(comparing, UNUSED) | gain
    assert kinds_with("best", None) == dict.fromkeys(names, INPUT) | gain
    assert set(kinds_with("last", 3).values()) == {INPUT}


def keys_read(task: str) -> set[str]:
    """cfg.a.b, cfg["a"] and cfg.get("a") in the source of a task and of what it calls in the tasks' own files."""
    files = {file.stem: ast.parse(file.read_text()) for file in (ROOT / "components/tasks").glob("*.py")}
    functions = {
        (name, node.name): node
        for name, tree in files.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    *_, module, name = task.split(".")
    found, todo, done = set(), [(module, name)], set()
    while todo:
        place = todo.pop()
        if place in done or place not in functions:
            continue
        done.add(place)
        for node in ast.walk(functions[place]):
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Subscript | ast.Call) else ""
            for prefix, end in (("cfg.get('", "'"), ("cfg['", "'"), ("cfg.", None)):
                if text.startswith(prefix):
                    key = text.removeprefix(prefix).split(end)[0] if end else text.removeprefix(prefix)
                    found |= {key} if key.replace(".", "").isidentifier() else set()
                    break
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                todo.append((place[0], node.func.id))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                todo.append((ast.unparse(node.func.value), node.func.attr))
    return found


@pytest.mark.parametrize("stage", [one for one in STAGES if one not in ("all", "summary")])
def test_no_setting_that_a_tasks_source_reads_is_called_unused(stage):
    cfg, found = composed(f"stage={stage}"), kinds(f"stage={stage}")
    read = keys_read(cfg["task"])
    assert {"paths.export"} <= read or {"paths.stage"} <= read
    for key in read - {"seed", "model"}:  # a tokenizer's card notes the one, and one that the other brings is refused
        below = [kind for name, kind in found.items() if name == key or name.startswith(f"{key}.")]
        assert not below or set(below) != {UNUSED}, key


def test_every_task_has_its_list():
    tasks = {settings.last_name(composed(f"stage={stage}")["task"]) for stage in STAGES}
    assert tasks | {"measure"} == set(settings.TASKS)  # what stage=eval does with reward functions
