import math

import pytest
import torch

from components.evaluation.measure import policy
from components.evaluation.measure.policy import Responses, SamplePlan, describe, distinct_share, respond, scores
from tests.kit import tiny_models

PROMPTS = [[2, 300, 301], [2, 310], [2, 320, 321, 322, 323]]
PLAN = SamplePlan(samples_per_prompt=8, max_new_tokens=6, seed=3)


def run(model, tokenizer, reference=None, prompts=PROMPTS, plan=PLAN):
    responses = respond(model, tokenizer, prompts, plan)
    return responses, describe(model, prompts, responses, reference=reference, pad_id=tokenizer.pad_id)


def test_a_model_that_knows_nothing_has_an_entropy_of_ln_v_per_token(uniform, tokenizer):
    responses, metrics = run(uniform, tokenizer)
    nats = math.log(tokenizer.vocab_size)
    assert metrics.entropy_per_token == pytest.approx(nats, abs=1e-5)
    assert metrics.sequence_entropy == pytest.approx(metrics.length * nats, rel=1e-6)
    assert metrics.sequence_entropy_mc == pytest.approx(metrics.length * nats, rel=1e-6)
    assert metrics.length == sum(map(len, responses.ids)) / 24


def test_the_kl_of_a_model_to_itself_is_zero(new_model, tokenizer):
    model = new_model(0)
    assert run(model, tokenizer, reference=model)[1].kl == 0


def test_without_a_reference_there_is_no_kl(new_model, tokenizer):
    assert run(new_model(0), tokenizer)[1].kl is None


def test_the_kl_to_a_uniform_reference_is_what_entropy_is_missing(new_model, uniform, tokenizer):
    _, metrics = run(new_model(0), tokenizer, reference=uniform)
    most = metrics.length * math.log(tokenizer.vocab_size)
    assert metrics.kl == pytest.approx(most - metrics.sequence_entropy_mc, rel=1e-5)
    assert metrics.kl > 1


def test_monte_carlo_and_exact_entropy_agree(new_model, tokenizer):
    plan = SamplePlan(samples_per_prompt=1500, max_new_tokens=4, seed=0)
    _, metrics = run(new_model(1), tokenizer, prompts=PROMPTS[:2], plan=plan)
    assert metrics.entropy_per_token < 0.8 * math.log(tokenizer.vocab_size)
    assert metrics.sequence_entropy_mc == pytest.approx(metrics.sequence_entropy, rel=0.03)


