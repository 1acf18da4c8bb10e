"""Rules that detect what is wrong with a run from the history of its metrics.

A history maps a logged name to its values in order. In addition to the logged ones it can contain
    progress         share of training done, 0 to 1, at the latest value of any metric
    max_new_tokens   the length limit of a response
    first/ratio_max  train/ratio_max at the first minibatch of each rollout
A rule returns a description of what it found, or None. A metric with too few values is NaN, so no comparison is True.
"""

from collections.abc import Callable
from itertools import pairwise
from math import nan, sqrt
from statistics import fmean, median
from typing import NamedTuple

History = dict[str, list[float]]
SMOOTH = 5  # rollouts averaged if single ones are too noisy


class Rule(NamedTuple):
    """check: history → what was found, or None. cause, remedy: the likely cause and what to do, for the warning."""

    check: Callable[[History], str | None]
    cause: str
    remedy: str

    def warning(self, finding: str) -> str:
        """The finding, its likely cause and the remedy, in one text."""
        return f"{finding}. Likely cause: {self.cause} {self.remedy}"


def tail(history: History, name: str, count: int) -> list[float]:
    """The latest `count` values; all NaN if there are fewer."""
    values = history.get(name, [])
    return values[-count:] if len(values) >= count else [nan] * count


def latest(history: History, name: str) -> float:
    """The newest value of a metric, NaN if there is none."""
    return tail(history, name, 1)[0]


def start(history: History, name: str) -> float:
    """The first value of a metric, NaN if there is none."""
    return history.get(name, [nan])[0]


def negative_kl(history: History) -> str | None:
    """The KL is below 0 in two rollouts, by more than three standard errors."""
    kl, error = tail(history, "rollout/kl", 2), tail(history, "rollout/kl_stderr", 2)
    if all(k < -max(3 * e, 1e-3) for k, e in zip(kl, error, strict=True)):
        return f"the KL to the reference is {kl[-1]:.3f} ± {error[-1]:.3f} nats, and a KL cannot be negative"
    return None


def stale_ratio(history: History) -> str | None:
    """Before any update on a rollout, the policy is not the one that sampled it."""
    ratio = latest(history, "first/ratio_max")
    if abs(ratio - 1) > 0.05:
        return f"the largest ratio at a rollout's first minibatch is {ratio:.3f}, expected 1"
    return None


def much_clipped(history: History) -> str | None:
    """Over three updates, more than 40% of tokens are clipped."""
    share = fmean(tail(history, "train/clip_fraction", 3))
    return f"{share:.0%} of the updates are clipped, healthy is up to 20%" if share > 0.4 else None


def kl_spike(history: History) -> str | None:
    """An update moved the policy by more than 0.1 nats per token."""
    kl = latest(history, "train/approx_kl")
    return f"an update moved the policy by {kl:.3f} nats per token, healthy is up to 0.05" if kl > 0.1 else None


def saturated(history: History) -> str | None:
    """Within three rollouts, scores vary by less than a tenth of what they did at first."""
    spread = max(tail(history, "rollout/score_std", 3))
    first = start(history, "rollout/score_std")
    if spread < 0.1 * first:
        return f"scores hardly differ: their standard deviation fell from {first:.3f} to {spread:.3f}"
    return None


def longer_and_longer(history: History) -> str | None:
    """Responses approach the limit and end by themselves less often, or doubled to over half of it."""
    lengths, limit = tail(history, "rollout/length", 6), latest(history, "max_new_tokens")
    finished, best = latest(history, "rollout/finished"), max(history.get("rollout/finished", [nan]))
    if lengths[-1] > 0.8 * limit and finished < best - 0.2:
        return (
            f"responses are {lengths[-1]:.0f} tokens long, with a limit of {limit:.0f}, and the share that ends by "
            f"itself fell from {best:.0%} to {finished:.0%}"
        )
    if lengths[-1] > max(2 * min(lengths), 0.5 * limit):
        return f"the length of responses grew from {min(lengths):.0f} to {lengths[-1]:.0f} tokens in 5 rollouts"
    return None


def without_end(history: History) -> str | None:
    """In five rollouts, fewer than half of the responses end by themselves."""
    share = max(tail(history, "rollout/finished", 5))
    return f"only {share:.0%} of responses end by themselves, healthy is above 90%" if share < 0.5 else None


