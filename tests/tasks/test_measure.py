"""stage=eval with reward functions: any model, on any prompts, without a world or a reward model."""

import json

import pytest

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.launch.schema import check
from components.tasks import dispatch, reward_functions
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import random_model, random_scalar

SOURCE = "def short(texts, limit):\n    return [float(len(text) < n) for text, n in zip(texts, limit)]\n"


@pytest.fixture
def config(tmp_path, small_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(SOURCE)
    rows = [{"prompt": f"question {i}", "limit": 4 * i} for i in range(6)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = small_tokenizer.vocab_size
    for name, model in (("theirs", random_model(size)), ("logs/x/sft/export", random_model(size, seed=1))):
        store.write_artifact(tmp_path / name, card={"stage": "sft"}, tokenizer=small_tokenizer, model=model)
    store.write_artifact("logs/x/rm/export", card={}, tokenizer=small_tokenizer, model=random_scalar(size))
    store.write_artifact("logs/x/tokenizer/export", card={}, tokenizer=small_tokenizer)

    def made(*more: str):
        functions = ["reward=function", "reward.path=r.py:short", "data=prompts", "data.path=asked.jsonl"]
        few = ["data.val_fraction=0", "stage.samples_per_prompt=4", "stage.max_new_tokens=5", "trainer=cpu"]
        return compose_config(["stage=eval", *functions, *few, *more])

    return made


def test_a_model_from_anywhere_is_measured_by_a_function_alone(config, capsys, tmp_path):
    theirs = ["model=hf", "model.path=theirs"]
    cfg = config(*theirs)
    check(cfg)
    dispatch.run(cfg)
    told = capsys.readouterr().out
    assert "pass@k short" in told and "majority@k short" in told and "6 prompts" in told and "model " in told
    results = json.loads((tmp_path / "logs/hf/report/rewards.json").read_text())
    figures = results["models"].pop("model")
    assert not results["models"]
    assert figures["sampled"]["parts"]["short"]["count"] == 24 and figures["greedy"]["parts"]["short"]["count"] == 6
    before = (tmp_path / "logs/hf/report/rewards.json").stat().st_mtime_ns
    dispatch.run(config(*theirs))
    assert (tmp_path / "logs/hf/report/rewards.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out == told


@pytest.mark.slow(minutes=1)
def test_techniques_are_measured_beside_a_single_sample(config, capsys, tmp_path):
    votes, best = "[{name: self_consistency, samples: 3}]", "[{name: best_of_n, samples: 2, score: logs/x/rm/export}]"
    cfg = config("model=hf", "model.path=theirs", f"stage.techniques={{votes: {votes}, best: {best}}}")
    check(cfg)
    dispatch.run(cfg)
    told = capsys.readouterr().out
    assert "tokens read" in told and "votes" in told and "logs/hf/report/techniques.png" in told
    assert (tmp_path / "logs/hf/report/techniques.png").stat().st_size > 1000
    results = json.loads((tmp_path / "logs/hf/report/rewards.json").read_text())
    alone, votes, best = results["models"]["model"]["techniques"].values()
    assert votes["read"] == alone["read"] < best["read"]  # a reward model reads the prompt and each answer
    assert alone["sampled"] <= 5 < votes["sampled"] <= 15
    assert votes["gain"] == pytest.approx(votes["score"] - alone["score"]) and "gain" not in alone


def test_a_technique_that_does_not_exist_is_said_before_a_model_is_read(config):
    for given, message in (
        ("{name: telepathy}", "technique: got the name 'telepathy'"),
        ("{name: best_of_n, score: nowhere}", "score: no reward model at nowhere"),
    ):
        cfg = config("model=hf", "model.path=theirs", f"stage.techniques={{mine: [{given}]}}")
        with pytest.raises(ValueError, match=f"stage.techniques.mine: {message}"):
            dispatch.run(cfg)


def test_of_a_run_every_language_model_is_measured(config, tmp_path):
    cfg = config("run=x")
    reward_functions.settle(cfg)
    assert dict(cfg.reads) == {"tokenizer": "logs/x/sft/export", "sft": "logs/x/sft/export"}
    more = config("run=x", "+reads.theirs=theirs")
    reward_functions.settle(more)
    assert dict(more.reads) == {"tokenizer": "logs/x/sft/export", "sft": "logs/x/sft/export", "theirs": "theirs"}


@pytest.fixture
def trained(config, small_tokenizer, tmp_path):
    """A run whose SFT model GRPO trained, for 90 seconds, to a score that rose from 0.25 to 0.75."""
    folder = tmp_path / "logs/x/grpo"
    model = random_model(small_tokenizer.vocab_size, seed=2)
    card = {"stage": "grpo", "metrics": {"seconds": 90}}
    store.write_artifact(folder / "export", card=card, tokenizer=small_tokenizer, model=model)
    rows = ["step,name,value", "0,GRPO rollout/score,0.25", "2,GRPO rollout/score,0.75", "2,GRPO train/loss,9"]
    (folder / "csv").mkdir()
    (folder / "csv/metrics.csv").write_text("\n".join(rows) + "\n")
    return config


def test_what_a_verifier_taught_is_told_with_its_cost_its_curve_and_the_distance_to_sft(trained, capsys, tmp_path):
    dispatch.run(trained("run=x"))
    results = json.loads((tmp_path / "logs/x/report/rewards.json").read_text())
    assert results["curves"] == {"grpo": {"rollout/score": {"steps": [0, 2], "values": [0.25, 0.75]}}}
    assert results["minutes"] == {"grpo": 1.5}
    behavior = {name: figures["behavior"] for name, figures in results["models"].items()}
    assert behavior["sft"]["kl"] is None and behavior["grpo"]["kl"] > 0.01 and behavior["grpo"]["entropy"] > 0
    assert (tmp_path / "logs/x/report/rewards.png").stat().st_size > 1000
    told = capsys.readouterr().out
    assert "KL to sft" in told and "entropy" in told and "rewards.png" in told


def test_of_a_runs_models_those_that_are_named_are_measured(config):
    cfg = config("run=x", "+reads.theirs=theirs", "stage.models=[theirs]")
    reward_functions.settle(cfg)
    assert dict(cfg.reads) == {"tokenizer": "theirs", "theirs": "theirs"}
    with pytest.raises(ArtifactError, match="stage.models: run x has no language model dpo, rm"):
        reward_functions.settle(config("run=x", "stage.models=[sft,rm,dpo]"))


def test_a_run_without_a_model_names_what_to_do(config):
    with pytest.raises(ArtifactError, match="run y has no model to evaluate. Train one, or name one: model=hf"):
        dispatch.run(config("run=y"))


def test_nothing_held_out_names_what_to_do(config):
    with pytest.raises(
        ValueError, match="no prompt is held out. Add prompts, or measure on all of them: data.val_frac"
    ):
        dispatch.run(config("run=x", "data.val_fraction=0.05"))


def test_without_a_function_the_report_is_what_it_was(config):
    cfg = compose_config(["stage=eval"])
    reward_functions.settle(cfg)
    assert cfg.task == "components.tasks.evaluate.evaluate" and "reward" in cfg.reads and "reward" not in cfg.stage
