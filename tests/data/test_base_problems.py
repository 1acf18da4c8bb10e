"""Data modules of procedural problems: prompts with columns, demonstrations, and one split for both."""

import pytest
from hydra.utils import instantiate

from components.data.chat import ChatData
from components.data.prompts import PromptsData
from components.data.sources.origin import fingerprint_of
from components.launch.schema import check
from components.rewards.reward import batch_of
from tests.kit import toy_gym
from tests.kit.composed_configs import compose_config


@pytest.fixture(autouse=True)
def gym(monkeypatch):
    toy_gym.install(monkeypatch)


def questions(examples) -> set[str]:
    return {example["prompt"][-1]["content"] for example in examples}


def test_prompts_have_the_columns_that_the_reward_reads(common):
    data = PromptsData(tasks=["sums"], task_problems=60, val_fraction=0.2, **common)
    data.setup()
    assert len(questions(data.train_examples)) == len(data.train_examples) > 20  # repeated problems count once
    for example in [*data.train_examples, *data.val_examples]:
        a, b = example["prompt"][-1]["content"].removesuffix(" = ?").split(" + ")
        assert example["columns"]["answer"] == str(int(a) + int(b))
        assert example["columns"].keys() >= {"task", "problem"}


def test_a_problem_that_is_held_out_is_in_no_stages_training_data(common, tok):
    prompts = PromptsData(tasks=["sums"], task_problems=200, task_seed=1, val_fraction=0.2, **common)
    solved = ChatData(tasks=["sums"], task_problems=60, val_fraction=0.2, **common)
    prompts.setup()
    solved.setup()
    imitated = {tok.decode(ids.tolist()) for ids, _ in solved.train_examples}
    held_out = questions(prompts.val_examples)
    assert held_out and not held_out & questions(prompts.train_examples)
    assert len(imitated) > 20 and not any(question in text for question in held_out for text in imitated)


@pytest.mark.parametrize(
    ("stage", "name", "kind"),
    [("grpo", "reasoning_gym", PromptsData), ("sft", "reasoning_gym_solved", ChatData)],
)
def test_the_configs_name_tasks_on_the_command_line(stage, name, kind, common):
    cfg = compose_config([f"stage={stage}", f"data={name}", "data.tasks=[sums,{task:countdown,most:3}]"])
    check(cfg)
    data = instantiate(cfg.data, **common)
    assert isinstance(data, kind) and not data.is_builtin
    assert data.fingerprint() == fingerprint_of(cfg.data)
    assert data.sources()[0][0].name == "reasoning_gym"


def test_the_reward_of_the_problems_scores_their_answers(common):
    cfg = compose_config(["stage=grpo", "data=reasoning_gym", "data.tasks=[sums]", "reward=reasoning_gym"])
    check(cfg)
    data = PromptsData(tasks=["sums"], task_problems=30, val_fraction=0.2, **common)
    data.setup()
    asked = [data.train_examples[i] for i in range(3)]
    tokens = [data.tokenizer.encode(answer) for answer in (asked[0]["columns"]["answer"], "99", "I say 99")]
    scores = instantiate(cfg.stage.reward)().score(batch_of(asked, tokens, [True] * 3, data.tokenizer))
    assert scores.total.tolist() == [1, 0, 0]
