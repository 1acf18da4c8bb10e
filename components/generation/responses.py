"""Models' outputs on packed responses (log-probabilities, values, scores) and the metrics of rollouts."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.functional.divergences import Kind
from components.functional.logprobs import kl_k3
from components.functional.masking import masked_mean, zero_outside
from components.functional.output_layer import LinearDivergence, linear_divergence, linear_logprobs
from components.generation.rollout import Experience, PackedResponses
from components.models.heads import CausalLM, ScalarModel


def response_logprobs(
    model: CausalLM, packed: PackedResponses, *, temperature: float, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of every response token, and entropy of the model's distribution there, each (N, R) in nats; 0
    where masked.

    Only the hidden states that predict a response token pass through the head. The entropy has no gradient, and is all
    0 if with_entropy is False.
    """
    hidden = model.hidden(packed.input_ids, packed.layout).flatten(0, 1)
    logprobs, entropies = model.through_head(
        linear_logprobs,
        hidden[packed.sources.flatten()[packed.real]],
        packed.response_ids.flatten()[packed.real],
        temperature=temperature,
        with_entropy=with_entropy,
        compiled=model.compiles_loss,
    )
    entropies = torch.zeros_like(logprobs) if entropies is None else entropies
    return _scattered(logprobs, packed), _scattered(entropies, packed)


def response_divergences(
    student: CausalLM, teacher: CausalLM, packed: PackedResponses, *, kind: Kind, beta: float, temperature: float
) -> LinearDivergence:
    """How far the student is from the teacher at every response token: total, the sum, has a gradient for the student
    alone; forward, reverse and entropy are (N, R) in nats, 0 where masked, without gradient.

    Only the hidden states that predict a response token pass through the heads, a chunk of them at a time.
    """
    places = packed.sources.flatten()[packed.real]
    hidden = student.hidden(packed.input_ids, packed.layout).flatten(0, 1)[places]
    with torch.no_grad():
        taught = teacher.hidden(packed.input_ids, packed.layout).flatten(0, 1)[places]

    def through_both(rows: Tensor, weight: Tensor, *, unused: Tensor | None) -> LinearDivergence:
        """Inside the teacher's head, so that both matrices are whole if the models are sharded."""
        settings = {"teacher_unused": unused, "kind": kind, "beta": beta, "temperature": temperature}
        found: LinearDivergence = student.through_head(linear_divergence, hidden, rows, weight, **settings)
        return found

    total, *tokens = teacher.through_head(through_both, taught)
    return LinearDivergence(total, *(_scattered(values, packed) for values in tokens))


def response_values(model: ScalarModel, packed: PackedResponses) -> Tensor:
    """(N, R): the value before each response token, at the token that predicts it; 0 where masked."""
    values = model(packed.input_ids, packed.layout).flatten()
    return torch.where(packed.mask, values[packed.sources], 0.0)


def response_scores(model: ScalarModel, packed: PackedResponses) -> Tensor:
    """(N,): the score at each response's last token."""
    scores: Tensor = model(packed.input_ids, packed.layout).flatten()
    return scores[packed.last]


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """KL of the old policy, which sampled the tokens, to the new one: mean of k3 per token, nats, without gradient."""
    return masked_mean(kl_k3(zero_outside(old_logprobs, mask), zero_outside(logprobs.detach(), mask)), mask)


LEAST_VARIANCE = 1e-8  # of returns; below it, they differ by rounding
WeightedMean = tuple[Tensor, Tensor | int]  # a mean, and its weight: the number of values that it averages


def summary(experience: Experience) -> dict[str, WeightedMean]:
    """The metrics of sampled and assessed responses, each with its weight; stages.onpolicy defines them.

    score_square and kl_square are means too: `with_spread` turns them into standard deviations after averaging.
    """
    mask, score, kl = experience.mask, experience.rewards.double(), experience.kl.double().sum(1)
    k3 = torch.where(mask, kl_k3(experience.old_logprobs, experience.reference_logprobs), 0.0)
    per_response = {
        "score": score,
        "score_square": score.square(),
        "kl": kl,
        "kl_square": kl.square(),
        "kl_k3": k3.sum(1),
        "length": mask.sum(1),
        "finished": experience.finished,
    }
    means = {name: (values.double().mean(), len(mask)) for name, values in per_response.items()}
    return means | {"entropy": (masked_mean(experience.entropy, mask), mask.sum())}


def with_spread(means: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics with score_std and kl_std, population standard deviations, in place of the mean squares."""
    metrics = {name: value for name, value in means.items() if name not in ("score_square", "kl_square")}
    for name in ("score", "kl"):
        metrics[f"{name}_std"] = (means[f"{name}_square"] - means[name].square()).clamp_min(0).sqrt()
    return metrics


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """1 − Var(returns − values) / Var(returns) over real tokens: 1 is a perfect critic, 0 a constant one.

    values, returns: (N, R). mask: (N, R) bool, True on response tokens. Returns a scalar, unitless; NaN if the returns'
    variance is below 1e-8, so that there is nothing to explain. sum_over_ranks sums a tensor over all processes, as in
    masked_whiten.
    """
    both = torch.stack([returns[mask], (returns - values)[mask]]).double()
    count, *totals = sum_over_ranks(torch.stack([both.new_full((), both.shape[1]), *both.sum(1)]))
    centered = both - torch.stack(totals)[:, None] / count
    returns_variance, errors_variance = sum_over_ranks(centered.square().sum(1)) / count
    return torch.where(returns_variance < LEAST_VARIANCE, torch.nan, 1 - errors_variance / returns_variance)


def _scattered(flat: Tensor, packed: PackedResponses) -> Tensor:
    """Values of real tokens, in order, at their positions in (N, R); 0 where masked."""
    return flat.new_zeros(packed.mask.numel()).index_copy(0, packed.real, flat).view(packed.mask.shape)
