"""experiment=instruct: which prompts each stage sees."""

import json

import pytest
from hydra.utils import instantiate

from components.launch.schema import check
from components.tasks import plan
from components.tokenizer.train import train
from tests.kit.composed_configs import compose_config

pytestmark = pytest.mark.slow
PROMPTS = 60
LONG = "one with long answers"


@pytest.fixture(scope="module")
def tokenizer():
    return train(["a"], vocab_size=266)


@pytest.fixture
def given(tmp_path) -> list[str]:
    """Demonstrations and comparisons of the same prompts, two comparisons each; one of either does not fit."""
    prompts = [f"question {number}" for number in range(PROMPTS)]
    long = "x" * 2000
    chat = [{"prompt": prompt, "completion": "an answer"} for prompt in prompts] + [
        {"prompt": LONG, "completion": long}
    ]
    pairs = [{"prompt": prompt, "chosen": f"good {n}", "rejected": "bad"} for prompt in prompts for n in range(2)]
    pairs.append({"prompt": LONG, "chosen": long, "rejected": "bad"})
    for name, rows in (("chat", chat), ("preference", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"files.{name}={tmp_path}/{name}.jsonl" for name in ("chat", "preference")]
    return [*files, f"paths.logs={tmp_path}/logs", "model.path=/models/chat", "hydra.mode=RUN"]


def stages(given, tokenizer, experiment):
    """{entry: its config}, each checked, as the pipeline composes them."""
    cfg = compose_config([f"experiment={experiment}", *given])
    composed = {step.entry: compose_config(step.arguments[1:]) for step in plan.steps_of(cfg)}
    for one in composed.values():
        check(one)
    return composed


def prompts_of(cfg, tokenizer, tmp_path, name="data"):
    """(training prompts, held-out prompts) of a stage's data, as text."""
    data = instantiate(cfg[name], tokenizer=tokenizer, context=cfg.context, cache_dir=str(tmp_path / "cache"), seed=0)
    data.setup()

    def texts(examples):
        rows = [examples[i] for i in range(len(examples))]
        ids = [
            row[0]["prompt"] if isinstance(row, list) else row["ids"] if isinstance(row, dict) else row[0]
            for row in rows
        ]
        return {tokenizer.decode(list(one)).partition("an answer")[0].strip() for one in ids}

    return texts(data.train_examples), texts(data.val_examples)


@pytest.mark.parametrize("experiment", ["instruct", "instruct_small"])
def test_a_judge_shares_no_prompt_with_the_policies_and_nobody_learns_from_held_out_ones(
    given, tokenizer, tmp_path, experiment
):
    composed = stages(given, tokenizer, experiment)
    assert list(composed) == ["sft", "rm", "rm/judge", "ppo", "dpo", "eval"]
    seen = {entry: prompts_of(cfg, tokenizer, tmp_path) for entry, cfg in composed.items()}
    trained = {entry: train for entry, (train, _) in seen.items()}
    held_out = {entry: held for entry, (_, held) in seen.items()}
    assert trained["rm"] == trained["dpo"] == trained["ppo"] - {LONG}  # PPO needs the prompt to fit, not its answers
    assert trained["rm"].isdisjoint(trained["rm/judge"])
    assert trained["rm"] | trained["rm/judge"] == trained["sft"] and len(trained["sft"]) < PROMPTS
    assert len({frozenset(held - {LONG}) for held in held_out.values()}) == 1
    assert held_out["eval"].isdisjoint(trained["sft"])
    _, compared = prompts_of(composed["eval"], tokenizer, tmp_path, "comparisons")
    assert compared == held_out["eval"] - {LONG}


def test_the_report_is_by_the_judge_and_also_measures_the_reward_model_that_was_trained_against(
    given, tokenizer, tmp_path
):
    reads = stages(given, tokenizer, "instruct")["eval"].reads
    assert reads.reward == f"{tmp_path}/logs/instruct/rm/judge/export"
    assert reads.proxy == f"{tmp_path}/logs/instruct/rm/export"
    assert reads.start == reads.tokenizer == "/models/chat" and "base" not in reads
