"""From hidden states to log-probabilities through the output matrix, a chunk of tokens at a time.

The full (N, V) logits never exist, neither in the forward pass nor in the backward pass.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.functional.divergences import Kind, check_kind, divergences
from components.functional.shapes import at_least_float32, dtype_of_products, rows_of_product

CHUNK = {"cpu": 2**21, "cuda": 2**27}  # logits at a time: what fits in a CPU's cache; a GPU wants large products


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    with_entropy: bool,
    unused: Tensor | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden · weightᵀ / temperature) at each target (N,), and that distribution's entropy (N,) or None.

    hidden: (N, D); weight: (V, D); targets: (N,) int64, each below V. unused: (V,) bool, True on ids whose logits are
    set to −inf. Both results are in nats, in at least float32; the entropy has no gradient. Products are in autocast's
    dtype if it is on. The backward pass recomputes the logits: at the cost of a third more work in the head, it saves
    (N,) numbers instead of (N, V). Differentiable once. compiled: whether torch.compile compiles what is computed from
    logits.
    Raises ValueError if shapes do not match or temperature <= 0.
    """
    _check("linear_logprobs", hidden, weight, targets)
    _check_temperature(temperature)
    arguments = (hidden, weight, targets, temperature, with_entropy, unused, compiled)
    return _LinearLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, unused: Tensor | None = None, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """(−Σ log p of the targets in nats, how many targets are the likeliest token), as two scalars.

    A target that ties with t − 1 other tokens for the likeliest counts 1/t, the chance of a uniform choice among them:
    logits rounded to bf16 tie often, and an untrained model should be correct 1/V of the time.
    Shapes, dtypes and errors as in linear_logprobs at temperature 1. The loss's gradient with respect to each
    log-probability is known in advance here, so gradients are computed in the same pass as the loss: no logits are
    computed twice. compiled: whether torch.compile compiles what is computed from logits, which then moves less than a
    quarter of the bytes.
    """
    _check("linear_cross_entropy", hidden, weight, targets)
    return _LinearCrossEntropy.apply(hidden, weight, targets, unused, compiled)  # type: ignore[no-untyped-call]


