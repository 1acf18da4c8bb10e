"""Every choice of conf/ composes with the others and names only what exists."""

import contextlib
import re
import warnings
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from components.launch import schema
from components.launch.schema import check
from tests.kit.composed_configs import compose_config

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(CONF.glob("**/*.yaml"))


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("stage", choices("stage"))
def test_every_stage_composes_and_fits_the_signatures(stage):
    check(compose_config([f"stage={stage}"]))


@pytest.mark.parametrize(
    ("stage", "model"),
    [
        *(("rm", model) for model in choices("model")),
        ("pretrain", "small"),
        ("sft", "small"),
    ],  # small has sizes of its own
)
def test_every_model_composes_and_fits_the_signatures(stage, model):
    theirs = ["model.path=some/folder"] if model == "hf" else []
    cfg = compose_config([f"stage={stage}", f"model={model}", *theirs])
    check(cfg)
    assert cfg.run == {"depth": "depth_6"}.get(model, model)  # one for each depth


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in ("data", "logger") for c in choices(g)])
def test_every_data_set_and_logger_composes_and_fits_the_signatures(group, choice, monkeypatch):
    monkeypatch.setattr(schema, "NEEDS", {})  # whether or not optional packages are here
    needed = ["data.tasks=[chain_sum]"] if choice.startswith("reasoning_gym") else []
    check(compose_config(["stage=pretrain", f"{group}={choice}", *needed]))


def test_beside_the_callbacks_and_the_tokenizer_that_every_stage_composes_with_there_is_one_with_tools_that_fits():
    assert choices("callbacks") == ["default"] and choices("tokenizer") == ["default", "tools"]
    check(compose_config(["stage=tokenizer", "tokenizer=tools"]))


@pytest.mark.parametrize(
    ("stage", "debug"),
    [
        pytest.param(s, d, marks=() if d == "smoke" or s == "ppo" else pytest.mark.slow)
        for s in choices("stage")
        for d in choices("debug")
        if d != "profiler" or s == "pretrain"
    ],
)
def test_debugging_never_writes_where_the_real_run_does(stage, debug):
    """profiler names its folder as overfit does, and sets nothing but the trainer."""
    real, debugged = compose_config([f"stage={stage}"]), compose_config([f"stage={stage}", f"debug={debug}"])
    check(debugged)
    assert Path(debugged.paths.export) != Path(real.paths.export)


def test_a_stage_sets_its_data_and_the_command_line_can_replace_it():
    assert compose_config(["stage=rm"]).data == compose_config(["stage=rm", "data=world_preference"]).data
    assert compose_config(["stage=rm", "data=world_text"]).data == compose_config(["stage=pretrain"]).data


def test_a_stage_writes_the_folder_that_the_table_of_artifacts_names():
    for name in compose_config(["stage=all"]).artifacts:
        cfg = compose_config([f"stage={name}", "run=mine"])
        assert cfg.artifacts[name] == cfg.paths.export == f"logs/mine/{name}/export"


def test_the_seed_of_training_leaves_the_world_as_it_is():
    assert compose_config(["stage=rm", "seed=7"]).world.seed == 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
@pytest.mark.parametrize("trainer", choices("trainer"))
def test_a_trainer_is_built_with_every_precision_or_says_why_not(trainer, precision, tmp_path):
    whole = compose_config(["stage=rm", f"trainer={trainer}", f"trainer.precision={precision}"])
    check(whole)
    cfg = whole.trainer
    refusal = None
    if trainer == "gpu" and not torch.cuda.is_available():
        refusal = "No supported gpu backend found"
    elif trainer == "fsdp" and precision == "16-mixed":
        refusal = "Choose a different precision among: 32-true, bf16-mixed"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU.*", category=UserWarning)
        warnings.filterwarnings("ignore", message="GPU available but not used", category=UserWarning)
        with pytest.raises(InstantiationException, match=refusal) if refusal else contextlib.nullcontext():
            arguments = {key: value for key, value in cfg.items() if key != "dry_run"}  # which is no argument of it
            built = instantiate(arguments, logger=False, default_root_dir=str(tmp_path))
            assert (built.max_epochs, built.gradient_clip_val) == (cfg.max_epochs, cfg.gradient_clip_val)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CONF)))
def test_a_config_file_starts_with_what_it_is_for(file):
    lines = file.read_text().splitlines()
    headers = [number for number, line in enumerate(lines) if re.match(r"#\s*@package", line)]
    assert headers in ([], [0]), "Hydra reads `# @package` on the first line only"
    first = lines[len(headers)]
    assert first.startswith("# ") and len(first) > 20


def test_determinism_is_one_switch_off_by_default():
    assert compose_config(["stage=sft"]).trainer.deterministic is False
    assert compose_config(["stage=sft", "determinism=true"]).trainer.deterministic is True
