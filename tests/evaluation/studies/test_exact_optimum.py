"""Enumerating every response: against a slow loop over all of them, and for policies of known worth."""

import html
import json
import math
from itertools import product

import pytest
import torch
from rich.console import Console

from components.evaluation.studies import optimum_card
from components.evaluation.studies.exact_optimum import (
    Levels,
    Question,
    Task,
    measure,
    response_logprobs,
    response_rewards,
)
from tests.kit.oracles import kl_regularized_optimum
from tests.kit.tiny_models import random_model, random_scalar

VOCABULARY, PROMPT = 6, [1, 4, 2]
TASK = Task(beta=0.7, max_new_tokens=3, missing_end_score=-2.0, stop_ids=(5, 0), vocabulary=VOCABULARY)
LONE = Task(beta=0.7, max_new_tokens=1, missing_end_score=-2.0, stop_ids=(5, 0), vocabulary=VOCABULARY)


def slow(model, reward, task):
    """{response: (log-probability, worth)} by a loop over all sequences and a forward pass for every token."""
    found = {}
    for length in range(1, task.max_new_tokens + 1):
        for ids in product(range(VOCABULARY), repeat=length):
            if any(i in task.stop_ids for i in ids[:-1]):
                continue
            ended = ids[-1] in task.stop_ids
            if not ended and length < task.max_new_tokens:
                continue
            logp = 0.0
            for place, token in enumerate(ids):
                with torch.no_grad():
                    logits = model(torch.tensor([[*PROMPT, *ids[:place]]]))[0, -1]
                logp += float(logits.double().log_softmax(-1)[token])
            with torch.no_grad():
                score = float(reward(torch.tensor([[*PROMPT, *ids]]))[0, -1])
            found[ids] = (logp, score if ended else task.missing_end_score)
    return found


def policy(seed):
    return random_model(VOCABULARY, seed=seed)


@pytest.fixture(scope="module")
def reward():
    return random_scalar(VOCABULARY, seed=9)


@pytest.fixture(scope="module")
def by_loop(reward):
    """The slow loop's results for two models."""
    return [slow(policy(seed), reward, TASK) for seed in (0, 1)]


@pytest.fixture(scope="module")
def everything(by_loop):
    """The same as log-probabilities of both models and rewards, responses in one order."""
    assert [len(found) for found in by_loop] == [2 + 4 * 2 + 16 * 2 + 64] * 2
    responses = list(by_loop[0])
    logprobs = [torch.tensor([found[ids][0] for ids in responses], dtype=torch.float64) for found in by_loop]
    return *logprobs, torch.tensor([by_loop[0][ids][1] for ids in responses], dtype=torch.float64)


@pytest.mark.parametrize("task", [TASK, LONE], ids=["three tokens", "one token"])
def test_the_enumeration_has_what_a_slow_loop_finds(by_loop, reward, task):
    expected = sorted((by_loop[0] if task is TASK else slow(policy(0), reward, task)).values())
    logprobs = torch.cat(list(response_logprobs(policy(0), PROMPT, task)))
    worth = torch.cat(list(response_rewards(reward, PROMPT, task)))
    found = sorted(zip(logprobs.tolist(), worth.tolist(), strict=True))
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one == pytest.approx(other, abs=1e-5)


def test_blocks_of_any_size_are_the_same_responses(reward, monkeypatch):
    whole = torch.cat(list(response_logprobs(policy(0), PROMPT, TASK)))
    scores = torch.cat(list(response_rewards(reward, PROMPT, TASK)))
    monkeypatch.setattr("components.evaluation.studies.exact_optimum.CHUNK", 3)
    torch.testing.assert_close(torch.cat(list(response_logprobs(policy(0), PROMPT, TASK))), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(list(response_rewards(reward, PROMPT, TASK))), scores, rtol=0, atol=1e-5)


def test_probabilities_of_all_responses_sum_to_one(reward):
    for seed in range(3):
        total = sum(block.exp().sum() for block in response_logprobs(policy(seed), PROMPT, TASK))
        assert float(total) == pytest.approx(1, abs=1e-12)


def test_a_missing_response_is_detected():
    known = Question.of([torch.tensor([0.5, 0.5]).log().double()], [torch.zeros(2).double()], 1.0)
    with pytest.raises(ValueError, match="sum to 0.9"):
        known.metrics([torch.tensor([0.5, 0.4]).log().double()], beta=1.0)


