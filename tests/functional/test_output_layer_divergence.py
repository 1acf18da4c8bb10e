"""The divergence to a teacher through both output matrices in chunks equals that of the full logits."""

import pytest
import torch

from components.functional import output_layer
from components.functional.divergences import divergences
from components.functional.output_layer import linear_divergence
from tests.kit.largest_tensor import LargestTensor

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.3)]
SIZE = 11


@pytest.fixture(params=[1, 3, 1000], ids=lambda rows: f"{rows} rows a chunk")
def chunk(request, monkeypatch):
    monkeypatch.setitem(output_layer.CHUNK, "cpu", request.param * SIZE)


def case(rows: int = 7, dtype: torch.dtype = torch.float64, more: int = 0):
    """Student of width 5 and teacher of width 4; the teacher has `more` rows without a token."""
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(n, 5, generator=generator, dtype=dtype, requires_grad=True) for n in (rows, SIZE)]
    teacher = [torch.randn(n, 4, generator=generator, dtype=dtype, requires_grad=True) for n in (rows, SIZE + more)]
    return student, teacher


def dense(student, teacher, kept, *, kind, beta, temperature):
    """The full logits of the ids in `kept`, and autograd."""
    logits, taught = (hidden @ matrix[kept].t() / temperature for hidden, matrix in (student, teacher))
    found = divergences(logits.log_softmax(1), taught.log_softmax(1), kind=kind, beta=beta)
    loss = (logits * found.slope.detach()).sum()  # has the gradient of the divergence, which test_divergences checks
    return found, torch.autograd.grad(loss, student)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_chunks_equal_full_logits_in_values_and_gradients(kind, beta, temperature, chunk):
    student, teacher = case()
    settings = dict(kind=kind, beta=beta, temperature=temperature)
    expected, gradients = dense(student, teacher, range(SIZE), **settings)
    found = linear_divergence(*student, *teacher, **settings)
    torch.testing.assert_close(found.total, expected.loss.sum())
    for one, other in zip(found[1:], expected[:3], strict=True):
        torch.testing.assert_close(one, other.detach())
        assert not one.requires_grad
    found.total.backward()
    for one, other in zip(student, gradients, strict=True):
        torch.testing.assert_close(one.grad, other)
    assert teacher[0].grad is None and teacher[1].grad is None


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_gradients_are_those_of_finite_differences(kind, beta):
    (hidden, weight), teacher = case(rows=3)
    total = lambda h, w: 0.3 * linear_divergence(h, w, *teacher, kind=kind, beta=beta, temperature=0.7).total
    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_ids_without_a_token_are_as_if_they_did_not_exist(kind, beta, chunk):
    """Two in the middle for both; the teacher's matrix is padded by three rows, as published ones are."""
    student, teacher = case(more=3)
    absent = torch.zeros(SIZE + 3, dtype=torch.bool)
    absent[[2, 9, 11, 12, 13]] = True
    kept = [i for i in range(SIZE) if i not in (2, 9)]
    settings = dict(kind=kind, beta=beta, temperature=0.7)
    expected, gradients = dense(student, teacher, kept, **settings)
    found = linear_divergence(*student, *teacher, **settings, unused=absent[:SIZE], teacher_unused=absent)
    torch.testing.assert_close(found.total, expected.loss.sum())
    for one, other in zip(found[1:], expected[:3], strict=True):
        torch.testing.assert_close(one, other.detach())
    found.total.backward()
    assert not student[1].grad[[2, 9]].any()
    for one, other in zip(student, gradients, strict=True):
        torch.testing.assert_close(one.grad, other)


def test_a_larger_vocabulary_of_the_student_is_cut_to_the_teachers():
    teacher, student = case(more=3)  # the roles exchanged
    absent = torch.arange(SIZE + 3) >= SIZE
    found = linear_divergence(*student, *teacher, kind="reverse", beta=0.5, temperature=1.0, unused=absent)
    expected, gradients = dense(student, teacher, range(SIZE), kind="reverse", beta=0.5, temperature=1.0)
    found.total.backward()
    torch.testing.assert_close(found.reverse, expected.reverse.detach())
    torch.testing.assert_close(student[1].grad, gradients[1])


def test_without_tokens_divergence_and_gradient_are_zero():
    student, teacher = case(rows=0)
    found = linear_divergence(*student, *teacher, kind="jsd", beta=0.5, temperature=1.0)
    found.total.backward()
    assert found.total.detach() == 0 and found.forward.shape == (0,)
    assert student[1].grad.eq(0).all()


def test_under_autocast_products_are_in_bf16_and_sums_in_fp32():
    student, teacher = case(rows=64, dtype=torch.float32)
    exact = linear_divergence(*student, *teacher, kind="forward", beta=0.5, temperature=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_divergence(*student, *teacher, kind="forward", beta=0.5, temperature=1.0)
    assert all(one.dtype == torch.float32 for one in found)
    assert 0 < (found.forward - exact.forward).abs().max() < 0.1
    found.total.backward()
    assert student[0].grad.dtype == student[1].grad.dtype == torch.float32


def test_the_full_logits_are_never_materialized(monkeypatch):
    monkeypatch.setitem(output_layer.CHUNK, "cpu", 50 * 200)
    student = [torch.randn(200, 4, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(200, 3) for _ in range(2)]
    with LargestTensor() as largest:
        linear_divergence(*student, *teacher, kind="jsd", beta=0.5, temperature=1.0).total.backward()
    assert largest.numel == 50 * 200


def test_mismatched_shapes_and_settings_that_do_not_exist_are_refused():
    student, (hidden, weight) = case()
    usual = dict(kind="jsd", beta=0.5, temperature=1.0)
    with pytest.raises(ValueError, match=r"targets \(N,\), got \(7, 5\), \(11, 5\) and \(6,\)"):
        linear_divergence(*student, hidden[1:], weight, **usual)
    with pytest.raises(ValueError, match="of the teacher: expected hidden"):
        linear_divergence(*student, hidden, weight[:, 1:], **usual)
    with pytest.raises(ValueError, match="temperature"):
        linear_divergence(*student, hidden, weight, **(usual | {"temperature": 0.0}))
    with pytest.raises(ValueError, match="beta between 0 and 1"):
        linear_divergence(*student, hidden, weight, **(usual | {"beta": 1.0}))
