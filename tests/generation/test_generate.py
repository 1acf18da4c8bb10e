"""Generation: batched, cached, repeated or stopped early, the tokens are those of the plain model."""

import math

import pytest
import torch

from components.functional.seeding import seeded
from components.generation import generate as generating
from components.generation.generate import LEAVE, Sampling, Unfinished, generate, stream
from components.models.attention.kv_cache import Steps
from tests.kit import tiny_models

VOCAB, PAD, STOP = 24, 0, 1
PROMPTS = [[5, 9, 3, 17, 2, 8, 11], [7], [4, 4, 20]]


@pytest.fixture(scope="module")
def model():
    return tiny_models.random_model(VOCAB)


def greedy(model, prompts, count, *, stops=(), **settings):
    generator = torch.Generator().manual_seed(0)
    return generate(model, prompts, Sampling(count, 0), stop_ids=stops, pad_id=PAD, generator=generator, **settings)


@torch.no_grad()
def plain_greedy(model, prompt, count, stops=()):
    """The slow obvious loop: the whole text is read again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def test_cached_decoding_gives_the_tokens_of_the_whole_forward(model):
    for prompt in PROMPTS:
        assert greedy(model, [prompt], 20).responses() == [plain_greedy(model, prompt, 20)]


@pytest.mark.parametrize("stepping", [lambda cache: cache, Steps])
@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": True}, {"attention_bias": True}, {"tie_word_embeddings": True}, {"positions": "learned"}],
)
@torch.no_grad()
def test_cached_logits_equal_those_of_the_whole_forward_in_a_left_padded_batch(changes, stepping):
    model = tiny_models.random_model(VOCAB, **changes)
    generator = torch.Generator().manual_seed(1)
    lengths = [9, 4, 1]
    texts = [torch.randint(2, VOCAB, (n + 6,), generator=generator) for n in lengths]
    cache = model.new_cache(torch.tensor([9 - n for n in lengths]), 15, dtype=torch.float32)
    ids = torch.full((3, 9), PAD)
    for row, (n, text) in enumerate(zip(lengths, texts, strict=True)):
        ids[row, 9 - n :] = text[:n]
    steps = [model(ids, cache=cache)[:, -1]]
    cache = stepping(cache)
    for step in range(6):
        token = torch.stack([text[n + step] for n, text in zip(lengths, texts, strict=True)])
        steps.append(model(token[:, None], cache=cache)[:, -1])
    for row, (n, text) in enumerate(zip(lengths, texts, strict=True)):
        whole = model(text[None])[0, n - 1 :]
        cached = torch.stack(steps, 1)[row]
        assert (whole - cached).abs().max() < 1e-5
        # the control: without positions of its own a left-padded row is another text
        if n < 9:
            padded = torch.cat([torch.full((9 - n,), PAD), text])
            assert (model(padded[None])[0, 8:] - whole).abs().max() > 1e-2


def test_prompts_of_unequal_length_in_one_batch_equal_each_alone(model):
    together = greedy(model, PROMPTS, 20).responses()
    assert together == [greedy(model, [prompt], 20).responses()[0] for prompt in PROMPTS]
    assert len(set(map(tuple, together))) == 3


def test_a_row_that_stops_changes_nothing_for_the_others(model):
    free = greedy(model, PROMPTS, 20).responses()
    stop = free[1][3]  # the second row stops where it says this for the first time
    samples = greedy(model, PROMPTS, 20, stops=[stop])
    expected = [plain_greedy(model, prompt, 20, stops=[stop]) for prompt in PROMPTS]
    assert samples.responses() == expected
    assert len(expected[1]) < max(map(len, expected)), "the test needs rows of unequal length"
    assert samples.finished.tolist() == [response[-1] == stop for response in expected]


def test_the_stop_token_is_in_the_mask_and_filler_is_not(model):
    free = greedy(model, [PROMPTS[1]], 20).responses()[0]
    stop = free[3]
    first = free.index(stop)
    samples = greedy(model, PROMPTS, 20, stops=[stop])
    row = samples.ids[1].tolist()
    assert row[first] == stop
    assert samples.mask[1].tolist() == [True] * (first + 1) + [False] * (len(row) - first - 1)
    assert set(row[first + 1 :]) <= {PAD}
    assert samples.ids.shape[1] == int(samples.mask.sum(1).max()), "no column without a sampled token"


def test_a_response_that_reaches_the_limit_is_not_finished_unless_its_last_token_stops_it(model):
    free = greedy(model, [PROMPTS[0]], 4).responses()[0]
    last = free[3]
    assert free.index(last) == 3, "the test needs a token that comes last only"
    assert greedy(model, [PROMPTS[0]], 3, stops=[last]).finished.tolist() == [False]
    assert greedy(model, [PROMPTS[0]], 4, stops=[last]).finished.tolist() == [True]


def test_generation_ends_when_all_rows_have_stopped(model):
    everything = range(VOCAB)
    samples = greedy(model, PROMPTS, 20, stops=everything)
    assert samples.ids.shape == (3, 1)
    assert samples.finished.all() and samples.mask.all()


def test_samples_per_prompt_equals_repeating_the_prompts(model):
    stop = greedy(model, PROMPTS, 20).responses()[1][3]
    several = greedy(model, PROMPTS, 20, stops=[stop], samples_per_prompt=3)
    repeated = greedy(model, [prompt for prompt in PROMPTS for _ in range(3)], 20, stops=[stop])
    assert several.responses() == repeated.responses()
    assert torch.equal(several.finished, repeated.finished)
    sampled = Sampling(8, 1.0)

    def draw(prompts, each):
        return generate(
            model, prompts, sampled, stop_ids=[STOP], pad_id=PAD, generator=seeded("cpu", 3), samples_per_prompt=each
        ).responses()

    assert draw(PROMPTS, 3) == draw([prompt for prompt in PROMPTS for _ in range(3)], 1)


def chi_square(counts, probabilities, total):
    """Σ (observed − expected)² / expected over tokens expected at least 5 times; the rest is one class."""
    common = probabilities * total >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]]).double()
    expected = torch.cat([probabilities[common], probabilities[~common].sum()[None]]).double() * total
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_sampled_frequencies_match_the_models_probabilities(model, temperature):
    prompt, total = [5, 9, 3], 20_000
    samples = generate(
        model,
        [prompt],
        Sampling(1, temperature),
        stop_ids=[STOP],
        pad_id=PAD,
        generator=seeded("cpu", 11),
        samples_per_prompt=total,
    )
    counts = samples.ids[:, 0].bincount(minlength=VOCAB)
    with torch.no_grad():
        logits = model(torch.tensor([prompt]))[0, -1].double()
    statistic, freedom = chi_square(counts, (logits / temperature).softmax(0), total)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    wrong, freedom = chi_square(counts, (logits / (temperature * 1.1)).softmax(0), total)
    assert wrong > freedom + 5 * math.sqrt(2 * freedom), "the bound must tell a temperature 10% off"


def test_later_tokens_are_sampled_given_the_earlier_ones(model):
    prompt, total = [5, 9, 3], 20_000
    samples = generate(
        model,
        [prompt],
        Sampling(2, 1.0),
        stop_ids=[],
        pad_id=PAD,
        generator=seeded("cpu", 12),
        samples_per_prompt=total,
    )
    first = int(samples.ids[:, 0].bincount().argmax())
    followers = samples.ids[samples.ids[:, 0] == first, 1]
    with torch.no_grad():
        probabilities = model(torch.tensor([[*prompt, first]]))[0, -1].double().softmax(0)
    statistic, freedom = chi_square(followers.bincount(minlength=VOCAB), probabilities, len(followers))
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@torch.no_grad()
def test_tokens_sampled_at_a_temperature_score_minus_the_entropy_at_that_temperature_only(model):
    prompt, total, temperature = [5, 9, 3], 20_000, 0.5
    samples = generate(
        model,
        [prompt],
        Sampling(1, temperature),
        stop_ids=[],
        pad_id=PAD,
        generator=seeded("cpu", 13),
        samples_per_prompt=total,
    )
    logits = model(torch.tensor([prompt]))[0, -1].double()

    def surprise(scale):  # how far the mean log-probability lies from minus the entropy, in standard errors
        logp = (logits / scale).log_softmax(0)
        entropy = -(logp.exp() * logp).sum()
        chosen = logp[samples.ids[:, 0]]
        return float((chosen.mean() + entropy).abs() / (chosen.std() / math.sqrt(total)))

    assert surprise(temperature) < 3
    assert surprise(1.0) > 3


def test_top_k_and_top_p_sample_from_the_likeliest_only(model):
    with torch.no_grad():
        order = model(torch.tensor([[7]]))[0, -1].argsort(descending=True).tolist()

    def sampled(sampling):
        samples = generate(
            model, [[7]], sampling, stop_ids=[], pad_id=PAD, generator=seeded("cpu", 1), samples_per_prompt=2000
        )
        return set(samples.ids[:, 0].tolist())

    assert sampled(Sampling(1, 1.0, top_k=2)) == set(order[:2])
    assert sampled(Sampling(1, 1.0, top_p=1e-6)) == {order[0]}


def test_the_same_seed_repeats_the_samples_and_another_does_not(model):
    def draw(*numbers):
        return generate(
            model, PROMPTS, Sampling(10, 1.0), stop_ids=[STOP], pad_id=PAD, generator=seeded("cpu", *numbers)
        ).responses()

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 1)


@pytest.mark.parametrize("stops", [[], "third"])
def test_streaming_greedily_equals_generate_without_the_stop_token(model, stops):
    free = plain_greedy(model, PROMPTS[0], 12)
    stops = [free[2]] if stops == "third" else []
    whole = greedy(model, [PROMPTS[0]], 12, stops=stops).responses()[0]
    streamed = list(stream(model, PROMPTS[0], Sampling(12, 0), stop_ids=stops, generator=torch.Generator()))
    assert streamed == [token for token in whole if token not in stops]
    assert len(whole) == (free.index(free[2]) + 1 if stops else 12)


def test_streaming_samples_the_same_tokens_as_generate_with_the_same_seed(model):
    settings = {"stop_ids": [STOP], "generator": None}
    whole = generate(model, [PROMPTS[0]], Sampling(12, 1.0), **{**settings, "generator": seeded("cpu", 5)}, pad_id=PAD)
    streamed = list(stream(model, PROMPTS[0], Sampling(12, 1.0), **{**settings, "generator": seeded("cpu", 5)}))
    assert streamed == [token for token in whole.responses()[0] if token != STOP]


def test_streaming_ends_as_soon_as_should_stop_is_true(model):
    seen = []
    tokens = stream(
        model, PROMPTS[0], Sampling(12, 0), stop_ids=[], generator=torch.Generator(), should_stop=lambda: len(seen) == 3
    )
    for token in tokens:
        seen.append(token)
    assert seen == plain_greedy(model, PROMPTS[0], 3)


def test_a_prompt_can_fill_the_context_up_to_the_new_tokens_and_no_further(model):
    context = model.config.max_position_embeddings
    prompt = [3] * (context - 5)
    assert greedy(model, [prompt], 5).ids.shape == (1, 5)
    with pytest.raises(
        ValueError, match=rf"{context - 5} tokens \+ 6 new ones exceeds the model's context of {context}"
    ):
        greedy(model, [[3], prompt], 6)
    with pytest.raises(ValueError, match="exceeds the model's context"):
        next(stream(model, prompt, Sampling(6, 0), stop_ids=[], generator=torch.Generator()))


@pytest.mark.parametrize("prompts", [[], [[]], [[3], []]])
def test_an_empty_prompt_is_refused(model, prompts):
    with pytest.raises(ValueError, match="no empty prompt"):
        greedy(model, prompts, 5)


@torch.no_grad()
def test_under_bf16_autocast_cached_decoding_still_agrees_with_the_whole_forward(model):
    with torch.autocast("cpu", torch.bfloat16):
        samples = generate(
            model, PROMPTS, Sampling(10, 1.0), stop_ids=[], pad_id=PAD, generator=seeded("cpu", 1), samples_per_prompt=2
        )
        cache = model.new_cache(torch.zeros(1, dtype=torch.int64), 8, dtype=torch.bfloat16)
        cached = [model(torch.tensor([PROMPTS[0][:4]]), cache=cache)[0, -1]]
        cached += [model(torch.tensor([[token]]), cache=cache)[0, -1] for token in PROMPTS[0][4:]]
        whole = model(torch.tensor([PROMPTS[0]]))[0, 3:]
    assert samples.ids.shape == (6, 10)
    assert int(samples.ids.min()) >= 0 and int(samples.ids.max()) < VOCAB
    exact = model(torch.tensor([PROMPTS[0]]))[0, 3:]
    assert (whole.float() - torch.stack(cached).float()).abs().max() < 0.03 * exact.abs().max()


def test_generation_needs_and_leaves_no_gradient(model):
    samples = greedy(model, PROMPTS, 3)
    assert not samples.ids.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0], ids=["never", "at three quarters", "at once"])
def test_when_finished_rows_leave_the_batch_does_not_change_the_tokens(model, monkeypatch, share):
    plain = greedy(model, PROMPTS * 3, 12)
    stops = {int(plain.ids[0, 3]), int(plain.ids[1, 6])}  # some stop early, some late, some never
    expected = [row[: next((i + 1 for i, token in enumerate(row) if token in stops), 12)] for row in plain.ids.tolist()]
    monkeypatch.setitem(LEAVE, "cpu", share)
    samples = generate(model, PROMPTS * 3, Sampling(12, 0.0), stop_ids=stops, pad_id=PAD, generator=seeded("cpu", 0))
    assert samples.responses() == expected
    assert samples.finished.tolist() == [row[-1] in stops for row in expected]
    assert len({len(row) for row in expected}) > 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_count_of_unfinished_rows_that_comes_a_step_late_changes_no_greedy_token(model, monkeypatch, share):
    """As on an accelerator, where the count of a step just launched would have to be waited for."""
    stops = list(range(1, 9))  # all end before the limit, some early
    prompts = [*PROMPTS, [12, 13]]
    expected = greedy(model, prompts, 40, stops=stops)
    monkeypatch.setitem(LEAVE, "cpu", share)
    monkeypatch.setattr(generating, "Unfinished", lambda total, late: Unfinished(total, late=True))
    actual = greedy(model, prompts, 40, stops=stops)
    assert expected.finished.all() and len(set(map(len, expected.responses()))) > 1
    assert all(torch.equal(one, other) for one, other in zip(expected, actual, strict=True))


def test_a_late_count_of_unfinished_rows_is_that_of_the_step_before():
    counts = Unfinished(3, late=True)
    steps = [[True, True, False], [True, False, False], [False, False, False]]
    assert [counts.count(torch.tensor(alive)) for alive in steps] == [3, 2, 1]
    assert Unfinished(3, late=False).count(torch.tensor([True, False, False])) == 1


def test_a_cache_on_a_cpu_is_float32_regardless_of_the_products_dtype(model):
    cache = model.new_cache(torch.zeros(2, dtype=torch.int64), 5, dtype=torch.bfloat16)
    assert cache.keys[0].dtype == cache.values[0].dtype == torch.float32
    assert cache.weights[0].qkv.weight.dtype == cache.head.dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [0, 2])
def test_logits_that_are_not_finite_end_sampling_with_a_clear_error(monkeypatch, temperature, bad, first):
    model, steps, yielded = tiny_models.random_model(VOCAB), [], []
    honest = type(model).next_logits

    def spoiled(self, input_ids, cache):
        logits = honest(self, input_ids, cache).clone()
        steps.append(len(steps))
        if steps[-1] >= first:
            logits[-1, 3] = bad
        return logits

    monkeypatch.setattr(type(model), "next_logits", spoiled)
    sampling = Sampling(6, temperature=temperature)
    with pytest.raises(ValueError, match=r"logits are not numbers.*trainer.precision=32-true"):
        generate(model, [[5, 6], [7]], sampling, stop_ids=[], pad_id=0, generator=seeded("cpu", 0))
    steps.clear()
    tokens = stream(model, [5, 6], sampling, stop_ids=[], generator=seeded("cpu", 0))
    with pytest.raises(ValueError, match="logits are not numbers"):
        yielded.extend(tokens)  # of an iterable that raises it keeps what came before
    assert len(yielded) == first


MANY = [[5, 9, 3, 17, 2, 8, 11], [7], [4, 4, 20], [13, 6], [19, 10, 21, 2, 2, 9, 14, 3, 8], [12, 15]]


@pytest.mark.parametrize(
    ("width", "changes"), [(1, {}), (5, {}), (50, {}), (3, {"positions": "learned", "max_position_embeddings": 21})]
)
def test_in_any_width_each_prompt_is_answered_once_and_as_all_at_once(width, changes):
    model = tiny_models.random_model(VOCAB, **changes)
    free = greedy(model, MANY, 12)
    stops = {int(free.ids[0, 3]), int(free.ids[4, 6])}  # some stop early, some late, some never
    expected = greedy(model, MANY, 12, stops=stops, samples_per_prompt=2)
    samples = greedy(model, MANY, 12, stops=stops, samples_per_prompt=2, width=width)
    assert samples.responses() == expected.responses()
    assert torch.equal(samples.finished, expected.finished)
    assert torch.equal(samples.mask, expected.mask)
    assert len(set(map(len, samples.responses()))) > 1, "the test needs rows of unequal length"
    assert (samples.ids[~samples.mask] == PAD).all()


def test_the_width_bounds_the_rows_of_a_step_and_keeps_them_full(model, monkeypatch):
    rows = []
    honest = type(model).next_logits

    def counted(self, input_ids, cache):
        rows.append(input_ids.shape)
        return honest(self, input_ids, cache)

    monkeypatch.setattr(type(model), "next_logits", counted)
    stop = greedy(model, MANY, 12).responses()[1][3]
    rows.clear()
    samples = greedy(model, MANY, 12, stops=[stop], samples_per_prompt=2, width=3)
    assert max(batch for batch, _ in rows) == 3
    tokens = int(samples.mask.sum()) - len(samples.ids)  # the first of each is sampled from its prompt's logits
    steps = sum(batch for batch, count in rows[1:] if count == 1)  # prompts of one token count here too
    assert steps <= tokens + 3 * 12, "only the last rows can have empty neighbors"


def test_with_a_width_a_response_is_the_same_in_any_other_and_without_stops_as_without_a_width(model):
    def sampled(stops, **settings):
        return generate(
            model,
            MANY,
            Sampling(10, 1.0),
            stop_ids=stops,
            pad_id=PAD,
            generator=seeded("cpu", 4),
            samples_per_prompt=3,
            **settings,
        ).responses()

    assert sampled([STOP, 5, 6], width=2) == sampled([STOP, 5, 6], width=7) == sampled([STOP, 5, 6], width=18)
    assert sampled([STOP, 5, 6], width=2) != sampled([], width=2)
    assert sampled([], width=4) == sampled([])