def entropy_collapse(history: History) -> str | None:
    """Entropy fell below a third within the first quarter of training."""
    first, now = start(history, "rollout/entropy"), max(tail(history, "rollout/entropy", 2))
    if now < first / 3 and latest(history, "progress") <= 0.25:
        return f"entropy fell from {first:.3f} to {now:.3f} nats per token in the first quarter of training"
    return None


def equal_groups(history: History) -> str | None:
    """For more than half of the prompts, all responses score the same."""
    share = fmean(tail(history, "rollout/equal_groups", 3))
    return f"for {share:.0%} of the prompts, all responses have the same score" if share > 0.5 else None


def useless_critic(history: History) -> str | None:
    """In ten rollouts, the value model predicted returns no better than their mean."""
    best = max(tail(history, "rollout/explained_variance", 10))
    if best < 0:
        return f"for 10 rollouts the value model explained none of the variance of returns (at best {best:.2f})"
    return None


def over_optimized(history: History) -> str | None:
    """Smoothed gold has fallen from its peak by more than the noise and more than a tenth of its gain, while the score
    rose."""
    gold, score = history.get("rollout/gold", []), history.get("rollout/score", [])
    if min(len(gold), len(score)) < 3 * SMOOTH:  # responses can be judged without being scored
        return None
    smooth = [fmean(gold[i : i + SMOOTH]) for i in range(len(gold) - SMOOTH + 1)]
    peak = max(range(len(smooth)), key=smooth.__getitem__)
    noise = 1.05 * median(abs(b - a) for a, b in pairwise(gold)) / sqrt(SMOOTH)  # standard error of a smoothed value
    then, now = fmean(score[peak : peak + SMOOTH]), fmean(score[-SMOOTH:])
    if smooth[peak] - smooth[-1] > max(4 * noise, 0.1 * (smooth[peak] - smooth[0])) and now > then:
        return (
            f"the score rose from {then:.2f} to {now:.2f} while true quality (gold) fell from {smooth[peak]:.2f} "
            f"to {smooth[-1]:.2f}"
        )
    return None


def far_away(history: History) -> str | None:
    """If true quality is unknown, the KL to the reference is the best sign of over-optimization."""
    kl, score = fmean(tail(history, "rollout/kl", 3)), tail(history, "rollout/score", 10)
    if "rollout/gold" not in history and kl > 10 and fmean(score[-3:]) > fmean(score[:3]):
        return f"the KL to the reference is {kl:.1f} nats per response, healthy is below 10, and the score still rises"
    return None


def both_fall(history: History) -> str | None:
    """Over five updates, better answers lose more probability than the pairs move apart."""
    better, worse = (fmean(tail(history, f"train/{name}_reward", 5)) for name in ("chosen", "rejected"))
    if better < -1 and -better > better - worse:
        return (
            f"the implicit rewards of better and worse answers both fell, to {better:.2f} and {worse:.2f}, "
            "more than they moved apart"
        )
    return None


def nothing_learned(history: History) -> str | None:
    """For pairs only: other stages' train/accuracy is over tokens, and they have no margin."""
    share, progress = fmean(tail(history, "train/accuracy", 10)), latest(history, "progress")
    if "train/margin" in history and progress > 0.3 and share < 0.53:
        return f"after {progress:.0%} of training, {share:.0%} of pairs are ranked correctly, about as by chance"
    return None


def below_length(history: History) -> str | None:
    """Past half of training, the rule "the longer wins", or the shorter, ranks pairs better."""
    longer, accuracy = latest(history, "val/longer_wins"), latest(history, "val/accuracy")
    rule, share = ("longer", longer) if longer > 0.5 else ("shorter", 1 - longer)
    if accuracy < share and latest(history, "progress") >= 0.5:
        return (
            f"{accuracy:.0%} of held-out pairs are ranked correctly, fewer than by "
            f'"the {rule} answer wins" alone, {share:.0%}'
        )
    return None


def miscalibrated(history: History) -> str | None:
    """The calibration error on held-out pairs is above 0.25."""
    error = latest(history, "val/ece")
    return f"the calibration error is {error:.2f}, healthy is below 0.1" if error > 0.25 else None


def learned_length(history: History) -> str | None:
    """Scores of held-out answers correlate with their lengths by more than 0.7."""
    correlation = latest(history, "val/score_length_correlation")
    if abs(correlation) > 0.7:
        return f"the correlation of score and length on held-out answers is {correlation:.2f}, healthy is within ±0.5"
    return None