def test_two_responses_by_hand():
    """Reference ¾, ¼; rewards 0, ln 3; β 1: π* ∝ ¾·1, ¼·3 = ½, ½ and J* = ln 1½."""
    reference = [torch.tensor([0.75, 0.25], dtype=torch.float64).log()]
    known = Question.of(reference, [torch.tensor([0.0, math.log(3)], dtype=torch.float64)], 1.0)
    assert known.best == pytest.approx(math.log(1.5))
    assert known.optimum[0].exp().tolist() == pytest.approx([0.5, 0.5])
    metrics = known.metrics(reference, beta=1.0)
    assert metrics == pytest.approx(
        {"objective": math.log(3) / 4, "reward": math.log(3) / 4, "kl": 0, "total_variation": 0.25}
    )
    metrics = known.metrics([torch.tensor([0.0, 1.0], dtype=torch.float64).log()], beta=1.0)  # all on the second
    assert metrics == pytest.approx(
        {"objective": math.log(3) - math.log(4), "reward": math.log(3), "kl": math.log(4), "total_variation": 0.5}
    )


def test_the_optimum_is_that_of_the_formula(everything):
    reference, _, worth = everything
    best, value = kl_regularized_optimum(reference.exp(), worth, beta=TASK.beta)
    known = Question.of(reference.split(7), worth.split(7), TASK.beta)
    torch.testing.assert_close(torch.cat(known.optimum).exp(), best)
    assert known.best == pytest.approx(float(value))
    assert known.metrics(known.optimum, beta=TASK.beta)["objective"] == pytest.approx(float(value))


def test_measuring_gives_what_the_slow_loop_gives(everything, reward):
    reference, other, worth = everything
    found = measure(policy(0), {"mine": policy(1)}, reward, [PROMPT], TASK)
    mine, best = other.exp(), (reference + worth / TASK.beta).softmax(0)
    kl = float(mine @ (other - reference))
    low, high = float(reference.exp() @ worth), TASK.beta * float((reference + worth / TASK.beta).logsumexp(0))
    objective = float(mine @ worth) - TASK.beta * kl
    assert found["methods"]["mine"] == pytest.approx(
        {
            "objective": objective,
            "reward": float(mine @ worth),
            "kl": kl,
            "total_variation": float((mine - best).abs().sum()) / 2,
            "fraction_of_optimum": (objective - low) / (high - low),
        },
        abs=1e-5,
    )
    assert (found["responses"], found["prompts"]) == (106, 1)


def test_the_fraction_is_zero_for_the_reference_one_for_the_optimum_and_measures_the_distance_to_it(everything, reward):
    reference, other, worth = everything
    found = measure(policy(0), {"same": policy(0), "mine": policy(1)}, reward, [PROMPT], TASK)
    assert found["reference"]["fraction_of_optimum"] == 0
    assert found["methods"]["same"]["fraction_of_optimum"] == pytest.approx(0)
    assert found["optimum"]["fraction_of_optimum"] == 1
    best = (reference + worth / TASK.beta).log_softmax(0)
    apart = [float(one.exp() @ (one - best)) for one in (other, reference)]
    assert found["methods"]["mine"]["fraction_of_optimum"] == pytest.approx(1 - apart[0] / apart[1], abs=1e-5)
    assert found["methods"]["mine"]["fraction_of_optimum"] < 1


def test_metrics_are_means_over_prompts_and_the_fraction_is_of_the_means(reward):
    other = [3, 1]
    each = [measure(policy(0), {"mine": policy(1)}, reward, [prompt], TASK) for prompt in (PROMPT, other)]
    both = measure(policy(0), {"mine": policy(1)}, reward, [PROMPT, other], TASK)
    for part in ("objective", "reward", "kl", "total_variation"):
        mean = sum(one["methods"]["mine"][part] for one in each) / 2
        assert both["methods"]["mine"][part] == pytest.approx(mean)
    gains = [sum(one[key]["objective"] - one["reference"]["objective"] for one in each) for key in ("optimum",)]
    gains += [sum(one["methods"]["mine"]["objective"] - one["reference"]["objective"] for one in each)]
    assert both["methods"]["mine"]["fraction_of_optimum"] == pytest.approx(gains[1] / gains[0])


LEVELS = Levels(torch.tensor([0.0, 1.0, 4.0]).double(), torch.tensor([0.5, 0.3, 0.2]).double())


def test_the_best_of_two_samples_by_hand():
    """Both are at most 0: ¼; at most 1: 0.64; so ¼, 0.39, 0.36, whether or not they tie."""
    assert LEVELS.best_of_n(1).tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert LEVELS.best_of_n(2).tolist() == pytest.approx([0.25, 0.39, 0.36])
    metrics = LEVELS.metrics(LEVELS.best_of_n(2), beta=0.5)
    kl = 0.25 * math.log(0.5) + 0.39 * math.log(1.3) + 0.36 * math.log(1.8)
    assert metrics["reward"] == pytest.approx(0.39 + 4 * 0.36)
    assert metrics["kl"] == pytest.approx(kl)
    assert metrics["objective"] == pytest.approx(0.39 + 4 * 0.36 - 0.5 * kl)


