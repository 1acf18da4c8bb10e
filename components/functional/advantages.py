"""From scores to advantages: per-token rewards, GAE, group-relative advantages from one or several rewards."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from components.functional.masking import last_index, zero_outside
from components.functional.shapes import at_least_float32, same_shape_as_mask


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Reward of each response token: −beta·kl_t, plus the score at the last real token (the end token).

    score: (B,) of whole responses. kl: (B, R) nats, k1 of the sampled tokens against the reference.
    mask: (B, R) bool, True on response tokens. Returns (B, R), 0 where masked; a row without tokens gets no
    score.
    Raises ValueError if shapes differ.  Sources: Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2.
    """
    same_shape_as_mask("token_rewards", mask, kl=kl)
    if score.shape != mask.shape[:1]:
        raise ValueError(f"token_rewards: expected score ({mask.shape[0]},), got {tuple(score.shape)}")
    rewards = -beta * zero_outside(kl, mask)
    columns = torch.arange(mask.shape[1], device=mask.device)
    at_end = columns == last_index(mask)[:, None]
    return torch.where(at_end, rewards + at_least_float32(score)[:, None], rewards)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates over one response per row.

    A_t = d_t + gamma·lam·A_{t+1},  d_t = r_t + gamma·V_{t+1} − V_t,  V past the last real token = 0.
    t+1 is the next real token: masked entries are skipped, and add no reward, no value and no decay.
    rewards, values: (B, R), in the same unit. mask: (B, R) bool, True on response tokens, holes allowed.
    Returns (advantages, returns = advantages + values), (B, R), 0 where masked, not whitened.
    Raises ValueError if shapes differ.  Source: Schulman et al. 2016, eq. 16.
    """
    same_shape_as_mask("gae", mask, rewards=rewards, values=values)
    if mask.dim() != 2:
        raise ValueError(f"gae: expected rewards (B, R), got {tuple(mask.shape)}")
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)
    advantages = torch.zeros_like(values)
    following_advantage = following_value = values.new_zeros(mask.shape[0])
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        advantage = delta + gamma * lam * following_advantage
        following_advantage = torch.where(mask[:, t], advantage, following_advantage)
        following_value = torch.where(mask[:, t], values[:, t], following_value)
        advantages[:, t] = following_advantage
    advantages = zero_outside(advantages, mask)
    return advantages, advantages + values


def group_relative(
    rewards: Tensor,
    *,
    group_size: int,
    variant: Literal["grpo", "dr_grpo", "rloo"],
    eps: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Advantage of each response over the others to the same prompt; exactly 0 if all rewards of a group are equal.

    grpo     (r − mean) / (std + eps), std unbiased     Shao et al. 2024 (DeepSeekMath), section 4.1
    dr_grpo  r − mean                                   Liu et al. 2025 (Dr. GRPO), section 3
    rloo     r − mean of the other responses            Ahmadian et al. 2024

    rewards: (N,), the group_size responses to a prompt next to each other. eps: used by grpo only. mask: (N,) bool,
    True on responses that are compared; the others get 0. None: all are. Returns (N,).
    Raises ValueError if group_size < 2, N is not a multiple of group_size, or the variant is unknown.
    """
    if group_size < 2:
        raise ValueError(f"group_relative: expected group_size of at least 2, got {group_size}")
    if rewards.dim() != 1 or rewards.shape[0] % group_size:
        raise ValueError(
            f"group_relative: expected rewards (N,), N a multiple of group_size {group_size}, got "
            f"{tuple(rewards.shape)}"
        )
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    same_shape_as_mask("group_relative", mask, rewards=rewards)
    grouped, mask = at_least_float32(rewards).view(-1, group_size), mask.view(-1, group_size)
    count = mask.sum(dim=1, keepdim=True, dtype=grouped.dtype).clamp(min=1)
    mean = zero_outside(grouped, mask).sum(dim=1, keepdim=True) / count
    centered, others = zero_outside(grouped - mean, mask), (count - 1).clamp(min=1)
    if variant == "grpo":
        advantages = centered / ((centered.square().sum(dim=1, keepdim=True) / others).sqrt() + eps)
    elif variant == "dr_grpo":
        advantages = centered
    elif variant == "rloo":
        advantages = centered * (count / others)
    else:
        raise ValueError(f"group_relative: expected variant grpo, dr_grpo or rloo, got {variant!r}")
    # The mean of equal numbers is rounded, and the remainder divided by eps is not negligible.
    highest, lowest = grouped.masked_fill(~mask, -math.inf), grouped.masked_fill(~mask, math.inf)
    all_equal = highest.amax(dim=1, keepdim=True) <= lowest.amin(dim=1, keepdim=True)
    return torch.where(all_equal, 0.0, advantages).reshape(-1)


def group_decoupled(
    parts: Tensor,
    weights: Tensor,
    *,
    group_size: int,
    eps: float,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Advantage of each response from several rewards, each normalized within its group separately.

    A = S / (std(S) + eps) over all responses, S = Σ_k w_k · A_k, A_k the advantage of `group_relative`'s grpo by reward
    k alone; std unbiased, and the mean of S is 0 already. Rewards of any unit and spread thus count by their weights
    alone, and combinations of rewards with equal sums keep different advantages.
    parts: (N, K), the group_size responses to a prompt next to each other, NaN where a reward does not apply to a
    response; it then adds 0. weights: (K,). sum_over_ranks sums a tensor over all processes; a single process leaves it
    out. Returns (N,). Raises ValueError as group_relative does, and if the shapes do not fit.
    Source: Liu et al. 2026 (GDPO), section 3.1.
    """
    if parts.dim() != 2 or weights.shape != parts.shape[1:]:
        raise ValueError(
            f"group_decoupled: expected parts (N, K) and weights (K,), got {tuple(parts.shape)} and "
            f"{tuple(weights.shape)}"
        )
    relative = [
        group_relative(part, group_size=group_size, variant="grpo", eps=eps, mask=~part.isnan())
        for part in parts.unbind(1)
    ]
    total = torch.stack(relative, dim=1) @ weights.to(relative[0])
    count, squares = sum_over_ranks(torch.stack([total.new_full((), len(total)), total.square().sum()]))
    return total / ((squares / (count - 1)).sqrt() + eps)