def overfitted(history: History) -> str | None:
    """The held-out loss rose in three validations in a row, by more than 1%."""
    losses = tail(history, "val/loss", 4)
    if all(a < b for a, b in pairwise(losses)) and losses[-1] > 1.01 * losses[0]:
        return f"val/loss rose for three validations, from {losses[0]:.3f} to {losses[-1]:.3f}"
    return None


RULES = {
    "negative KL": Rule(
        negative_kl,
        "responses are not sampled from the distribution whose log-probabilities are recorded: another temperature, a "
        "filter (top-k, top-p), a shifted mask, or weights older than those being trained.",
        "Compare stage.sampling with how responses are sampled; look for a mask or a position that is off by one.",
    ),
    "ratio off": Rule(
        stale_ratio,
        "the rollout was sampled or recorded with weights or a forward other than those being trained.",
        "Use trainer.precision=32-true to tell rounding from a bug; look at dropout, masks and temperature.",
    ),
    "much clipped": Rule(
        much_clipped,
        "too much is learned from one rollout.",
        "Lower stage.optimizer.lr or stage.epochs, or for ppo set stage.target_kl.",
    ),
    "large update": Rule(
        kl_spike,
        "a step too large for the policy: the learning rate, or the advantages of a few outlying scores.",
        "Lower stage.optimizer.lr or trainer.gradient_clip_val, use more prompts per rollout, or for ppo set "
        "stage.target_kl.",
    ),
    "scores saturated": Rule(
        saturated,
        "the reward model no longer tells responses apart: there is nothing left to learn, or it is being exploited.",
        "Read the samples (TEXT tab); stop earlier, raise stage.beta, or train the reward model on such responses.",
    ),
    "lengths": Rule(
        longer_and_longer,
        "the reward model prefers long answers, or the penalty for an unfinished one is too small.",
        "Look at val/score_length_correlation of stage=rm; lower stage.missing_end_score or raise stage.beta.",
    ),
    "no end": Rule(
        without_end,
        "the policy never learned to end its turn, or max_new_tokens is too small.",
        "Raise stage.sampling.max_new_tokens, or check that the SFT data ends its answers.",
    ),
    "entropy collapse": Rule(
        entropy_collapse,
        "steps so large that the policy settles on one answer before it has tried others.",
        "Lower stage.optimizer.lr, raise stage.beta, or use more prompts per rollout.",
    ),
    "equal groups": Rule(
        equal_groups,
        "the prompts are too easy or too hard for the policy, the reward is too coarse, or the policy hardly varies.",
        "Raise stage.samples_per_prompt, choose other prompts, or raise stage.beta to keep entropy.",
    ),
    "useless critic": Rule(
        useless_critic,
        "the value model learns too slowly, or from other returns than the policy, so its baseline adds noise.",
        "Raise stage.value_lr or stage.value_clip; start it from the reward model; check stage.gamma and stage.lam.",
    ),
    "over-optimization": Rule(
        over_optimized,
        "the policy exploits the reward model's errors.",
        "Raise stage.beta or stop where gold was highest; train the reward model on more or newer comparisons.",
    ),
    "far from the reference": Rule(
        far_away,
        "the policy is where the reward model has no training data, so the score may no longer mean quality.",
        "Raise stage.beta, set a stage.kl_target (ppo), and read the samples (TEXT tab).",
    ),
    "both rewards fall": Rule(
        both_fall,
        "better answers lose probability too, to texts that are in no comparison: beta is too small, or the answers "
        "are unlike what the reference writes.",
        "Raise stage.beta, lower stage.optimizer.lr, or run SFT on the better answers first.",
    ),
    "nothing learned": Rule(
        nothing_learned,
        "the pairs are noise to the model: better and worse are swapped, alike, or truncated before they differ.",
        "Look at the comparisons and at data/truncated in card.json; raise stage.optimizer.lr.",
    ),
    "below the length baseline": Rule(
        below_length,
        "the model is a worse predictor than the length of an answer.",
        "Train longer or on more comparisons; check that chosen and rejected are not swapped.",
    ),
    "badly calibrated": Rule(
        miscalibrated,
        "the model is overconfident, usually after too many epochs on too few comparisons.",
        "Lower trainer.max_epochs or stage.optimizer.lr, or use more comparisons.",
    ),
    "learned length": Rule(
        learned_length,
        "the model scores length rather than content.",
        "Balance the lengths of chosen and rejected; look at val/accuracy_length_matched.",
    ),
    "overfitting": Rule(
        overfitted,
        "the model memorizes the training records.",
        "Stop earlier (trainer.max_epochs, trainer.max_steps), lower stage.optimizer.lr, or use more data.",
    ),
}
