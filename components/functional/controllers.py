"""Rules that adjust a coefficient between iterations."""


def adaptive_beta(beta: float, kl: float, episodes: int, *, target: float, horizon: int) -> float:
    """Next KL coefficient: beta·(1 + e·min(episodes/horizon, 1)),  e = clip(kl/target − 1, −0.2, 0.2).

    The bound, which the source does not need, since its horizon is far longer than a batch, keeps beta above 0.

    kl: each response's KL to the reference, summed over its tokens, mean over the batch, nats. episodes: responses
    in the batch. target: nats. horizon: episodes. Raises ValueError if target or horizon is not above 0.
    Source: Ziegler et al. 2019, section 2.2.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"adaptive_beta: expected target and horizon above 0, got {target} and {horizon}")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * min(episodes, horizon) / horizon)
