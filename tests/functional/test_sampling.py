import pytest
import torch

from components.functional.logprobs import entropy, gather_logprobs
from components.functional.sampling import filter_logits, sample

LOGITS = torch.tensor([[0.08, 0.5, 0.3, 0.12], [0.05, 0.15, 0.3, 0.5]], dtype=torch.float64).log()
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def kept(logits):
    return [row.nonzero().squeeze(1).tolist() for row in logits.isfinite()]


def test_with_all_filters_off_the_distribution_is_unchanged():
    assert torch.equal(filter_logits(LOGITS, **OFF), LOGITS)


def test_temperature_divides_without_touching_the_input():
    before = LOGITS.clone()
    torch.testing.assert_close(filter_logits(LOGITS, temperature=0.5, top_k=0, top_p=1.0), 2 * before)
    assert torch.equal(LOGITS, before)


@pytest.mark.parametrize(
    "top_k, expected", [(1, [[1], [3]]), (2, [[1, 2], [2, 3]]), (99, [[0, 1, 2, 3], [0, 1, 2, 3]])]
)
def test_top_k_keeps_the_k_likeliest_with_their_logits(top_k, expected):
    got = filter_logits(LOGITS, temperature=1.0, top_k=top_k, top_p=1.0)
    assert kept(got) == expected
    assert torch.equal(got[got.isfinite()], LOGITS[got.isfinite()])


@pytest.mark.parametrize(
    "top_p, expected",
    [(1e-6, [[1], [3]]), (0.49, [[1], [3]]), (0.51, [[1, 2], [2, 3]]), (0.85, [[1, 2, 3], [1, 2, 3]])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p, expected):
    assert kept(filter_logits(LOGITS, temperature=1.0, top_k=0, top_p=top_p)) == expected


def test_the_nucleus_is_that_of_what_top_k_left_and_of_the_tempered_distribution():
    # of .5 and .3 the first holds 62.5%
    assert kept(filter_logits(LOGITS[:1], temperature=1.0, top_k=2, top_p=0.6)) == [[1]]
    assert kept(filter_logits(LOGITS[:1], temperature=1.0, top_k=0, top_p=0.6)) == [[1, 2]]
    # at temperature ½ the four are as .25 : .09 : .0144 : .0064, and .5 holds 69%
    assert kept(filter_logits(LOGITS[:1], temperature=0.5, top_k=0, top_p=0.6)) == [[1]]


def test_exactly_k_are_kept_when_all_are_equal():
    got = filter_logits(torch.zeros(2, 7), temperature=1.0, top_k=3, top_p=1.0)
    assert [len(row) for row in kept(got)] == [3, 3]


def test_samples_follow_the_distribution_and_never_include_a_filtered_token():
    generator = torch.Generator().manual_seed(0)
    rows = filter_logits(LOGITS[:1], temperature=1.0, top_k=2, top_p=1.0).expand(20000, 4)
    tokens = sample(rows, generator)
    share = (tokens == 1).double().mean().item()
    assert set(tokens.tolist()) == {1, 2}
    assert abs(share - 0.625) < 4 * (0.625 * 0.375 / 20000) ** 0.5


def test_the_same_seed_samples_the_same_tokens_and_another_seed_different_ones():
    rows = torch.zeros(50, 10)
    first, again, other = (sample(rows, torch.Generator().manual_seed(seed)).tolist() for seed in (3, 3, 4))
    assert first == again != other


def test_scoring_at_the_sampling_temperature_gives_minus_the_entropy_and_at_one_it_does_not():
    logits = 2 * torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows, temperature = logits.expand(40000, 12), 0.7
    tempered = filter_logits(rows, temperature=temperature, top_k=0, top_p=1.0)
    tokens = sample(tempered, torch.Generator().manual_seed(2))

    def distance(scored_at):
        logprobs = gather_logprobs(rows, tokens, temperature=scored_at)
        sigma = logprobs.std() / len(tokens) ** 0.5
        return ((logprobs.mean() + entropy(logits, temperature=scored_at)) / sigma).abs().item()

    assert distance(temperature) < 3
    assert distance(1.0) > 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature above 0"),
        ({"top_k": -1}, "top_k >= 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"top_p": 1.1}, "top_p in"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        filter_logits(LOGITS, **{**OFF, **options})


def test_logits_of_another_rank_are_refused():
    with pytest.raises(ValueError, match=r"\(B, V\), got \(4,\)"):
        filter_logits(LOGITS[0], **OFF)
    with pytest.raises(ValueError, match=r"\(B, V\), got \(4,\)"):
        sample(LOGITS[0], torch.Generator())


def test_a_share_that_rounds_up_to_the_total_still_samples_a_possible_token(monkeypatch):
    logits = torch.tensor([[0.0, 0.0, float("-inf")], [float("-inf"), 0.0, float("-inf")]])
    for share, expected in ((1.0, [1, 1]), (0.0, [0, 1])):
        monkeypatch.setattr(torch, "rand", lambda *shape, dtype, p=share, **_: torch.full(shape, p, dtype=dtype))
        assert sample(logits, torch.Generator()).tolist() == expected
