"""Every task, shrunk to seconds and run in this process: what it writes, and what it rejects."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from components.artifacts import store
from components.artifacts.peft import read_adapters
from components.artifacts.store import ArtifactError
from components.launch import spawning
from components.tasks import command_line, common, dispatch, evaluate, fit, placement
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import TEXTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode at the start of training:UserWarning"),  # frozen ones
    pytest.mark.filterwarnings("ignore:no hyper-parameters written:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:The number of training batches .* is smaller than the logging interval:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:Tight layout not applied:UserWarning"),
]
SMALL = {
    "tokenizer": ["data.num_documents=400", "tokenizer.vocab_size=500"],
    "pretrain": ["data.num_documents=400", "data.batch_size=4", "trainer.max_steps=3"],
    "sft": ["data.demonstrations=60", "data.batch_size=8", "trainer.max_epochs=1"],
    "rm": ["data.comparisons=60", "data.batch_size=8", "trainer.max_epochs=1", "data.num_demonstrations=16"],
    "ppo": [
        "data.prompts_per_rollout=8",
        "trainer.max_steps=8",
        "stage.epochs=2",
        "stage.minibatches=2",
        "gate.enabled=false",
    ],
    "dpo": ["data.comparisons=60", "data.batch_size=8", "trainer.max_epochs=1"],
    **dict.fromkeys(
        ("grpo", "rloo", "rejection"),
        [
            "data.prompts_per_rollout=4",
            "stage.samples_per_prompt=2",
            "trainer.max_steps=8",
            "stage.epochs=2",
            "stage.minibatches=2",
            "gate.enabled=false",
        ],
    ),
    "eval": [
        "stage.samples_per_prompt=2",
        "comparisons.comparisons=20",
        "stage.max_prompts=5",
        "stage.best_of=16",
        "text.num_documents=400",
    ],
}
PATIENCE = ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1000"]  # the second is no better
TINY = [
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "callbacks.throughput=null",
    "callbacks.progress=null",
    "callbacks.graceful_stop=null",
]


def config(stage: str, logs: Path, *more: str):
    return compose_config([f"stage={stage}", f"paths.logs={logs}", *TINY, *SMALL.get(stage, []), *more])


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    for stage in SMALL:
        dispatch.run(config(stage, folder))
    return folder


@pytest.mark.parametrize("stage", [stage for stage in SMALL if stage != "eval"])
def test_a_stage_writes_an_artifact_whose_card_states_its_origin(logs, stage):
    card = store.read_card(logs / f"tiny/{stage}/export")
    assert card["stage"] == stage and card["run"] == "tiny" and card["seed"] == 0
    assert card["metrics"]["seconds"] > 0
    assert card["tokenizer"] == store.load_tokenizer(logs / "tiny/tokenizer/export").fingerprint
    for parent in card["parents"].values():
        assert parent["content"] == store.read_card(parent["path"])["content"]


def test_the_pipeline_passes_on_models_of_the_right_kind(logs):
    for stage in ("pretrain", "sft", "ppo", "dpo", "grpo", "rloo", "rejection"):
        assert store.load_causal_lm(logs / f"tiny/{stage}/export").config.hidden_size == 32
    assert store.load_scalar(logs / "tiny/rm/export").config.hidden_size == 32


def test_a_reward_model_is_examined_before_it_is_written(logs):
    found = store.read_card(logs / "tiny/rm/export")["examination"]
    assert found["ranking"]["pairs"] > 10 and 0 <= found["figures"]["accuracy_low"] <= 1
    assert {"relation", "difference", "length"} == found["categories"].keys() and len(found["probes"]) == 9
    assert (logs / "tiny/rm/examination.png").stat().st_size > 10_000
    assert "examination" not in store.read_card(logs / "tiny/sft/export")


def test_a_reward_model_of_adapters_is_read_through_the_policys_trunk_and_only_adapters_are_trained(logs, monkeypatch):
    dispatch.run(config("rm", logs, "lora=default", "paths.folder=rm/lora"))
    reward = logs / "tiny/rm/lora/export"
    assert store.adapts(reward, store.read_card(logs / "tiny/sft/export")["content"])
    load, trunks = store.load_scalar, []
    monkeypatch.setattr(
        store, "load_scalar", lambda *a, trunk=None, **k: trunks.append(trunk) or load(*a, trunk=trunk, **k)
    )
    dispatch.run(config("ppo", logs, "lora=default", "paths.folder=ppo/lora", f"artifacts.rm={reward}"))
    assert len(trunks) == 1 and trunks[0] is not None  # the value model is a fork of the reward model
    lora, weights, kind = read_adapters(logs / "tiny/ppo/lora/export/adapter")
    assert kind == "CausalLM" and lora.rank == 16 and any(w.any() for n, w in weights.items() if n.endswith(".up"))
    kept = torch.load(next((logs / "tiny/ppo/lora/checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    assert all(".adapters." in name or name.startswith("value.score") for name in kept if "." in name)


def test_no_policy_is_trained_against_a_reward_model_that_fails_it(logs, tmp_path):
    poor = tmp_path / "poor"
    shutil.copytree(logs / "tiny/rm/export", poor)
    card = json.loads((poor / "card.json").read_text())
    ranking = {"pairs": 1415, "prompts": 12, "accuracy": 0.44, "accuracy_ci": [0.41, 0.47]}
    card["examination"] |= {"figures": {"accuracy_low": 0.41}, "ranking": ranking}
    (poor / "card.json").write_text(json.dumps(card))
    with pytest.raises(ArtifactError, match=r"(?s)poor failed its examination .*accuracy, low end: got 41%"):
        dispatch.run(config("ppo", logs, "gate.enabled=true", "paths.folder=ppo/again", f"artifacts.rm={poor}"))
    assert not (logs / "tiny/ppo/again/checkpoints").exists()


def test_the_model_takes_its_vocabulary_from_the_tokenizer(logs):
    tokenizer = store.load_tokenizer(logs / "tiny/tokenizer/export")
    assert store.load_config(logs / "tiny/pretrain/export")[0].vocab_size == tokenizer.vocab_size


def test_the_report_has_every_promised_metric(logs):
    report = json.loads((logs / "tiny/report/report.json").read_text())
    assert list(report["models"]) == ["base", "sft", "ppo", "best-of-16"]
    for figures in report["models"].values():
        assert {"gold", "gold_ci", "correct", "polite", "entropy_per_token", "kl", "win_rate"} <= figures.keys()
    assert all(report["models"][name]["bits_per_byte"] > 0 for name in ("base", "sft", "ppo"))
    assert report["best_of_n"]["n"] == [1, 2, 4, 8, 16] and report["majority"]["k"] == [1, 3, 5, 9]
    assert {"reward_model", "reward_model_train", "chance"} <= report["choice"].keys()
    assert set(report["budget"]) == {"base", "sft", "reward", "ppo"} and report["budget"]["ppo"]["minutes"] > 0
    assert {"accuracy", "accuracy_heldout", "ece", "accuracy_ci"} <= report["reward_model"].keys()
    assert set(report["minutes"]) == {"tokenizer", "pretrain", "sft", "rm", "ppo", "eval"}
    text = (logs / "tiny/report/report.md").read_text()
    for picture in ("quality.png", "best_of_n.png", "majority.png", "choice.png", "curves.png", "reward_model.png"):
        assert picture in text and (logs / "tiny/report" / picture).stat().st_size > 1000


@pytest.mark.parametrize("stage", SMALL)
def test_a_second_run_does_no_work(logs, stage, capsys, monkeypatch):
    monkeypatch.setattr(fit, "_trainer", None)
    monkeypatch.setattr(evaluate, "evaluate_pipeline", None)
    monkeypatch.setattr(store, "write_artifact", None)
    dispatch.run(config(stage, logs))
    told = capsys.readouterr().out
    assert "up to date" in told or "gold score" in told


def test_a_report_without_its_page_gets_it_without_being_measured_again(logs, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_pipeline", None)
    page = logs / "tiny/report/report.html"
    page.unlink()
    dispatch.run(config("eval", logs))
    assert "Report card: tiny" in page.read_text()


def test_two_artifacts_of_one_stage_have_different_names_in_the_report():
    parents = {name: {"stage": stage} for name, stage in (("base", "pretrain"), ("ppo", "ppo"), ("low", "ppo"))}
    assert evaluate.stage_names(parents) == {"base": "pretrain", "ppo": "ppo", "low": "low"}


def test_a_budget_is_what_the_card_says_and_unknown_if_it_does_not():
    card = {"commit": "abc", "metrics": {"seconds": 90, "budget/generated_tokens": 7.0, "budget/flops": 2e9}}
    assert evaluate.budget_of(card) == {"minutes": 1.5, "generated_tokens": 7.0, "flops": 2e9, "commit": "abc"}
    assert evaluate.budget_of({}) == dict.fromkeys(("minutes", "generated_tokens", "flops", "commit"))


def test_a_stage_with_other_settings_replaces_only_with_force(logs):
    with pytest.raises(ArtifactError, match="seed: 0 → 5"):
        dispatch.run(config("sft", logs, "seed=5"))


def test_a_missing_predecessor_stops_before_any_work(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"(?s)no rm artifact at .*stage=all .*stages=\[tokenizer,pretrain,sft,rm\]"
    ):
        dispatch.run(config("ppo", tmp_path, "parents=never"))
    assert not (tmp_path / "tiny/ppo/checkpoints").exists()


def test_a_signal_stops_cleanly_and_the_same_command_resumes_to_the_same_weights(logs, tmp_path, monkeypatch):
    """SIGTERM in the second step of a pretraining: a checkpoint, exit status 143, no artifact; then an unbroken end."""
    known = [
        f"artifacts.tokenizer={logs}/tiny/tokenizer/export",
        "callbacks.graceful_stop={_target_: components.callbacks.signals.GracefulStop}",
        "trainer.max_steps=4",
    ]
    from components.stages.pretrain import Pretrain

    step = Pretrain.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretrain, "training_step", interrupted)
    with pytest.raises(SystemExit) as stopped:
        dispatch.run(config("pretrain", tmp_path / "a", *known))
    assert stopped.value.code == 143
    assert not (tmp_path / "a/tiny/pretrain/export").exists()
    monkeypatch.setattr(Pretrain, "training_step", step)
    dispatch.run(config("pretrain", tmp_path / "a", *known))
    dispatch.run(config("pretrain", tmp_path / "b", *known))
    resumed, unbroken = (store.load_causal_lm(tmp_path / run / "tiny/pretrain/export") for run in "ab")
    for one, other in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("limits", "steps", "ended"),
    [
        (["trainer.max_steps=10"], 10, "trainer.max_steps=10"),  # 8 steps an epoch, and the stage asks for one
        (["trainer.max_steps=10", "trainer.max_epochs=1"], 8, "trainer.max_epochs=1"),
        (["trainer.max_steps=20", *PATIENCE], 16, "early stopping on val/loss"),
    ],
)
def test_a_limit_on_the_command_line_ends_a_run_and_is_named(logs, tmp_path, limits, steps, ended, capsys):
    sizes = [one for one in SMALL["sft"] if "max_epochs" not in one]
    read = [f"artifacts.pretrain={logs}/tiny/pretrain/export", *TINY, *sizes]
    dispatch.run(compose_config(["stage=sft", f"paths.logs={tmp_path}", *read, *limits]))
    card = store.read_card(tmp_path / "tiny/sft/export")
    assert (card["metrics"]["steps"], card["ended_by"]) == (steps, ended)
    assert f"step {steps}, ended by {ended}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("instructions", "width", "expected"),
    [
        ({"amx_bf16": True}, 256, "bf16-mixed"),
        ({"amx_bf16": True, "avx512_bf16": True}, 128, "32-true"),  # too narrow to gain
        ({"avx512_bf16": True}, 128, "bf16-mixed"),
        ({"avx512_bf16": True}, 112, "32-true"),
        ({"avx512_bf16": True}, 512, "bf16-mixed"),
        ({"avx2": True}, 512, "32-true"),
    ],
)
def test_a_cpu_computes_in_bf16_if_that_is_fast(instructions, width, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu", "precision": "auto"}})
    assert placement.precision_of(cfg, width) == expected


def test_sweeps_are_compared_by_what_was_varied(tmp_path):
    assert command_line.compared(config("rm", tmp_path, "stage.optimizer.lr=0.5", "seed=3")) == {
        "stage": "rm",
        "model": "tiny",
        "seed": 3,
        "stage.optimizer.lr": 0.5,
        "data.comparisons": 60,
        "data.num_demonstrations": 16,
        "data.batch_size": 8,
        "trainer.max_epochs": 1,
        **{key.split("=")[0]: int(key.split("=")[1]) for key in TINY if key.startswith("model.")},
    }


def test_the_pipeline_stops_at_the_first_failure_and_says_how_to_resume(tmp_path, monkeypatch, caplog):
    ran = []
    monkeypatch.setattr(spawning, "launch", lambda given, forked: ran.append(given) or (3 if len(ran) == 2 else 0))
    with pytest.raises(SystemExit) as stopped:
        dispatch.run(config("all", tmp_path, "overrides.pretrain=['seed=7']", "stages=[tokenizer,pretrain,sft]"))
    assert stopped.value.code == 3
    assert not any(part.startswith("stage.") for arguments in ran for part in arguments)  # no other stage has stages
    assert [arguments[-1] for arguments in ran] == ["force=changed", "seed=7"]
    assert any("stage=tokenizer" in part for part in ran[0]) and any("stage=pretrain" in part for part in ran[1])
    assert "stage=pretrain failed with exit status 3" in caplog.text


def test_pretraining_continues_from_existing_weights_in_a_context_of_its_own(logs, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(logs / "tiny/pretrain/export", theirs)
    (theirs / "card.json").unlink()
    small = [o for o in TINY if o.startswith("callbacks")] + SMALL["pretrain"]
    stay = ["stage.optimizer.lr=0", "stage.optimizer.weight_decay=0"]  # weights do not change
    dispatch.run(
        compose_config(
            [
                "stage=pretrain",
                "model=hf",
                f"model.path={theirs}",
                f"paths.logs={tmp_path}",
                "context=48",
                *small,
                *stay,
            ]
        )
    )
    made = tmp_path / "hf/pretrain/export"
    before, after = (store.load_causal_lm(folder).state_dict() for folder in (theirs, made))
    assert all(torch.equal(before[name], value) for name, value in after.items())
    parent = store.read_card(made)["parents"]["tokenizer"]
    assert parent["content"] == store.content_hash(theirs)  # there is no card
    assert store.load_config(made)[0].longest == store.load_config(theirs)[0].longest > 48


def test_a_tokenizer_is_not_trained_for_a_model_that_has_one(logs, tmp_path):
    theirs = f"model.path={logs / 'tiny/pretrain/export'}"
    with pytest.raises(ValueError, match="model=hf uses the tokenizer of .*none to train"):
        dispatch.run(compose_config(["stage=tokenizer", "model=hf", theirs, f"paths.logs={tmp_path}"]))


@pytest.mark.parametrize("left_out", ["~callbacks", "callbacks.progress=null"])
def test_without_our_progress_bar_there_is_no_other(tmp_path, left_out):
    cfg = compose_config(["stage=sft", f"paths.logs={tmp_path}", "export=last", left_out])
    assert fit._trainer(cfg, 32, {}).progress_bar_callback is None


def test_a_teacher_needs_the_students_vocabulary_but_not_its_chat_template(tmp_path, small_tokenizer):
    template = Tokenizer(small_tokenizer.codec, small_tokenizer.chat_template + "{# of its own #}")
    fewer = train(TEXTS, vocab_size=small_tokenizer.vocab_size - 10)
    for name, one in (("student", small_tokenizer), ("template", template), ("fewer", fewer)):
        store.write_artifact(tmp_path / name, card={}, tokenizer=one)

    def read(teacher: str) -> Tokenizer:
        student = str(tmp_path / "student")
        reads = {"tokenizer": student, "model": student, "teacher": str(tmp_path / teacher)}
        return common.common_tokenizer(OmegaConf.create({"reads": reads, "stage": {"teacher": {}}}))

    assert template.fingerprint != small_tokenizer.fingerprint
    assert read("template").fingerprint == read("student").fingerprint == small_tokenizer.fingerprint
    with pytest.raises(
        ArtifactError, match="teacher .*fewer has a different vocabulary from the student .*student: id "
    ):
        read("fewer")
