import math

import pytest
import torch

from components.functional.logprobs import entropy, gather_logprobs, kl_k1, kl_k3
from tests.kit.float64 import close, doubles
from tests.kit.oracles import exact_kl

NAN, INF = float("nan"), float("inf")
POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
DIAGONAL = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
IDS = torch.tensor([3, 0, 1, 2])


def test_a_tokens_logprob_comes_from_the_logits_before_it():
    got = gather_logprobs(DIAGONAL[:-1], IDS[1:], temperature=1.0)
    close(got, doubles(-0.7436683806, -0.3407529539, -0.1392063142))
    unshifted = gather_logprobs(DIAGONAL, IDS, temperature=1.0)
    close(unshifted, doubles(-1.7436683806, -2.3407529539, -3.1392063142, -4.0534904497))


def test_temperature_divides_the_logits_and_leaves_them_as_they_were():
    logits = DIAGONAL.clone()
    got = gather_logprobs(logits[:-1], IDS[1:], temperature=0.5)
    close(got, doubles(-0.3407529539, -0.0534904497, -0.0074087439))
    assert torch.equal(logits, DIAGONAL)


def test_row_entropies():
    close(entropy(DIAGONAL, temperature=1.0), doubles(1.2683014942, 0.9182837655, 0.5290607945, 0.2618304744))
    close(entropy(doubles(0, 0, 0, 0, 0), temperature=0.3), torch.tensor(math.log(5), dtype=torch.float64))


def test_entropy_counts_an_impossible_token_as_nothing_in_value_and_gradient():
    logits = doubles(0.0, 0.0, -INF).requires_grad_()
    got = entropy(logits, temperature=1.0)
    got.backward()
    close(got, torch.tensor(math.log(2), dtype=torch.float64))
    close(logits.grad, doubles(0, 0, 0))


def test_half_precision_logits_are_widened_before_any_arithmetic():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.arange(8)
    got = gather_logprobs(logits, ids, temperature=1.0)
    expected = [math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(logits.tolist())]
    assert got.dtype == torch.float32
    close(got, torch.tensor(expected), atol=1e-6)
    coarse = logits.log_softmax(-1)[ids, ids].float()
    assert (coarse - got).abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_of_logprobs_and_entropy_agree_with_finite_differences(temperature):
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    ids = torch.tensor([[0, 4, 2], [1, 1, 3]])
    assert torch.autograd.gradcheck(lambda x: gather_logprobs(x, ids, temperature=temperature), logits)
    assert torch.autograd.gradcheck(lambda x: entropy(x, temperature=temperature), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_one_hot_minus_softmax_in_the_dtype_of_the_logits(dtype):
    logits = torch.tensor([[1.0, 2.0, 0.5]], dtype=dtype, requires_grad=True)
    gather_logprobs(logits, torch.tensor([1]), temperature=1.0).sum().backward()
    total = math.e + math.e**2 + math.e**0.5
    expected = torch.tensor([[-math.e / total, 1 - math.e**2 / total, -(math.e**0.5) / total]])
    assert logits.grad.dtype == dtype
    close(logits.grad.float(), expected, atol=1e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("garbage", [NAN, INF, 1e9])
def test_a_row_without_an_incoming_gradient_has_a_gradient_of_exactly_zero(garbage):
    logits = torch.tensor([[0.1, 0.2], [garbage, garbage]], requires_grad=True)
    logprobs = gather_logprobs(logits, torch.tensor([0, 1]), temperature=0.9)
    torch.where(torch.tensor([True, False]), logprobs, 0.0).sum().backward()
    assert torch.equal(logits.grad[1], torch.zeros(2))
    assert logits.grad[0, 0] > 0


def test_only_the_logits_themselves_are_saved_for_the_backward_pass():
    kept = []
    logits = torch.randn(4, 64).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        gather_logprobs(logits, torch.zeros(4, dtype=torch.int64), temperature=0.7)
    large = [x for x in kept if x.numel() >= logits.numel()]
    assert [x.data_ptr() for x in large] == [logits.data_ptr()]


def test_exact_kl_and_its_two_estimators():
    logp, logq = POLICY.log(), REFERENCE.log()
    exact = exact_kl(logp, logq)
    close(exact, torch.tensor(0.0252671539, dtype=torch.float64))
    close(kl_k1(logp, logq), doubles(0.2231435513, -0.2876820725, 0))
    close(kl_k3(logp, logq), doubles(0.0231435513, 0.0456512609, 0))
    close(POLICY @ kl_k1(logp, logq), exact)
    close(POLICY @ kl_k3(logp, logq), exact)


def test_exact_kl_ignores_the_scale_of_logits_and_handles_impossible_tokens():
    close(exact_kl(POLICY.log() + 3, REFERENCE.log() - 5), torch.tensor(0.0252671539, dtype=torch.float64))
    certain = doubles(0.0, -INF)
    close(exact_kl(certain, doubles(0.0, 0.0)), torch.tensor(math.log(2), dtype=torch.float64))
    assert exact_kl(doubles(0.0, 0.0), certain).item() == INF
    assert exact_kl(certain, certain).item() == 0.0


@pytest.mark.parametrize(
    "estimator, expected",
    [
        (kl_k1, [0.0, 0.0, 0.0]),  # no gradient at all: k1 belongs in the reward
        (kl_k3, [0.1, -0.1, 0.0]),  # p − q, that of KL(q‖p)
    ],
)
def test_mean_gradient_of_each_estimator_as_a_loss(estimator, expected):
    logits = POLICY.log().requires_grad_()
    logp = logits.log_softmax(-1)
    (POLICY @ estimator(logp, REFERENCE.log())).backward()
    close(logits.grad, doubles(*expected), atol=1e-7)


def test_the_gradient_of_neither_estimator_is_that_of_the_exact_kl():
    logits = POLICY.log().requires_grad_()
    exact_kl(logits, REFERENCE.log()).backward()
    close(logits.grad, doubles(0.0989382, -0.0938848, -0.0050534), atol=1e-7)


def test_k3_keeps_its_digits_near_zero():
    # exp(x) − 1 in float32 would be off by 6e-8, twelve times the answer
    assert kl_k3(torch.tensor([1e-4]), torch.tensor([0.0])).item() == pytest.approx(5e-9, rel=0.01)
    assert (kl_k3(torch.randn(1000), torch.randn(1000)) >= 0).all()


def test_mismatched_shapes_and_temperatures_of_zero_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(3,\)"):
        gather_logprobs(torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64), temperature=1.0)
    for function in (kl_k1, kl_k3):
        with pytest.raises(ValueError, match=f"{function.__name__}.*same shape"):
            function(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="temperature"):
        entropy(torch.zeros(3), temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        gather_logprobs(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), temperature=0.0)