def test_the_best_of_n_of_single_responses_agrees_with_sampling():
    """Every sequence of three samples from two responses of one reward and one of a higher reward, weighted."""
    probs, rewards = [0.5, 0.3, 0.2], [1.0, 1.0, 2.0]
    best = dict.fromkeys((1.0, 2.0), 0.0)
    for sampled in product(range(3), repeat=3):
        best[max(rewards[i] for i in sampled)] += math.prod(probs[i] for i in sampled)
    known = Question.of([torch.tensor(probs).double().log()], [torch.tensor(rewards).double()], 1.0).levels()
    assert known.rewards.tolist() == [1, 2] and known.reference.tolist() == pytest.approx([0.8, 0.2])
    assert known.best_of_n(3).tolist() == pytest.approx([best[1.0], best[2.0]])


def test_best_of_n_reports_the_n_that_is_best_for_the_objective_and_never_beats_the_optimum(reward):
    found = measure(policy(0), {}, reward, [PROMPT], TASK)
    curve = found["best_of_n_curve"]
    objectives = [worth - TASK.beta * kl for kl, worth in curve]
    metrics = found["methods"]["best_of_n"]
    assert metrics["objective"] >= max(objectives) - 1e-9
    assert metrics["objective"] < found["optimum"]["objective"]
    assert curve[0] == pytest.approx([0, found["reference"]["reward"]], abs=1e-6)
    assert 1 <= found["best_n"] <= 1024


def test_the_frontier_is_above_all_policies_and_touches_the_optimum(reward):
    found = measure(policy(0), {"mine": policy(1)}, reward, [PROMPT], TASK)
    best = found["optimum"]
    line = lambda kl: best["objective"] + TASK.beta * kl
    for kl, worth in [*found["frontier"], *found["best_of_n_curve"]]:
        assert worth <= line(kl) + 1e-9
    kls, rewards = zip(*sorted(found["frontier"]))
    assert list(rewards) == sorted(rewards) and min(kls) < best["kl"] < max(kls)


def test_the_page_has_a_row_per_method_the_best_first_and_a_picture(tmp_path, reward, capsys):
    found = measure(policy(0), {"ppo": policy(1), "dpo": policy(0)}, reward, [PROMPT], TASK)
    found["methods"]["ppo"]["seconds"] = 90.0
    optimum_card.write(found, tmp_path, Console(width=110))
    assert optimum_card.read(tmp_path) == json.loads((tmp_path / "optimum.json").read_text()) == found
    page = html.unescape((tmp_path / "optimum.md").read_text())
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")][2:]
    methods = found["methods"]
    names = {"best_of_n": f"best of {found['best_n']}"}
    by_share = sorted(methods, key=lambda name: -methods[name]["fraction_of_optimum"])
    assert rows == ["reference (sft)", *(names.get(name, name) for name in by_share), "optimum π*"]
    assert "1.5" in page and "106 responses" in page
    assert (tmp_path / "optimum.png").stat().st_size > 10_000
    assert "optimum π*" in capsys.readouterr().out


def test_no_result_is_none(tmp_path):
    assert optimum_card.read(tmp_path) is None


def test_the_optimum_is_only_over_responses_of_possible_tokens():
    """Eight ids, two of them unused, against a model of the other six: the same metrics."""
    few, prompts = random_model(6, seed=3), [[1, 4]]
    many = random_model(8, seed=0, unused_ids=(2, 7))
    kept = [0, 1, 3, 4, 5, 6]
    with torch.no_grad():
        state = few.state_dict()
        for name, weight in many.state_dict().items():
            weight.copy_(state[name]) if weight.shape == state[name].shape else weight[kept].copy_(state[name])
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            many.get_parameter(name)[kept] = few.get_parameter(name)

    class Counts(torch.nn.Module):
        def __init__(self, ids):
            super().__init__()
            self.order = torch.tensor([ids.index(i) if i in ids else 0 for i in range(8)])

        def forward(self, input_ids):
            return self.order[input_ids].float().cumsum(1)

    task = dict(beta=0.5, max_new_tokens=3, missing_end_score=-1.0)
    one = measure(few, {}, Counts(list(range(6))), prompts, Task(**task, stop_ids=(5,), vocabulary=6))
    moved = [[kept[i] for i in prompt] for prompt in prompts]
    other = measure(many, {}, Counts(kept), moved, Task(**task, stop_ids=(6,), vocabulary=8, unused=(2, 7)))
    assert other["responses"] == one["responses"] == 1 + 5 + 25 * 6
    for name in ("optimum", "reference"):
        assert other[name] == pytest.approx(one[name], abs=1e-6)
