"""Completions sampled for comparison, and metrics of rankings."""

import pytest
import torch

from components.comparing.completions import Plan, Ranking, describe, sample

PLAN = Plan(records=None, completions=4, temperature=1.0, max_new_tokens=6, distinct=True)
QUESTION = [{"role": "user", "content": "q"}]


def plan(**changes) -> Plan:
    return Plan(**(vars(PLAN) | changes))


@pytest.fixture
def prompts(tokenizer):
    """Three prompts of different lengths."""
    said = ["a", "a b", "a b c"]
    messages = [[{"role": "user", "content": text}] for text in said]
    return [{"ids": tokenizer.render_prompt(one), "prompt": one} for one in messages]


@pytest.fixture
def undecided(new_model, tokenizer):
    """A model that says one of three words and ends, or ends at once, all equally likely."""
    model = new_model(0)
    words = [tokenizer.encode(word)[-1] for word in ("red", "blue", "soup")]
    logits = torch.full((tokenizer.vocab_size,), -50.0)
    logits[[*words, tokenizer.end_id]] = 0.0
    model.head = lambda hidden, weight=None: logits.expand(*hidden.shape[:-1], -1)
    return model


def test_every_prompt_is_asked_equally_often_and_in_another_order_each_time(undecided, tokenizer, prompts):
    sampled, counts = sample(undecided, tokenizer, prompts, plan(records=14, completions=30, max_new_tokens=30), seed=0)
    asked = [one.prompt[0]["content"] for one in sampled]
    assert counts["asked"] == 14 == len(sampled)
    laps = [tuple(asked[start : start + 3]) for start in range(0, 12, 3)]
    assert all(set(lap) == {"a", "a b", "a b c"} for lap in laps) and len(set(laps)) > 1
    assert sorted(asked.count(text) for text in set(asked)) == [4, 5, 5]


def test_without_a_number_every_prompt_is_asked_once(undecided, tokenizer, prompts):
    assert sample(undecided, tokenizer, prompts, plan(max_new_tokens=40), seed=0)[1]["asked"] == 3


def test_with_fewer_records_than_prompts_only_some_are_asked(undecided, tokenizer, prompts):
    assert sample(undecided, tokenizer, prompts, plan(records=2), seed=0)[1]["asked"] == 2


def test_completions_are_distinct_and_what_is_left_out_is_counted(undecided, tokenizer, prompts):
    more = plan(records=50, completions=8, max_new_tokens=3)
    sampled, counts = sample(undecided, tokenizer, prompts, more, seed=0)
    kept = sum(len(one.completions) for one in sampled)
    assert all(len(set(one.completions)) == len(one.completions) >= 2 for one in sampled)
    assert counts["unfinished"] > 0 and counts["duplicates"] > 0
    dropped = 8 * 50 - kept - counts["unfinished"] - counts["duplicates"]
    assert len(sampled) + counts["dropped"] == 50 and 0 <= dropped <= counts["dropped"]


def test_an_unfinished_completion_is_never_kept(undecided, tokenizer, prompts):
    # one token: finished completions are empty, so two different ones are impossible
    with pytest.raises(ValueError, match="did not end within 1 tokens.*max_new_tokens"):
        sample(undecided, tokenizer, prompts, plan(max_new_tokens=1, completions=16), seed=0)


def test_equal_completions_are_kept_if_distinct_is_false(undecided, tokenizer, prompts):
    sampled, counts = sample(
        undecided, tokenizer, prompts, plan(max_new_tokens=1, completions=16, distinct=False), seed=0
    )
    assert set(sampled[0].completions) == {""} and counts["duplicates"] == 0


def test_the_seed_decides_the_samples(undecided, tokenizer, prompts):
    first, again, other = (sample(undecided, tokenizer, prompts, plan(completions=8), seed=s) for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"completions": 1}, "stage.completions: got 1, expected at least 2"),
        ({"records": 0}, "stage.records: got 0"),
        ({"max_new_tokens": 0}, "stage.max_new_tokens: got 0"),
        ({"temperature": 0.0}, "stage.temperature: got 0.0"),
    ],
)
def test_a_plan_that_compares_nothing_is_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        plan(**wrong)


def test_metrics_of_rankings_worked_out_by_hand():
    # a is worth 3, b 1, c 0. First: a best, b and c tied; second: b above a, c last
    rankings = [Ranking(QUESTION, ["a", "b", "c"], [0, 1, 1]), Ranking(QUESTION, ["a", "b", "c"], [1, 0, 2])]
    gold = {"a": 3.0, "b": 1.0, "c": 0.0}
    assert describe(rankings, lambda prompt, completion: gold[completion]) == {
        "records": 2,
        "completions": 3.0,
        "ties": 1 / 6,
        "gold_best": (3 + 1) / 2,
        "gold_worst": (0.5 + 0) / 2,
        "agreement": 4 / 5,  # of ab ac | ab ac bc
    }


def test_without_gold_there_are_no_gold_metrics():
    assert describe([Ranking(QUESTION, ["a", "a", "b"], [0, 0, 1])], None) == {
        "records": 1,
        "completions": 2.0,
        "ties": 1 / 3,
    }


def test_no_rankings_have_no_metrics():
    assert describe([], None) == {"records": 0}