class LinearDivergence(NamedTuple):
    """total: scalar, the sum of the divergence over all tokens, with gradient for the student. The others: (N,), per
    token, without gradient; see functional.divergences."""

    total: Tensor
    forward: Tensor
    reverse: Tensor
    entropy: Tensor


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    kind: Kind,
    beta: float,
    temperature: float,
    unused: Tensor | None = None,
    teacher_unused: Tensor | None = None,
) -> LinearDivergence:
    """How far softmax(hidden · weightᵀ / temperature) is from the teacher's, at each of N tokens, in nats.

    hidden: (N, D), weight: (V, D), unused: (V,) bool as in linear_logprobs; the teacher's D and V can differ. Ids
    beyond the smaller V, and those unused by either, are left out of both distributions. kind, beta: see
    functional.divergences. As in linear_cross_entropy, gradients are computed in the same pass.
    Raises ValueError if shapes do not match, temperature <= 0, or kind or beta is invalid.
    """
    _check("linear_divergence", hidden, weight, teacher_hidden[..., 0])
    _check("linear_divergence of the teacher", teacher_hidden, teacher_weight, hidden[..., 0])
    _check_temperature(temperature)
    check_kind(kind, beta)
    size = min(len(weight), len(teacher_weight))
    masks = [mask[:size] for mask in (unused, teacher_unused) if mask is not None]
    left_out = torch.stack(masks).any(0) if masks else None
    matrix = weight if len(weight) == size else weight[:size]
    arguments = (hidden, matrix, teacher_hidden.detach(), teacher_weight.detach()[:size])
    parts = _LinearDivergence.apply(*arguments, kind, beta, temperature, left_out)  # type: ignore[no-untyped-call]
    return LinearDivergence(*parts)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        unused: Tensor | None,
        compiled: bool,
    ) -> tuple[Tensor, Tensor | None]:
        rows, matrix = _in_compute_type(hidden, weight)
        logprobs, entropies = [], []
        of_logits = _compiled(_logprobs) if compiled else _logprobs
        for part in _parts(len(rows), matrix):
            picked, spread = of_logits(_product(rows[part], matrix), targets[part], temperature, unused, with_entropy)
            logprobs.append(picked)
            if spread is not None:
                entropies.append(spread)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.temperature, ctx.compute_type, ctx.unused, ctx.compiled = temperature, matrix.dtype, unused, compiled
        entropy = torch.cat(entropies) if with_entropy else None
        if with_entropy:
            ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        rows, matrix = hidden.to(ctx.compute_type), weight.to(ctx.compute_type)
        gradients = _Gradients(rows, weight, *ctx.needs_input_grad[:2])
        of_logits = _compiled(_logprobs_slope) if ctx.compiled else _logprobs_slope
        for part in _parts(len(rows), matrix):
            slope = of_logits(_product(rows[part], matrix), targets[part], grad[part], ctx.temperature, ctx.unused)
            gradients.add(part, slope, matrix)
        return gradients.of_rows(hidden.dtype), gradients.of_weight(weight.dtype), *[None] * 5


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, unused: Tensor | None, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        rows, matrix = _in_compute_type(hidden, weight)
        # Gradients of the sum: those of the mean would be too small for float16.
        gradients = _Gradients(rows, weight, *ctx.needs_input_grad[:2])
        total = torch.zeros((), dtype=at_least_float32(rows[:0]).dtype, device=rows.device)
        correct = torch.zeros((), dtype=total.dtype, device=rows.device)
        of_logits = _compiled(_cross_entropy) if compiled else _cross_entropy
        for part in _parts(len(rows), matrix):
            logits = _product(rows[part], matrix)
            nats, right, slope = of_logits(logits, targets[part], unused, any(ctx.needs_input_grad))
            total += nats
            correct += right
            if slope is not None:
                gradients.add(part, slope, matrix)
        ctx.save_for_backward(gradients.rows, gradients.weight)
        ctx.types = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return *_times(grad, ctx), None, None, None


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        kind: Kind,
        beta: float,
        temperature: float,
        unused: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rows, matrix = _in_compute_type(hidden, weight)
        teacher_rows, teacher_matrix = _in_compute_type(teacher_hidden, teacher_weight)
        gradients = _Gradients(rows, weight, *ctx.needs_input_grad[:2])
        losses, tokens = [], []
        for part in _parts(len(rows), matrix):
            found = divergences(
                _log_softmax(_product(rows[part], matrix), temperature, unused),
                _log_softmax(_product(teacher_rows[part], teacher_matrix), temperature, unused),
                kind=kind,
                beta=beta,
            )
            losses.append(found.loss.sum())
            tokens.append((found.forward, found.reverse, found.entropy))
            if any(ctx.needs_input_grad):
                gradients.add(part, (found.slope / temperature).to(matrix.dtype), matrix)
        ctx.save_for_backward(gradients.rows, gradients.weight)
        ctx.types = hidden.dtype, weight.dtype
        per_token = [torch.cat(values) for values in zip(*tokens, strict=True)]
        ctx.mark_non_differentiable(*per_token)
        return torch.stack(losses).sum(), *per_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *_times(grad, ctx), *[None] * 6


