"""What must hold before the first update of an on-policy stage."""

from torch import Tensor


class SelfCheckError(ValueError):
    """A start-up self-check failed: training on would optimise something else than it says."""


def check_first_forward(logprobs: Tensor, old_logprobs: Tensor, reference: Tensor | None, mask: Tensor, *, exact: bool):
    """Asserts, before any update, that the ratio to the old policy is 1 and (if given) the KL to the reference 0.

    exact: fp32 forwards, held to 1e-4; otherwise (bf16, fp16) 2e-2. Returns (max |ratio − 1|, max |log-ratio|).
    Raises SelfCheckError naming the likely causes.
    """
    tolerance = 1e-4 if exact else 2e-2
    deviation = float((logprobs - old_logprobs)[mask].exp().sub(1).abs().max())
    if deviation > tolerance:
        raise SelfCheckError(
            f"self-check: max |ratio − 1| before the first update is {deviation:.2e}, expected below {tolerance:.0e}. "
            "Rollout and training forwards disagree: dropout, positions, masks, temperature or precision"
        )
    drift = 0.0
    if reference is not None:
        drift = float((logprobs - reference)[mask].abs().max())
        if drift > tolerance:
            raise SelfCheckError(
                f"self-check: the policy differs from its reference before the first update (log-ratio {drift:.2e}, "
                f"expected below {tolerance:.0e}). Do both load the same artifact (artifacts.sft)?"
            )
    return deviation, drift
