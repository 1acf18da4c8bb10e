"""Faults of reward functions: one message before anything slow starts, and the file is part of what a run is."""

import json
import sys

import pytest
from hydra.utils import instantiate

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.launch import composing, settings
from components.launch.schema import check
from components.rewards import scorer_pool
from components.rewards.function_file import RewardError
from components.tasks import common, dispatch, parents, reward_functions
from components.training.setting_changes import differences
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import random_model

GOOD = "def f(completions, answer):\n    return [float(c[0]['content'] == a) for c, a in zip(completions, answer)]\n"
ON_POLICY = pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo", "rejection"])


@pytest.fixture
def config(tmp_path, small_tokenizer):
    """A stage's config whose reward is the function f of a file with this source."""
    model = random_model(small_tokenizer.vocab_size)
    store.write_artifact(tmp_path / "sft", card={"stage": "sft"}, tokenizer=small_tokenizer, model=model)
    rows = [{"prompt": f"question {i}", "answer": str(i)} for i in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(source: str = GOOD, *more: str, stage: str = "grpo"):
        (tmp_path / "r.py").write_text(source)
        own = ["reward=function", f"reward.path={tmp_path}/r.py:f"] if stage != "compare" else []
        calm = [f"callbacks.{name}=null" for name in ("throughput", "progress", "graceful_stop", "samples")]
        few = ["trainer.max_steps=1", "data.prompts_per_rollout=4", "stage.minibatches=1", "trainer=cpu"]
        few = [] if stage == "compare" else [*calm, *few]
        data = ["data=prompts", f"data.path={tmp_path}/asked.jsonl"]
        places = [f"artifacts.sft={tmp_path}/sft", f"paths.logs={tmp_path}/logs", "run=x"]
        return compose_config([f"stage={stage}", *data, *places, *own, *few, *more])

    return made


@ON_POLICY
def test_every_on_policy_stage_takes_a_function_in_place_of_a_reward_model(stage, config):
    cfg = config(stage=stage)
    check(cfg)
    assert dict(cfg.reads) == {"tokenizer": cfg.artifacts.sft, "model": cfg.artifacts.sft}
    assert (cfg.stage.score_scale, cfg.stage.missing_end_score) == (1.0, None)
    if stage == "ppo":
        assert cfg.stage.value.path == cfg.artifacts.sft and cfg.stage.value._target_.endswith("load_value")
    parents.resolve_reads(cfg)
    assert parents.missing(cfg) == []


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["stage=grpo", "reward=function", "data=prompts", "data.path=x"], "reward"),
        (["stage=grpo", "reward=reasoning_gym", "data=prompts", "data.path=x"], "reward"),
        (["stage=compare", "judge=function", "data=prompts", "data.path=x"], "judge"),
    ],
)
def test_further_arguments_are_set_on_the_command_line(overrides, key):
    ready = f"{key}.path=components.rewards.ready:exact_match"
    cfg = compose_config([*overrides, ready, f"{key}.arguments={{column: reference, anywhere: true}}"])
    check(cfg)
    node = cfg.stage.reward if key == "reward" else cfg.judge
    assert node.arguments == {"column": "reference", "anywhere": True}


@ON_POLICY
def test_a_reward_model_keeps_the_settings_that_it_had(stage):
    cfg = compose_config([f"stage={stage}"])
    assert (cfg.stage.score_scale, cfg.stage.missing_end_score) == (None, -3.0)
    assert cfg.reads.reward == cfg.artifacts.rm == cfg.stage.reward.path
    assert stage != "ppo" or dict(cfg.stage.value) == {
        "_target_": "components.artifacts.store.load_scalar",
        "_partial_": True,
        "path": cfg.artifacts.rm,
        "context": None,
    }


def test_parents_are_made_without_a_reward_model_and_without_the_reward_s_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = compose_config(["stage=ppo", "reward=function", "reward.path=r.py:f", "reward.processes=2"])
    steps = {step.entry: step.arguments for step in parents.missing(cfg)}
    assert list(steps) == ["tokenizer", "pretrain", "sft"]
    assert not any("reward" in argument for arguments in steps.values() for argument in arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.path=null", "reward.path and reward.functions: got neither, expected one"),
        ("reward.path=/nowhere/r.py:f", "reward.path: no such file: /nowhere/r.py"),
        ("reward.functions={g: r.py:g}", "got both"),
    ],
)
def test_a_function_that_is_not_there_is_told_before_anything_is_imported_or_made(config, override, message):
    cfg = config(GOOD, override)
    with pytest.raises(RewardError) as refused:
        reward_functions.check(cfg)
    assert message in str(refused.value)
    with pytest.raises(RewardError):
        dispatch.run(cfg)


