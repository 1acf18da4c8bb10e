"""What models say of packed responses: log-probabilities, values, scores."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.functional.logprobs import kl_k3
from components.functional.masking import masked_mean, zero_outside
from components.functional.output_layer import linear_logprobs
from components.generation.rollout import Experience, layout_of
from components.models.heads import CausalLM, ScalarModel


def response_logprobs(
    model: CausalLM, experience: Experience, *, temperature: float, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability (N, R) of every response token and the entropy (N, R) it was drawn from; 0 where masked.

    Only the places that predict a response token pass through the head. The entropy carries no gradient, and is 0
    everywhere where it was not asked for.
    """
    mask = experience["mask"]
    hidden = model.hidden(experience["input_ids"], layout_of(experience)).flatten(0, 1)
    logprobs, entropies = model.through_head(
        linear_logprobs,
        hidden[experience["sources"][mask]],
        experience["response_ids"][mask],
        temperature=temperature,
        with_entropy=with_entropy,
    )
    return _spread(logprobs, mask), _spread(torch.zeros_like(logprobs) if entropies is None else entropies, mask)


def response_values(model: ScalarModel, experience: Experience) -> Tensor:
    """(N, R): the value before each response token was drawn; 0 where masked."""
    values = model(experience["input_ids"], layout_of(experience)).flatten()
    return torch.where(experience["mask"], values[experience["sources"]], 0.0)


def response_scores(model: ScalarModel, experience: Experience) -> Tensor:
    """(N,): the score at each response's last token."""
    return model(experience["input_ids"], layout_of(experience)).flatten()[experience["last"]]


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """KL of the old policy, which drew the tokens, to the new one: mean of k3 per token, nats, without gradient."""
    return masked_mean(kl_k3(zero_outside(old_logprobs, mask), zero_outside(logprobs.detach(), mask)), mask)


Figure = tuple[Tensor, Tensor | int]  # a mean, and how much it is the mean of


def summary(known: Experience) -> dict[str, Figure]:
    """The figures of drawn and assessed responses, each with its weight; what they mean: stages.onpolicy.

    score_square and kl_square are means too: `with_spread` makes deviations of them, over whatever they were averaged.
    """
    mask, score, kl = known["mask"], known["rewards"].double(), known["kl"].double().sum(1)
    k3 = torch.where(mask, kl_k3(known["old_logprobs"], known["reference_logprobs"]), 0.0)
    of_responses = {
        "score": score,
        "score_square": score.square(),
        "kl": kl,
        "kl_square": kl.square(),
        "kl_k3": k3.sum(1),
        "length": mask.sum(1),
        "finished": known["finished"],
    }
    means = {name: (values.double().mean(), len(mask)) for name, values in of_responses.items()}
    return means | {"entropy": (masked_mean(known["entropy"], mask), mask.sum())}


def with_spread(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Figures with score_std and kl_std, population deviations, in the place of mean squares."""
    found = {name: value for name, value in figures.items() if not name.endswith("_square")}
    for name in ("score", "kl"):
        found[f"{name}_std"] = (figures[f"{name}_square"] - figures[name].square()).clamp_min(0).sqrt()
    return found


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """1 − Var(returns − values) / Var(returns) over real tokens: 1 is a perfect critic, 0 a constant one.

    sum_over_ranks adds a tensor up over all processes, as in masked_whiten.
    """
    both = torch.stack([returns[mask], (returns - values)[mask]]).double()
    count, *totals = sum_over_ranks(torch.stack([both.new_tensor(both.shape[1]), *both.sum(1)]))
    centred = both - torch.stack(totals)[:, None] / count
    of_returns, of_errors = sum_over_ranks(centred.square().sum(1)) / count
    return 1 - of_errors / of_returns.clamp_min(1e-8)


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Values of real tokens, in order, back at their places in (N, R)."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
