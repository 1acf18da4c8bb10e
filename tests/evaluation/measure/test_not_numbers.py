"""Scores that are not numbers decide nothing: every metric that would be based on them is refused."""

import random

import pytest
import torch
from torch import nn

from components.comparing.judges import RewardJudge
from components.data.batches import PreferenceBatch
from components.evaluation.measure.policy import Responses, scores
from components.evaluation.measure.reward_model import evaluate_ranking
from components.evaluation.studies.exact_optimum import Task, measure
from components.models.attention.layout import pack
from tests.kit.tiny_models import random_model, random_scalar

VALUES = [float("nan"), float("inf"), float("-inf")]
SAID = "the reward model's scores are not numbers"
TASK = Task(beta=0.7, max_new_tokens=2, missing_end_score=-2.0, stop_ids=(5,), vocabulary=6)


@pytest.fixture(params=VALUES, ids=str)
def broken(request):
    """A function of a number of ids: a reward model of such scores."""

    def make(vocab_size: int):
        model = random_scalar(vocab_size)
        nn.init.constant_(model.score.bias, request.param)
        return model

    return make


def test_of_responses(broken):
    responses = Responses([[3], [4, 5]], ["a", "b"], [True, True], [0, 0])
    with pytest.raises(ValueError, match=SAID):
        scores(broken(6), [[1, 2]], responses, pad_id=0)


def test_of_rankings(broken):
    packed = pack([[[1, 2], [3, 5], [4, 5]]], row_length=16, filler=0)
    spans = packed.spans[0][1:]
    batch = PreferenceBatch.of(
        input_ids=packed.input_ids,
        layout=packed.layout,
        last=torch.tensor([start + length - 1 for start, length in spans]),
        prompt_last=torch.tensor([1, 1]),
        groups=torch.tensor([0, 0]),
        ranks=torch.tensor([0.0, 1.0]),
        lengths=torch.tensor([2, 2]),
        finished=torch.ones(2, dtype=torch.bool),
    )
    with pytest.raises(ValueError, match=SAID):
        evaluate_ranking(broken(6), [batch])


def test_of_a_judge(broken, small_tokenizer):
    model = broken(small_tokenizer.vocab_size)
    judge = RewardJudge(reward=lambda: model, tokenizer=small_tokenizer, to_device=lambda one: one, temperature=0.0)
    with pytest.raises(ValueError, match=SAID):
        judge.rank([{"role": "user", "content": "who?"}], ["anna", "bob"], random.Random(0))


def test_of_an_enumeration(broken):
    with pytest.raises(ValueError, match=SAID):
        measure(random_model(6), {}, broken(6), [[1, 4]], TASK)


def test_a_policy_whose_logits_are_not_numbers_is_not_compared_with_the_optimum():
    model = random_model(6, seed=1)
    nn.init.constant_(model.lm_head.weight, float("nan"))
    for reference, methods in ((model, {}), (random_model(6), {"ppo": model})):
        with pytest.raises(ValueError, match="the probabilities of all responses sum to nan, expected 1"):
            measure(reference, methods, random_scalar(6), [[1, 4]], TASK)


def test_a_judge_reads_no_more_tokens_at_once_than_the_run_does(small_tokenizer):
    read: list[int] = []
    model = random_scalar(small_tokenizer.vocab_size)
    model.register_forward_hook(lambda module, given, output: read.append(output.numel()))
    known = {"tokenizer": small_tokenizer, "to_device": lambda one: one, "temperature": 0.0}
    prompt, said = [{"role": "user", "content": "where does anna live?"}], ["paris.", "rome.", "bob lives in rome."]
    whole = RewardJudge(reward=lambda: model, **known).scores(prompt, said)
    alone = RewardJudge(reward=lambda: model, tokens_at_once=1, **known).scores(prompt, said)
    assert len(read) == 4 and alone == pytest.approx(whole, abs=1e-5)