def _times(grad: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """The saved gradients of a sum, times its own gradient."""
    saved = zip(ctx.saved_tensors, ctx.types, strict=True)
    return tuple(None if tensor is None else (tensor * grad).to(dtype) for tensor, dtype in saved)


class _Gradients:
    """Gradients with respect to the rows and to the matrix, filled a chunk at a time; None where not needed."""

    def __init__(self, rows: Tensor, weight: Tensor, of_rows: bool, of_weight: bool) -> None:
        self.source = rows
        self.rows = torch.empty_like(rows) if of_rows else None
        wide = at_least_float32(weight[:0]).dtype  # a sum over many chunks
        self.weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if of_weight else None

    def add(self, part: slice, slope: Tensor, matrix: Tensor) -> None:
        """slope: (n, V), the gradient with respect to the logits of `part`."""
        count, source = len(slope), self.source[part]
        if rows_of_product(count, slope.device, slope.dtype) != count:
            slope, source = _with_rows(slope), _with_rows(source)
            if self.rows is not None:
                self.rows[part] = (slope @ matrix)[:count]
        elif self.rows is not None:
            torch.mm(slope, matrix, out=self.rows[part])
        if self.weight is not None and slope.dtype == self.weight.dtype:
            self.weight.addmm_(slope.t(), source)
        elif self.weight is not None:
            self.weight += slope.t() @ source

    def of_rows(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.rows is None else self.rows.to(dtype)

    def of_weight(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.weight is None else self.weight.to(dtype)


_compiled = cache(torch.compile)


def _logprobs(
    logits: Tensor, targets: Tensor, temperature: float, unused: Tensor | None, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log p of the targets under logits (n, V), and the entropies or None; each (n,)."""
    logp = _log_softmax(logits, temperature, unused)
    picked = logp.gather(1, targets[:, None]).squeeze(1)
    if not with_entropy:
        return picked, None
    p = logp.exp()
    if unused is not None:
        logp.masked_fill_(unused, 0.0)  # 0 · log 0 = 0
    return picked, -torch.linalg.vecdot(p, logp)


def _logprobs_slope(logits: Tensor, targets: Tensor, grad: Tensor, temperature: float, unused: Tensor | None) -> Tensor:
    """The gradient with respect to logits (n, V), in their dtype, of Σ grad · log p of the targets: grad, (n,), times
    (onehot(target) − p) / temperature."""
    factor = (grad / temperature)[:, None]
    slope = _log_softmax(logits, temperature, unused).exp_().mul_(-factor)
    return slope.scatter_add_(1, targets[:, None], factor).to(logits.dtype)


def _cross_entropy(
    logits: Tensor, targets: Tensor, unused: Tensor | None, with_slope: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """For logits (n, V): −Σ log p of the targets, how many are the likeliest token, and the gradient of that sum with
    respect to the logits, (n, V) in their dtype, or None: softmax − onehot(target)."""
    logp, target = _log_softmax(logits, 1.0, unused), targets[:, None]
    picked, top = logp.gather(1, target), logp.amax(1, keepdim=True)
    equal = torch.eq(logp, top, out=torch.empty_like(logp))  # summing floats is 10 times faster than summing booleans
    correct = ((picked == top) / equal.sum(1, keepdim=True)).sum()
    total, slope = -picked.sum(), None
    if with_slope:
        slope = logp.exp_().to(logits.dtype).scatter_(1, target, picked.expm1().to(logits.dtype))
    return total, correct, slope


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """(n, V) logits, in the dtype of both."""
    with torch.autocast(rows.device.type, enabled=False):
        return (_with_rows(rows) @ matrix.t())[: len(rows)]


def _with_rows(x: Tensor) -> Tensor:
    """x (n, D) padded with rows of 0 to the number that rows_of_product gives; x itself if that is n."""
    more = rows_of_product(len(x), x.device, x.dtype) - len(x)
    return F.pad(x, (0, 0, 0, more)) if more else x


def _log_softmax(logits: Tensor, temperature: float, unused: Tensor | None) -> Tensor:
    """(n, V) nats in at least float32, −inf for unused ids; a new tensor, which the caller can overwrite."""
    if unused is not None:
        logits = logits.masked_fill(unused, float("-inf"))
    wide = at_least_float32(logits[:0]).dtype
    if temperature != 1:
        logits = logits.to(wide).div_(temperature)
    return torch.log_softmax(logits, dim=1, dtype=wide)


def _in_compute_type(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dtype = dtype_of_products(weight)
    return hidden.to(dtype), weight.to(dtype)


def _parts(count: int, matrix: Tensor) -> Iterator[slice]:
    """Slices of rows; a single empty one if there are no rows."""
    step = max(CHUNK.get(matrix.device.type, CHUNK["cuda"]) // matrix.shape[0], 1)
    step = rows_of_product(step, matrix.device, matrix.dtype)
    yield from (slice(start, min(start + step, count)) for start in range(0, max(count, 1), step))


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")


def _check(function: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    matches = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not matches or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"{function}: expected hidden (N, D), weight (V, D) and targets (N,), got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)} and {tuple(targets.shape)}"
        )
