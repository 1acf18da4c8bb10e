"""The equations: what each stage minimizes. The mean of nothing is 0, never NaN."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from components.functional.masking import masked_mean, row_means, zero_outside
from components.functional.shapes import at_least_float32, same_shape, same_shape_as_mask


def _mean(x: Tensor) -> Tensor:
    return x.sum() / max(x.numel(), 1)


def _smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """−(1 − ε) log σ(x) − ε log σ(−x): cross-entropy of a preference that is wrong with probability ε."""
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def _check_label_smoothing(function: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"{function}: expected label_smoothing in [0, 0.5), got {label_smoothing}")


def causal_lm(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Next-token cross-entropy: −Σ m·logp / Σ m, over all targets of the batch at once, not per row.

    logprobs: (B, T) nats of the targets. mask: (B, T) bool, True where a target counts. Returns a scalar,
    nats/token.
    Raises ValueError if shapes differ.  Source: Brown et al. 2020 (GPT-3), section 2.
    """
    same_shape_as_mask("causal_lm", mask, logprobs=logprobs)
    return -masked_mean(logprobs, mask)


class RankedPairs(NamedTuple):
    """P pairs of completions, all int64. better, worse (P,): their indices; groups (P,): the prompt of each pair, and
    siblings (P,): the number of that prompt's pairs; distinct (G,): the prompts that have a pair."""

    better: Tensor
    worse: Tensor
    groups: Tensor
    siblings: Tensor
    distinct: Tensor


def ranking_pairs(ranks: Tensor, groups: Tensor) -> RankedPairs:
    """All pairs (i, j) in the same group with rank_i < rank_j; ties form no pair.

    ranks: (N,) lower is better. groups: (N,) int64, the prompt of each completion. The result's shapes depend on the
    data, for which a GPU's host would have to wait, so it belongs to the preparation of a batch.
    Memory: N² bools.  Raises ValueError if shapes differ or are not (N,).
    """
    same_shape("ranking_pairs", ranks=ranks, groups=groups)
    if ranks.dim() != 1:
        raise ValueError(f"ranking_pairs: expected ranks (N,), got {tuple(ranks.shape)}")
    ordered = (groups[:, None] == groups[None, :]) & (ranks[:, None] < ranks[None, :])
    better, worse = ordered.nonzero(as_tuple=True)
    distinct, group_index, counts = groups[better].unique(return_inverse=True, return_counts=True)
    return RankedPairs(better, worse, groups[better], counts[group_index], distinct)