def test_likelihoods_are_those_of_each_response_run_alone(new_model, tokenizer):
    model = new_model(2)
    responses = respond(model, tokenizer, PROMPTS, PLAN)
    logprobs, entropies = policy.sequence_likelihoods(model, PROMPTS, responses, pad_id=tokenizer.pad_id)
    for number, response in enumerate(responses.ids):
        prompt = PROMPTS[number // 8]
        rows = model(torch.tensor([prompt + response]))[0].detach().double().log_softmax(-1)[len(prompt) - 1 : -1]
        alone = sum(row[token] for row, token in zip(rows, response, strict=True))
        assert float(logprobs[number]) == pytest.approx(float(alone), abs=1e-4)
        assert float(entropies[number]) == pytest.approx(float(-(rows.exp() * rows).sum()), abs=1e-4)


def test_scores_are_those_of_each_response_run_alone(reward, new_model, tokenizer):
    responses = respond(new_model(2), tokenizer, PROMPTS, PLAN)
    found = scores(reward, PROMPTS, responses, pad_id=tokenizer.pad_id)
    for number, response in enumerate(responses.ids):
        alone = reward(torch.tensor([PROMPTS[number // 8] + response]))[0, -1].detach()
        assert float(found[number]) == pytest.approx(float(alone), abs=1e-4)


def test_measuring_in_small_parts_changes_nothing(new_model, tokenizer, monkeypatch):
    model, reference = new_model(0), new_model(1)
    responses = respond(model, tokenizer, PROMPTS, PLAN)
    whole = describe(model, PROMPTS, responses, reference=reference, pad_id=tokenizer.pad_id)
    sizes = []
    packed = policy.packed

    def watched(prompts, *rest, **options):
        sizes.append(len(prompts))
        return packed(prompts, *rest, **options)

    monkeypatch.setattr(policy, "packed", watched)
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 5 * 6 * tokenizer.vocab_size)
    parts = describe(model, PROMPTS, responses, reference=reference, pad_id=tokenizer.pad_id)
    assert sizes == [5, 5, 5, 5, 4] * 2
    assert parts == pytest.approx(whole, abs=1e-5)


def test_no_more_rows_are_sampled_at_once_than_allowed(new_model, tokenizer, monkeypatch):
    sizes = []
    generate = policy.generate

    def watched(model, prompts, *rest, samples_per_prompt, **options):
        sizes.append(len(prompts) * samples_per_prompt)
        return generate(model, prompts, *rest, samples_per_prompt=samples_per_prompt, **options)

    monkeypatch.setattr(policy, "generate", watched)
    monkeypatch.setattr(policy, "ROWS_AT_ONCE", 17)
    responses = respond(new_model(0), tokenizer, PROMPTS, PLAN)
    assert sizes == [16, 8]
    assert responses.prompt_index == [0] * 8 + [1] * 8 + [2] * 8 and len(responses.texts) == 24


def watch(monkeypatch, name: str, rows) -> list[int]:
    """The number of rows in each call of a function of the module, as a list that grows."""
    sizes, called = [], getattr(policy, name)
    monkeypatch.setattr(policy, name, lambda *a, **k: sizes.append(rows(*a, **k)) or called(*a, **k))
    return sizes


def test_no_more_tokens_are_sampled_or_read_at_once_than_the_plan_says(new_model, tokenizer, monkeypatch):
    sampled = watch(monkeypatch, "generate", lambda model, prompts, *_, samples_per_prompt, **__: samples_per_prompt)
    read = watch(monkeypatch, "packed", lambda prompts, *_, **__: len(prompts))
    plan = PLAN._replace(tokens_at_once=33)  # the longest prompt has 5 tokens and its response 6: 3 rows
    responses = respond(new_model(0), tokenizer, PROMPTS, plan)
    assert sampled == [3, 3, 2] * 3
    assert responses.prompt_index == [0] * 8 + [1] * 8 + [2] * 8 and len(responses.texts) == 24
    assert responses.ids[:3] != responses.ids[3:6]
    width = max(map(len, responses.ids))
    describe(new_model(0), PROMPTS, responses, reference=None, pad_id=tokenizer.pad_id, tokens_at_once=4 * (width + 5))
    assert read == [4] * 6


def test_parts_of_the_prompts_are_sampled_from_different_streams(uniform, tokenizer, monkeypatch):
    monkeypatch.setattr(policy, "ROWS_AT_ONCE", 8)
    responses = respond(uniform, tokenizer, [PROMPTS[0], PROMPTS[0]], PLAN)
    assert responses.ids[:8] != responses.ids[8:]


def test_the_seed_decides_the_responses(new_model, tokenizer):
    model = new_model(0)
    first, again = (respond(model, tokenizer, PROMPTS, PLAN) for _ in range(2))
    assert first == again
    assert respond(model, tokenizer, PROMPTS, PLAN._replace(seed=4)).ids != first.ids


def test_temperature_zero_takes_the_likeliest_token_every_time(new_model, tokenizer):
    model = new_model(0)
    responses = respond(model, tokenizer, PROMPTS[:1], PLAN._replace(samples_per_prompt=1), temperature=0.0)
    ids = list(PROMPTS[0])
    for token in responses.ids[0]:
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_a_response_is_finished_if_it_has_a_stop_token(tokenizer):
    responses, metrics = run(tiny_models.parrot(tokenizer), tokenizer)  # ends the turn immediately, for any input
    assert responses.ids == [[tokenizer.end_id]] * 24 and responses.texts == [""] * 24 and all(responses.finished)
    assert (metrics.finished, metrics.length, metrics.distinct) == (1, 1, 1 / 8)
    assert metrics.sequence_entropy == pytest.approx(0, abs=1e-6)


def test_distinct_counts_different_texts_of_one_prompt():
    # prompt 0: a, a, b, c: 3 of 4; prompt 1: a, a, a, a: 1 of 4; mean ½
    texts = list("aabc") + list("aaaa")
    responses = Responses([[1]] * 8, texts, [True] * 8, [0] * 4 + [1] * 4)
    assert distinct_share(responses) == 0.5