def test_checking_imports_no_torch(tmp_path):
    """In a process of its own, for which torch cannot be imported."""
    import subprocess

    (tmp_path / "r.py").write_text(GOOD)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['lightning'] = None\n"
        "from components.tasks import reward_functions\n"
        "from components.launch.composing import compose_config\n"
        f"reward_functions.check(compose_config(['stage=grpo', 'reward=function', 'reward.path={tmp_path}/r.py:g']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no function 'g'. It has: f" in done.stderr and "RewardError" in done.stderr


@pytest.mark.parametrize("stage", ["grpo", "compare"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def f(completions, anwser):\n    return [0.0 for _ in completions]\n",
            "needs anwser, which the records do not",
        ),
        ("def f(completions):\n    return [c[0]['content'][0] == 'a' for c in completions]\n", "raised IndexError"),
        ("def f(completions):\n    return 1.0\n", "returned a float, expected a list of 2 numbers"),
        ("import no_such_package_here\ndef f(completions): ...\n", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_is_tried_on_the_first_prompts_before_anything_is_sampled(
    config, stage, source, message, monkeypatch
):
    cfg = config(source, stage=stage)
    if stage == "compare":
        cfg = config(source, "judge=function", f"judge.path={cfg.artifacts.sft[:-3]}r.py:f", stage=stage)
    monkeypatch.setattr(store, "load_causal_lm", None)
    with pytest.raises(RewardError) as refused:
        dispatch.run(cfg)
    assert message in str(refused.value) and ("judge" if stage == "compare" else "reward") in str(refused.value)


def test_the_file_is_part_of_what_a_run_is_and_its_place_is_not(config, tmp_path):
    def inputs():
        plain = composing.plain(config(*sources))
        return {
            key: value for key, value in settings.inputs_of(plain, {}, "").items() if key.startswith("stage.reward")
        }

    sources = (GOOD,)
    before = inputs()
    assert before["stage.reward.path"].endswith(":f") and str(tmp_path) not in str(before)
    sources = (GOOD + "# changed\n",)
    assert inputs() != before
    (tmp_path / "elsewhere.py").write_text(GOOD)
    sources = (GOOD, f"reward.path={tmp_path}/elsewhere.py:f")
    assert inputs() == before


def test_a_changed_function_is_told_and_takes_effect_only_on_request():
    """Else a run that ended in a function's fault could not be resumed once it is fixed."""
    before = {"stage.reward.path": "ab:f", "stage.reward.timeout": 1.0, "reads.reward": None}
    allowed, refused = differences(before, before | {"stage.reward.path": "cd:f", "stage.reward.timeout": 9.0}, 4)
    assert not refused and len(allowed) == 2
    assert allowed[0] == "stage.reward.path: ab:f → cd:f (takes effect: on responses that are sampled from here on)"
    assert differences(before, before | {"reads.reward": "ef"}, 4)[1]


@pytest.mark.filterwarnings("ignore")
def test_a_finished_stage_is_made_again_only_when_its_function_has_changed(config, tmp_path, capsys):
    dispatch.run(config())
    dispatch.run(config())
    assert "is up to date" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"made from other inputs: stage.reward.path\."):
        dispatch.run(config(GOOD + "# changed\n"))


def test_a_function_is_tried_in_one_process_however_many_the_stage_will_use(config, monkeypatch):
    started = []
    usual = scorer_pool.Scorer.__init__
    monkeypatch.setattr(scorer_pool.Scorer, "__init__", lambda *own: (started.append(own), usual(*own))[1])
    cfg = config(GOOD, "reward.processes=3")
    tokenizer = common.common_tokenizer(cfg)
    reward_functions.try_on(cfg, instantiate(cfg.data, tokenizer=tokenizer, context=32, **common.surroundings(cfg)))
    assert len(started) == 1