def kwise_ranking(
    scores: Tensor, pairs: RankedPairs, *, margin: float, label_smoothing: float, centering: float
) -> tuple[Tensor, int]:
    """Mean over prompts of the mean over a prompt's pairs of −(1−ε) log σ(Δ) − ε log σ(−Δ) + c (r_i + r_j)², each
    completion scored once,  Δ = r_i − r_j − margin,  i ranked above j.

    Two means, not one over all pairs: a prompt with nine completions (36 pairs) counts as much as one with two (1
    pair), for which this is the Bradley–Terry loss. scores: (N,). pairs: of ranking_pairs. margin: in the unit of the
    scores. label_smoothing ε: probability that a label is wrong. centering c: pulls scores toward 0 (0.01 is usual).
    Returns (loss, num_groups): a scalar in nats, and the number of prompts with at least one pair, which the mean is
    over.
    Raises ValueError if ε is not in [0, 0.5).
    Sources: Ouyang et al. 2022 (InstructGPT), eq. 1; margin: Touvron et al. 2023 (Llama 2), eq. 2; centering:
    Eisenstein et al. 2023, eq. 2.
    """
    _check_label_smoothing("kwise_ranking", label_smoothing)
    scores = at_least_float32(scores)
    better, worse = scores[pairs.better], scores[pairs.worse]
    losses = _smoothed_logistic(better - worse - margin, label_smoothing) + centering * (better + worse).square()
    num_groups = pairs.distinct.numel()
    return (losses / pairs.siblings).sum() / max(num_groups, 1), num_groups


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Policy loss of each token: max(−Aρ, −A·clip(ρ, 1−clip_low, 1+clip_high)),  ρ = exp(logp − logp_old).

    With dual_clip = c > 1, the loss of tokens with A < 0 is at most −A·c, however large ρ.
    All tensors have the same shape, such as (B, R); log-probabilities in nats. Returns (losses, clipped), of that
    shape: clipped is True where the clipped term is chosen, so the token has no gradient. Both are 0 outside the mask.
    Raises ValueError if shapes differ or dual_clip <= 1.
    Sources: Schulman et al. 2017 (PPO), eq. 7; unequal bounds: Yu et al. 2025 (DAPO), eq. 10;
    dual clip: Ye et al. 2020, "Mastering complex control in MOBA games".
    """
    same_shape_as_mask("clipped_surrogate", mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"clipped_surrogate: expected dual_clip above 1 or None, got {dual_clip}")
    advantages = zero_outside(advantages, mask)
    ratio = torch.exp(zero_outside(logprobs, mask) - zero_outside(old_logprobs, mask))
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses, clipped = torch.maximum(plain, bounded), bounded > plain
    if dual_clip is not None:
        ceiling = advantages.abs() * dual_clip  # only reached where A < 0: with A > 0 the loss is negative
        clipped = clipped | (losses > ceiling)
        losses = torch.minimum(losses, ceiling)
    return losses, clipped & mask


def sequence_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """clipped_surrogate with one ratio per response: s = exp(1/|y| Σ_t (logp_t − logp_old_t)), the geometric mean of
    its tokens' ratios.

    logprobs, old_logprobs, mask: (B, R), as in clipped_surrogate. advantages: (B, R), the same for all tokens of a
    response. Returns (losses, clipped), (B, R): every token of a response has the response's, so that the mean over
    tokens is the loss of the response and d loss / d logp_t = −A·s / |y|, or 0 where clipped. 0 outside the mask.
    Raises ValueError if shapes differ.  Source: Zheng et al. 2025 (GSPO), eqs. 5 and 7.
    """
    same_shape_as_mask("sequence_surrogate", mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    logp, old, advantage = (row_means(x, mask) for x in (logprobs, old_logprobs, advantages))
    every = torch.ones_like(logp, dtype=torch.bool)
    losses, clipped = clipped_surrogate(logp, old, advantage, every, clip_low=clip_low, clip_high=clip_high)
    return zero_outside(losses[:, None].expand_as(mask), mask), clipped[:, None] & mask


def clipped_weight(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Policy loss of each token: −sg(clip(ρ, 1−clip_low, 1+clip_high))·A·logp,  ρ = exp(logp − logp_old), sg: without
    gradient.

    REINFORCE, corrected for an older policy: the bounds limit a token's weight, and unlike those of clipped_surrogate
    never its gradient, d loss / d logp = −clip(ρ)·A. clip_low of at least 1: no lower bound.
    Shapes and errors as in clipped_surrogate. Returns (losses, clipped): clipped is True where ρ is out of bounds. Both
    are 0 outside the mask.
    Source: MiniMax 2025 (MiniMax-M1: CISPO), eqs. 4 and 5.
    """
    same_shape_as_mask("clipped_weight", mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    logprobs, advantages = zero_outside(logprobs, mask), zero_outside(advantages, mask)
    ratio = torch.exp(logprobs.detach() - zero_outside(old_logprobs, mask))
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * logprobs, (weight != ratio) & mask


def ppo_policy(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Mean of clipped_surrogate over the tokens where the mask is True, and the share of them that is clipped.

    Shapes, errors and sources as in clipped_surrogate. Returns (loss, clip_fraction), two scalars.
    """
    losses, clipped = clipped_surrogate(
        logprobs, old_logprobs, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    return masked_mean(losses, mask), masked_mean(clipped.to(losses.dtype), mask)


def ppo_value(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip_range: float | None
) -> tuple[Tensor, Tensor]:
    """Half the mean squared error of the value, the larger of plain and clipped: mean of ½ max((V−R)², (V_clip−R)²).

    V_clip = clip(V, V_old ± clip_range); clip_range None means no clipping. All tensors have the same shape, such
    as (B, R), in the unit of the reward. Returns (loss, clip_fraction): clip_fraction is the share of tokens whose
    clipped term is larger.
    Raises ValueError if shapes differ.
    Source: Huang et al. 2024, "The N implementation details of RLHF with PPO", value clipping.
    """
    same_shape_as_mask("ppo_value", mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (zero_outside(x, mask) for x in (values, old_values, returns))
    errors = (values - returns).square()
    if clip_range is None:
        return masked_mean(errors, mask) / 2, errors.new_zeros(())
    bounded = old_values + (values - old_values).clamp(-clip_range, clip_range)
    bounded_errors = (bounded - returns).square()
    clip_fraction = masked_mean((bounded_errors > errors).to(errors.dtype), mask)
    return masked_mean(torch.maximum(errors, bounded_errors), mask) / 2, clip_fraction


class DPO(NamedTuple):
    """loss: scalar, with gradient. The others: (P,), implicit rewards β (logπ − logπ_ref), without gradient."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    variant: Literal["sigmoid", "ipo", "hinge", "robust"],
    label_smoothing: float,
) -> DPO:
    """Direct preference loss of h = (logπ(w) − logπ_ref(w)) − (logπ(l) − logπ_ref(l)), w chosen and l rejected, mean
    over pairs.

    sigmoid  −(1−ε) log σ(βh) − ε log σ(−βh)                  Rafailov et al. 2023 (DPO), eq. 7; Mitchell 2023
    robust   (−(1−ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε)     Chowdhury et al. 2024 (rDPO)
    ipo      (h − 1/(2β))²                                    Azar et al. 2023, eq. 17
    hinge    max(0, 1 − βh)                                   Zhao et al. 2023 (SLiC-HF)

    All tensors (P,): log-probabilities in nats, summed (not averaged) over the response, its end token
    included.
    Raises ValueError if shapes differ, the variant is unknown, ε is not in [0, 0.5), or ε > 0 for a variant
    without ε.
    """
    same_shape(
        "dpo",
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
    )
    _check_label_smoothing("dpo", label_smoothing)
    if label_smoothing and variant in ("ipo", "hinge"):
        raise ValueError(f"dpo: variant {variant!r} takes no label_smoothing, got {label_smoothing}")
    chosen = at_least_float32(policy_chosen) - at_least_float32(ref_chosen)
    rejected = at_least_float32(policy_rejected) - at_least_float32(ref_rejected)
    margin = chosen - rejected
    if variant == "sigmoid":
        losses = _smoothed_logistic(beta * margin, label_smoothing)
    elif variant == "robust":
        wrong = label_smoothing * logsigmoid(-beta * margin)
        losses = (wrong - (1 - label_smoothing) * logsigmoid(beta * margin)) / (1 - 2 * label_smoothing)
    elif variant == "ipo":
        losses = (margin - 1 / (2 * beta)).square()
    elif variant == "hinge":
        losses = torch.relu(1 - beta * margin)
    else:
        raise ValueError(f"dpo: expected variant sigmoid, ipo, hinge or robust, got {variant!r}")
    return DPO(_mean(losses), (beta * chosen).detach(), (beta * rejected).detach())


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, margin: float) -> Tensor:
    """Mean over pairs of −log σ(β(m_w − m_l) − γ),  m the mean log-probability of an answer's tokens.

    chosen m_w, rejected m_l: (P,) nats per token. beta: per nat per token. margin γ: what β(m_w − m_l) is to exceed.
    Returns a scalar.  Raises ValueError if shapes differ.  Source: Meng et al. 2024 (SimPO), eq. 6.
    """
    same_shape("simpo", chosen=chosen, rejected=rejected)
    return _mean(-logsigmoid(beta * (at_least_float32(chosen) - at_least_float32(rejected)) - margin))


