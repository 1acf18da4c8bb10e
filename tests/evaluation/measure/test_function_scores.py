"""Scores by reward functions, pass@k and majority votes, worked by hand on given responses."""

import pytest

from components.evaluation.measure import function_scores as measured
from components.evaluation.measure.policy import Behavior, Responses, SamplePlan
from components.rewards.functions import FunctionReward

SOURCE = """
def right(texts, answer):
    return [None if a is None else float(text.strip() == a) for text, a in zip(texts, answer)]

def length(texts):
    return [len(text) for text in texts]
"""
SAMPLED = [["4", "4 ", "5", "6"], ["7", "7", "7", "8"]]  # to two prompts, whose answers are 4 and 8


class Letters:
    """Ids are letters."""

    prefill = ""

    def decode(self, ids):
        return "".join(map(chr, ids))

    pad_id = 0


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """What is measured by both functions on these samples, and the first of each as the likeliest response."""
    (tmp_path / "r.py").write_text(SOURCE)
    reward = FunctionReward.of({"functions": {n: f"{tmp_path}/r.py:{n}" for n in ("right", "length")}}, "reward")

    def made(answers, sampled=SAMPLED):
        def given(model, tokenizer, prompts, plan, temperature=1.0):
            rows = [row if temperature else row[:1] for row in sampled]
            ids = [[ord(letter) for letter in text] for row in rows for text in row]
            where = [i for i, row in enumerate(rows) for _ in row]
            return Responses(ids, [text for row in rows for text in row], [True] * len(ids), where)

        monkeypatch.setattr(measured, "respond", given)
        monkeypatch.setattr(measured, "describe", lambda *_, **how: Behavior(1, 1, 0.5, 1, 1, how["reference"], 0.75))
        prompts = [{"ids": [1], "prompt": [], "columns": {"answer": answer}} for answer in answers]
        return measured.function_scores(None, Letters(), prompts, reward, SamplePlan(4, 2, 0), 3.0)

    return made


def test_means_intervals_and_what_k_samples_reach(scored):
    """Right: 2 of 4 and 1 of 4. pass@2: 1 − 1/6 and 1 − 3/6. A majority of 4: "4" leads 2 : 1 : 1, "7" leads 3 : 1."""
    figures = scored(["4", "8"])
    right = figures["sampled"]["parts"]["right"]
    assert right["mean"] == 3 / 8 and right["count"] == 8 and right["ci"][0] < 3 / 8 < right["ci"][1]
    assert right["pass"]["k"] == right["majority"]["k"] == [1, 2, 4]
    assert right["pass"]["share"] == pytest.approx([3 / 8, (5 / 6 + 3 / 6) / 2, 1])
    assert right["majority"]["share"][::2] == pytest.approx([3 / 8, 1 / 2])
    assert figures["sampled"]["parts"]["length"] == {
        "mean": 9 / 8,
        "ci": pytest.approx([-0.46, 2.71], abs=0.01),
        "count": 8,
    }
    assert figures["sampled"]["score"] == pytest.approx(3 / 8 + 9 / 8) and figures["sampled"]["length"] == 9 / 8
    assert (figures["prompts"], figures["samples"]) == (2, 4)
    assert figures["behavior"] == {"entropy": 0.5, "kl": 3.0, "distinct": 0.75}


def test_the_likeliest_response_is_scored_once_for_each_prompt_and_has_no_votes(scored):
    greedy = scored(["4", "8"])["greedy"]
    assert greedy["parts"]["right"]["mean"] == 0.5 and greedy["parts"]["right"]["count"] == 2
    assert "pass" not in greedy["parts"]["right"] and greedy["finished"] == 1


def test_a_function_counts_only_where_it_applies(scored):
    parts = scored(["4", None])["sampled"]["parts"]
    assert parts["right"]["mean"] == 0.5 and parts["right"]["count"] == 4 and "pass" not in parts["right"]
    assert scored([None, None])["sampled"]["parts"]["right"] is None


def test_right_answers_that_are_spelled_differently_vote_together(scored):
    votes = scored(["4", "4"], [["4", " 4", "5", "5"], ["5", "5", "5", "4"]])["sampled"]["parts"]["right"]["majority"]
    assert votes["share"][2] == pytest.approx((0.5 + 0) / 2)
