"""Log-probabilities through the output matrix in chunks equal those of the full logits, without an (N, V) tensor."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from components.functional import output_layer
from components.functional.logprobs import entropy, gather_logprobs
from components.functional.output_layer import linear_cross_entropy, linear_logprobs
from tests.kit.compiler import needs_compiler
from tests.kit.largest_tensor import LargestTensor


@pytest.fixture(params=[1, 3, 1000], ids=lambda rows: f"{rows} rows a chunk")
def chunk(request, monkeypatch):
    monkeypatch.setitem(output_layer.CHUNK, "cpu", request.param * 11)
    return request.param


def case(rows=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 5, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, 11, (rows,), generator=generator)


def test_log_probabilities_and_entropy_by_hand():
    # one hidden number h = ln 2, three outputs 0, 1, 2 times it: probabilities 1/7, 2/7, 4/7
    hidden, weight = torch.tensor([[2.0]]).log(), torch.tensor([[0.0], [1.0], [2.0]])
    logprobs, entropies = linear_logprobs(hidden, weight, torch.tensor([2]), temperature=1.0, with_entropy=True)
    p = torch.tensor([1, 2, 4]) / 7
    assert logprobs.item() == pytest.approx(p[2].log().item())
    assert entropies.item() == pytest.approx(-(p * p.log()).sum().item())
    hot, none = linear_logprobs(hidden, weight, torch.tensor([2]), temperature=0.5, with_entropy=False)
    assert hot.item() == pytest.approx(torch.tensor(16 / 21).log().item())  # 1, 4, 16
    assert none is None
    nats, right = linear_cross_entropy(hidden.expand(2, 1), weight, torch.tensor([2, 1]))
    assert nats.item() == pytest.approx(-(p[2] * p[1]).log().item())
    assert right.item() == 1


def test_a_target_that_ties_for_the_likeliest_counts_its_share_of_a_uniform_choice(chunk):
    """Logits rounded to bf16 often tie; to count each tie as correct would credit rounding."""
    hidden = torch.eye(4)
    weight = torch.tensor(
        [[1.0, 0.0, 0.0, 5.0], [1.0, 0.0, 3.0, 5.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 3.0, 4.99]], dtype=torch.bfloat16
    )
    # two of four tie, four of four, three of four, and 4.99 rounds to 5: three of four again
    _, correct = linear_cross_entropy(hidden.bfloat16(), weight, torch.tensor([0, 2, 0, 3]))
    assert correct.item() == pytest.approx(1 / 2 + 1 / 4 + 0 + 1 / 3)


def test_a_model_that_knows_nothing_is_as_accurate_as_chance():
    _, correct = linear_cross_entropy(torch.zeros(20, 3), torch.ones(8, 3), torch.arange(20) % 8)
    assert correct.item() == pytest.approx(20 / 8)


@pytest.fixture(params=[False, True], ids=["", "padded"])
def padded(request, monkeypatch):
    """Products have rows of padding, as in bf16 on a CPU."""
    if request.param:
        monkeypatch.setattr(output_layer, "rows_of_product", lambda count, device, dtype: -(-count // 4) * 4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_equal_full_logits(chunk, padded, temperature):
    hidden, weight, targets = case()
    logits = hidden @ weight.t()
    logprobs, entropies = linear_logprobs(hidden, weight, targets, temperature=temperature, with_entropy=True)
    assert torch.allclose(logprobs, gather_logprobs(logits, targets, temperature=temperature))
    assert torch.allclose(entropies, entropy(logits, temperature=temperature))
    assert not entropies.requires_grad
    nats, right = linear_cross_entropy(hidden, weight, targets)
    assert torch.allclose(nats, cross_entropy(logits, targets, reduction="sum"))
    assert right == (logits.argmax(1) == targets).sum()


def test_gradients_are_those_of_finite_differences(chunk, padded):
    hidden, weight, targets = case()
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)  # other stages weigh each token otherwise

    def weighed(h, w):
        return (linear_logprobs(h, w, targets, temperature=0.7, with_entropy=False)[0] * weights).sum()

    assert torch.autograd.gradcheck(weighed, (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: 0.3 * linear_cross_entropy(h, w, targets)[0], (hidden, weight))


def test_what_is_frozen_gets_no_gradient_and_what_is_not_gets_its_own():
    hidden, weight, targets = case()
    linear_cross_entropy(hidden, weight, targets)[0].backward()
    both = hidden.grad.clone(), weight.grad.clone()
    for loss in (
        lambda h, w: linear_cross_entropy(h, w, targets)[0],
        lambda h, w: -linear_logprobs(h, w, targets, temperature=1.0, with_entropy=False)[0].sum(),
    ):
        hidden.grad = weight.grad = None
        loss(hidden, weight.detach()).backward()
        assert torch.allclose(hidden.grad, both[0])
        hidden.grad = None
        loss(hidden.detach(), weight).backward()
        assert hidden.grad is None
        assert torch.allclose(weight.grad, both[1])


def test_without_targets_the_loss_and_its_gradient_are_zero():
    hidden, weight, targets = case(rows=0)
    nats, right = linear_cross_entropy(hidden, weight, targets)
    nats.backward()
    assert (nats.item(), right.item()) == (0, 0)
    assert hidden.grad.shape == (0, 5) and weight.grad.eq(0).all()
    assert linear_logprobs(hidden, weight, targets, temperature=1.0, with_entropy=True)[1].shape == (0,)


def test_under_autocast_products_are_in_bf16_and_sums_in_fp32():
    hidden, weight, targets = case(rows=64, dtype=torch.float32)
    exact = linear_logprobs(hidden, weight, targets, temperature=1.0, with_entropy=False)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = linear_logprobs(hidden, weight, targets, temperature=1.0, with_entropy=False)
        nats, _ = linear_cross_entropy(hidden, weight, targets)
    assert logprobs.dtype == nats.dtype == torch.float32
    assert 0 < (logprobs - exact).abs().max() < 0.05
    nats.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_the_full_logits_are_never_materialized(monkeypatch):
    monkeypatch.setitem(output_layer.CHUNK, "cpu", 50 * 1000)
    hidden, weight = torch.randn(1000, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    targets = torch.zeros(1000, dtype=torch.int64)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets)[0].backward()
        linear_logprobs(hidden, weight, targets, temperature=1.0, with_entropy=True)[0].sum().backward()
    assert largest.numel == 50 * 1000


def test_mismatched_shapes_and_a_temperature_of_zero_are_refused():
    hidden, weight, targets = case()
    with pytest.raises(ValueError, match=r"expected hidden \(N, D\), weight \(V, D\).*\(7, 5\), \(11, 5\) and \(6,\)"):
        linear_cross_entropy(hidden, weight, targets[1:])
    with pytest.raises(ValueError, match="temperature"):
        linear_logprobs(hidden, weight, targets, temperature=0.0, with_entropy=False)


def test_log_probabilities_entropy_and_loss_are_those_of_the_real_ids_alone():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    absent = torch.zeros(11, dtype=torch.bool)
    absent[[2, 10]] = True
    kept = [i for i in range(11) if i not in (2, 10)]
    places = torch.randint(0, 9, (7,), generator=generator)
    targets = torch.tensor(kept)[places]
    fewer = hidden @ weight[kept].t()  # as if the two ids did not exist
    found, entropies = linear_logprobs(hidden, weight, targets, temperature=0.7, with_entropy=True, unused=absent)
    assert torch.allclose(found, gather_logprobs(fewer, places, temperature=0.7))
    assert torch.allclose(entropies, entropy(fewer, temperature=0.7))
    nats, right = linear_cross_entropy(hidden, weight, targets, unused=absent)
    assert torch.allclose(nats, -gather_logprobs(fewer, places, temperature=1.0).sum())
    assert right == (fewer.argmax(1) == places).sum()
    for loss in (found.sum(), nats):
        slow = (
            gather_logprobs(fewer, places, temperature=0.7).sum()
            if loss is not nats
            else -gather_logprobs(fewer, places, temperature=1.0).sum()
        )
        wanted = torch.autograd.grad(slow, (hidden, weight), retain_graph=True)
        for one, other in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
            assert torch.allclose(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of itself
@needs_compiler
@pytest.mark.parametrize("with_entropy", [True, False])
def test_compiled_logprobs_and_gradients_are_those_of_separate_operations(with_entropy):
    def found(compiled: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        hidden = torch.randn(24, 8, requires_grad=True)
        weight = torch.randn(50, 8, requires_grad=True)
        targets, unused = torch.randint(40, (24,)), torch.arange(50) >= 40
        settings = dict(temperature=0.7, with_entropy=with_entropy, unused=unused, compiled=compiled)
        logprobs, entropies = linear_logprobs(hidden, weight, targets, **settings)
        (logprobs * torch.linspace(-1, 1, 24)).sum().backward()
        return [logprobs.detach(), *([entropies] if with_entropy else []), hidden.grad, weight.grad]

    for ours, theirs in zip(found(compiled=True), found(compiled=False), strict=True):
        torch.testing.assert_close(ours, theirs)