def orpo(chosen: Tensor, rejected: Tensor, *, weight: float) -> Tensor:
    """Mean over pairs of −m_w − λ log σ(log odds(m_w) − log odds(m_l)),  odds(m) = e^m / (1 − e^m).

    chosen m_w, rejected m_l: (P,) mean log-probability of an answer's tokens, nats per token. weight λ: of the second
    term. An answer whose tokens are certain to within rounding has the odds of that rounding. Returns a scalar.
    Raises ValueError if shapes differ.  Source: Hong et al. 2024 (ORPO), eqs. 6 and 7.
    """
    same_shape("orpo", chosen=chosen, rejected=rejected)
    chosen, rejected = at_least_float32(chosen), at_least_float32(rejected)
    certain = -torch.finfo(chosen.dtype).eps
    odds = [m - torch.log(-torch.expm1(m)) for m in (chosen.clamp(max=certain), rejected.clamp(max=certain))]
    return _mean(-chosen - weight * logsigmoid(odds[0] - odds[1]))


def kto_reference_point(mismatched: Tensor, *, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """z₀ = max(0, mean of r),  r = logπ(y) − logπ_ref(y) of an answer y to another prompt: a cheap, biased estimate of
    KL(π‖π_ref).

    mismatched: (N,) nats. sum_over_ranks sums a tensor over all processes, so that every rank has the same z₀; a single
    process leaves it out. Returns a scalar in nats, without gradient.  Source: Ethayarajh et al. 2024 (KTO), eq. 8.
    """
    values = at_least_float32(mismatched.detach())
    total, count = sum_over_ranks(torch.stack([values.sum(), values.new_full((), values.numel())]))
    return (total / count.clamp(min=1)).clamp(min=0)


def kto(
    log_ratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Mean over answers of λ_D (1 − σ(β(r − z₀))) for a desirable one and λ_U (1 − σ(β(z₀ − r))) for another.

    log_ratios r: (N,) logπ − logπ_ref in nats, summed over the answer, its end token included. desirable: (N,) bool.
    reference_point z₀: scalar in nats, see kto_reference_point. desirable_weight λ_D, undesirable_weight λ_U. Returns a
    scalar; the sum is divided by N, not by the sum of weights.
    Raises ValueError if shapes differ or desirable is not bool.  Source: Ethayarajh et al. 2024 (KTO), eq. 8.
    """
    same_shape_as_mask("kto", desirable, log_ratios=log_ratios)
    gains = beta * (at_least_float32(log_ratios) - reference_point)
    weights = torch.where(desirable, gains.new_full((), desirable_weight), gains.new_full((), undesirable_weight))
    return _mean(weights * torch.sigmoid(torch.where(desirable, -gains, gains)))


def aggregate(
    token_losses: Tensor,
    mask: Tensor,
    *,
    how: Literal["sequence_mean", "token_mean", "fixed_length", "sequence_sum"],
    max_length: int | None,
) -> Tensor:
    """Reduces the losses of sampled tokens to a scalar; the four ways weight long responses differently.

    sequence_mean  mean over a response's tokens, then over nonempty responses   Shao et al. 2024, eq. 3
    token_mean     Σ over all tokens / number of tokens                          Yu et al. 2025 (DAPO), eq. 12
    fixed_length   Σ over all tokens / (B · max_length)                          Liu et al. 2025 (Dr. GRPO)
    sequence_sum   Σ over all tokens / B

    token_losses, mask: (B, R). max_length: tokens, used by fixed_length only. Returns a scalar.
    Raises ValueError if shapes differ, `how` is unknown, or fixed_length has no positive max_length.
    """
    same_shape_as_mask("aggregate", mask, token_losses=token_losses)
    if mask.dim() != 2:
        raise ValueError(f"aggregate: expected token_losses (B, R), got {tuple(mask.shape)}")
    losses = zero_outside(token_losses, mask)
    rows, lengths = max(mask.shape[0], 1), mask.sum(dim=1)
    if how == "sequence_mean":
        return row_means(losses, mask).sum() / (lengths > 0).sum().clamp(min=1)
    if how == "token_mean":
        return losses.sum() / lengths.sum().clamp(min=1)
    if how == "sequence_sum":
        return losses.sum() / rows
    if how != "fixed_length":
        raise ValueError(f"aggregate: expected sequence_mean, token_mean, fixed_length or sequence_sum, got {how!r}")
    if max_length is None or max_length < 1:
        raise ValueError(f"aggregate: fixed_length needs max_length of at least 1 token, got {max_length}")
    return losses.sum() / (rows * max_length)
