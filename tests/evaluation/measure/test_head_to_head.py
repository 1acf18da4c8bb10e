import math

import pytest
import torch

from components.evaluation.measure.assessment import Assessed
from components.evaluation.measure.head_to_head import (
    against_all,
    demonstrated,
    head_to_head,
    length_controlled,
    of_prompts,
)
from components.evaluation.measure.policy import Responses


def answers(*prompts, unfinished=()):
    """Each prompt's answers as (score, length), assessed; unfinished: numbers of answers that did not end."""
    rows = [(prompt, score, length) for prompt, given in enumerate(prompts) for score, length in given]
    ids = [[7] * length for _, _, length in rows]
    finished = [number not in unfinished for number in range(len(rows))]
    responses = Responses(ids, ["a"] * len(rows), finished, [prompt for prompt, _, _ in rows])
    return Assessed(responses, None, torch.tensor([float(score) for _, score, _ in rows]))


def test_every_answer_meets_all_of_the_others_to_its_prompt():
    # prompt 0: 1 beats 0 and loses to 2; 2 beats 0 and ties with 2: 2.5 of 4. Prompt 1: 5 and 5 beat 3 and 4: 4 of 4
    mine = answers([(1, 10), (2, 20)], [(5, 12), (5, 30)])
    other = answers([(0, 10), (2, 11)], [(3, 20), (4, 40)])
    found = head_to_head(mine, other)
    assert (found.win_rate, found.pairs) == (6.5 / 8, 8)
    # 10 against 10 wins; 10 against 11 differs by 1/11, less than a tenth, and loses; no other pair is that close
    assert (found.length_matched, found.pairs_length_matched) == (0.5, 2)
    assert (found.length, found.other_length, found.finished) == (18, 20.25, 1)
    for value, interval in (
        (found.win_rate, found.win_rate_ci),
        (found.length_controlled, found.length_controlled_ci),
        (found.length_matched, found.length_matched_ci),
    ):
        assert 0 <= interval[0] < value < interval[1] <= 1


def test_an_answer_that_did_not_end_matches_no_length():
    found = head_to_head(answers([(1, 10)], [(1, 10)], unfinished=[0]), answers([(0, 10)], [(0, 10)]))
    assert (found.pairs_length_matched, found.finished) == (1, 0.5)
    nothing = head_to_head(answers([(1, 10)], [(1, 10)], unfinished=[0, 1]), answers([(0, 10)], [(0, 10)]))
    assert (nothing.length_matched, nothing.length_matched_ci) == (None, None)


def test_at_equal_lengths_controlling_changes_only_the_prior():
    # 3 wins of 4 pairs, all of equal length: (3 + ½) / (4 + 1)
    found, _ = length_controlled(torch.tensor([1.0, 1, 1, 0]), torch.zeros(4), [0, 1, 2, 3])
    assert found == pytest.approx(0.7)


def test_the_interval_is_that_of_a_jackknife_over_prompts():
    # without one of three prompts of one pair each: 1 of 2 twice, (1.5 / 3 → logit 0), and 2 of 2, 2.5 / 3 → ln 5
    # (C − 1)/C · Σ (θ − mean)² = 2/3 · (ln 5)² (1/9 + 1/9 + 4/9) = (2/3 ln 5)²; t of 2 degrees of freedom 4.303
    credits, gaps = torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3)
    found, (low, high) = length_controlled(credits, gaps, [0, 1, 2])
    center, half = math.log(2.5 / 1.5), 4.303 * 2 / 3 * math.log(5)
    assert found == pytest.approx(2.5 / 4)
    assert [low, high] == pytest.approx([1 / (1 + math.exp(half - center)), 1 / (1 + math.exp(-half - center))])


def test_a_single_prompt_has_no_interval():
    assert length_controlled(torch.tensor([1.0, 0.0]), torch.tensor([3.0, -1.0]), [0, 0])[1] is None


@pytest.mark.slow
def test_the_interval_covers_the_true_rate_whatever_length_does():
    # answers longer by 10 tokens on average win with σ(0.3 + 1.5 tanh): at equal length the rate is σ(0.3) = 0.574
    generator = torch.Generator().manual_seed(0)
    covered, raw = 0, 0.0
    for _ in range(20):
        gaps = 10 + 10 * torch.randn(60, generator=generator)
        chances = torch.sigmoid(0.3 + 1.5 * torch.tanh(gaps / gaps.std(correction=0)))
        credits = (torch.rand(60, generator=generator) < chances).float()
        _, (low, high) = length_controlled(credits, gaps, range(60))
        covered, raw = covered + (low < 1 / (1 + math.exp(-0.3)) < high), raw + float(credits.mean())
    assert covered >= 17 and raw / 20 > 0.7


def test_opponents_are_the_reference_and_the_demonstrations_of_the_prompts_that_have_one():
    sft, ppo = answers([(1, 5)], [(1, 5)], [(1, 5)]), answers([(2, 5)], [(0, 5)], [(2, 5)])
    given = of_prompts(answers([(0, 9)], [(0, 9)], [(3, 9)]), [0, 2])
    found = against_all({"sampled": {"sft": sft, "ppo": ppo}, "greedy": {"sft": sft, "ppo": sft}}, "sft", given)
    assert list(found) == ["demonstrations", "sft"] and list(found["demonstrations"]) == ["sampled", "greedy"]
    assert found["sft"]["sampled"].keys() == {"ppo"}  # no model meets itself
    assert found["sft"]["sampled"]["ppo"]["win_rate"] == pytest.approx(2 / 3)
    assert found["sft"]["greedy"]["ppo"]["win_rate"] == 0.5
    assert found["demonstrations"]["sampled"]["sft"]["win_rate"] == 0.5  # beats 0, loses to 3; prompt 1 has none
    assert found["demonstrations"]["sampled"]["ppo"]["pairs"] == 2


def test_without_a_reference_or_demonstrations_nobody_is_met():
    assert against_all({"sampled": {"ppo": answers([(1, 5)])}}, "sft", None) == {}


def test_demonstrations_are_the_references_that_the_judge_can_read_whole(tokenizer):
    prompts = [
        {"ids": [1, 2], "reference": "fev is red ."},
        {"ids": [1, 2], "reference": None},
        {"ids": [1, 2], "reference": "fev is red . " * 9},
    ]
    answer = tokenizer.answer("fev is red .")
    assert demonstrated(prompts, tokenizer, 2 + len(answer)) == ([answer], ["fev is red ."], [True], [0])
    assert demonstrated(prompts, tokenizer, 100).prompt_index == [0, 2]
    assert demonstrated(prompts, tokenizer, 1 + len(answer)) is demonstrated(prompts[1:2], tokenizer, 100) is None
