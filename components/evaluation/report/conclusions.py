"""What to conclude from each picture of the report: a sentence or two, made from the figures and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from components.evaluation.report import outcome
from components.evaluation.report.card import chatting, number, percent, quality_key, with_interval
from components.evaluation.report.curves import Curve

Results = dict[str, Any]
Curves = Mapping[str, Mapping[str, Curve]]
WINDOW = 5  # rollouts that are averaged at the start and at the end
SURE = 0.02  # a smaller mean difference of confidence and accuracy is none
ROLLOUTS = {"rollout/score": "score", "rollout/gold": "gold score", "rollout/kl": "KL", "rollout/entropy": "entropy"}


def quality(results: Results, curves: Curves) -> list[str]:
    """Who leads, who won, and whether it carries over to prompts that were not trained on."""
    key = quality_key(results["models"])
    name, figures = max(results["models"].items(), key=lambda item: item[1][key])
    told = [outcome.leader(results), *outcome.winners(results)]
    if figures.get(f"{key}_train") is not None:
        gap = figures[f"{key}_train"] - figures[key]
        less = f"{number(abs(gap))} {'more' if gap > 0 else 'less'} than" if abs(gap) >= outcome.LEAST else "as much as"
        told.append(f"On training prompts {name} reaches {number(figures[f'{key}_train'])}, {less} on held-out ones.")
    return told


def best_of_n(results: Results, curves: Curves) -> list[str]:
    """How far choosing goes, where it turns, and how training compares at the same KL."""
    curve = results["best_of_n"]
    key = "gold" if "gold" in curve else "score"
    word = "gold score" if key == "gold" else "reward model's score"
    counts, values = curve["n"], curve[key]
    top = max(range(len(values)), key=values.__getitem__)
    if top == 0:
        told = [f"Choosing by the reward model does not raise the {word}: it is highest without a choice, at n = 1."]
    else:
        told = [
            f"Choosing by the reward model raises the {word} from {number(values[0])} at n = 1 to "
            f"{number(values[top])} at n = {counts[top]}."
        ]
    if top < len(values) - 1:
        ends = (curve.get(f"{key}_ci") or [None] * len(values))[top]
        real = ends is not None and values[-1] < ends[0]
        told.append(
            f"Beyond that it falls to {number(values[-1])} while the reward model's score still goes from "
            f"{number(curve['score'][top])} to {number(curve['score'][-1])}: "
            + ("the choice exploits the reward model's mistakes." if real else "a fall within the interval.")
        )
    return told + [_against_choosing(name, figures, curve, key) for name, figures in _moved(results, key)]


def _moved(results: Results, key: str) -> list[tuple[str, Results]]:
    return [(n, f) for n, f in chatting(results).items() if (f.get("kl") or 0) > 0 and f.get(key) is not None]


def _against_choosing(name: str, figures: Results, curve: Results, key: str) -> str:
    kl, reached = figures["kl"], figures[key]
    if kl > curve["kl"][-1]:
        most = max(curve[key])
        side = "above" if reached > most else "not above"
        return (
            f"{name} went further from sft than any n here (KL {number(kl)}) and reaches {number(reached)}, "
            f"{side} the highest of them."
        )
    place = next(i for i, one in enumerate(curve["kl"]) if one >= kl)
    low, high = max(place - 1, 0), place
    share = 0.0 if high == low else (kl - curve["kl"][low]) / (curve["kl"][high] - curve["kl"][low])
    chosen = curve[key][low] + share * (curve[key][high] - curve[key][low])
    better = "more than choosing" if reached > chosen else "no more than choosing"
    at = f"At the KL of {name} ({number(kl)})"
    return f"{at} choosing reaches about {number(chosen)}, {name} {number(reached)}: {better}."


def majority(results: Results, curves: Curves) -> list[str]:
    """Whether voting helps, and how it compares with the reward model's favorite and with one answer."""
    curve, best = results["majority"], results.get("best_of_n") or {}
    most, last = curve["k"][-1], curve["correct"][-1]
    share = with_interval(last, curve["correct_ci"][-1], percent)
    if curve["correct_ci"][-1][0] > curve["correct"][0]:
        verdict = "voting helps"
    elif curve["correct_ci"][-1][1] < curve["correct"][0]:
        verdict = "voting harms"
    else:
        verdict = "no clear gain from voting"
    told = [f"The vote of {most} answers is right {share}, a single one {percent(curve['correct'][0])}: {verdict}."]
    counts = [n for n in best.get("n", ()) if n <= most] if "correct" in best else []
    if counts:
        favorite = best["correct"][best["n"].index(counts[-1])]
        told.append(
            f"The reward model's favorite of {counts[-1]} is right {percent(favorite)}, "
            f"{_often(favorite, last)} the vote."
        )
    for name, figures in chatting(results).items():
        if name != "sft" and figures.get("correct") is not None:
            often = _often(figures["correct"], last)
            told.append(f"One answer of {name} is right {percent(figures['correct'])}, {often} the vote of sft.")
    return told


def _often(one: float, other: float) -> str:
    if abs(one - other) < outcome.LEAST:
        return "about as often as"
    return "more often than" if one > other else "less often than"


def choice(results: Results, curves: Curves) -> list[str]:
    """Whether the reward model knows what is true, and whether it knows more than the models say."""
    chosen = results["choice"]
    low, high = chosen["reward_model_ci"]
    share = with_interval(chosen["reward_model"], chosen["reward_model_ci"], percent)
    knows = (
        "more than chance"
        if low > chosen["chance"]
        else "less than chance"
        if high < chosen["chance"]
        else "no more than chance can do"
    )
    told = [
        f"On held-out questions the reward model finds the true statement {share}, {knows} "
        f"({percent(chosen['chance'])})."
    ]
    if "reward_model_train" in chosen:
        told.append(f"On training questions it finds {percent(chosen['reward_model_train'])}.")
    said = {name: figures["greedy_correct"] for name, figures in chatting(results).items()}
    above = [f"{name} ({percent(share)})" for name, share in said.items() if share > high]
    if above:
        told.append(f"It knows less than {' and '.join(above)} can say, so it cannot teach them what is true here.")
    return told


def reward_model(results: Results, curves: Curves) -> list[str]:
    """How good it is on new prompts, how much of that it lost from training, and whether it is too sure."""
    figures = results["reward_model"]
    ending = "_heldout" if "accuracy_heldout" in figures else ""
    where = "held-out" if ending else "training"
    low, high = figures[f"accuracy_ci{ending}"]
    share = with_interval(figures[f"accuracy{ending}"], [low, high], percent)
    better = "better than a coin" if low > 0.5 else "worse than a coin" if high < 0.5 else "not told apart from a coin"
    told = [f"On pairs of {where} prompts it ranks {share} correctly: {better}."]
    if ending and "accuracy" in figures:
        lost = figures["accuracy"] - figures["accuracy_heldout"]
        if lost >= outcome.LEAST:
            told.append(f"That is {_points(lost)} less than on training prompts, {percent(figures['accuracy'])}.")
        else:
            told.append(f"That is no less than on training prompts, {percent(figures['accuracy'])}.")
    full = [one for one in figures[f"reliability{ending}"] if one["pairs"]]
    total = sum(one["pairs"] for one in full)
    gap = sum(one["pairs"] * (one["confidence"] - one["accuracy"]) for one in full) / total
    sure = (
        "about as sure as it should be" if abs(gap) < SURE else "too sure" if gap > 0 else "less sure than it could be"
    )
    told.append(
        f"It is {sure}: its mean confidence is {_points(abs(gap))} {'above' if gap > 0 else 'below'} its accuracy."
    )
    return told


def _points(share: float) -> str:
    return f"{100 * share:.0f} points"


def learning(results: Results, curves: Curves) -> list[str]:
    """What moved during RL and where the validation losses ended."""
    told = []
    for stage, found in curves.items():
        measured = {word: found[tag].values for tag, word in ROLLOUTS.items() if tag in found}
        moved = {word: _ends(values) for word, values in measured.items() if len(values) > 1}
        if moved:
            listed = ", ".join(f"{word} {number(a)} → {number(b)}" for word, (a, b) in moved.items())
            told.append(f"Over the rollouts of {stage}: {listed}.")
            told += _exploited(stage, moved)
        elif "val/loss" in found:
            told.append(_loss(stage, found["val/loss"]))
    return told or ["Nothing was measured twice, so nothing can be said of how it moves."]


def _ends(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last few of two or more values, halves where there are few."""
    few = min(WINDOW, len(values) // 2)
    return sum(values[:few]) / few, sum(values[-few:]) / few


def _exploited(stage: str, moved: Mapping[str, tuple[float, float]]) -> list[str]:
    if "score" not in moved or "gold score" not in moved:
        return []
    rise, truly = (after - before for before, after in (moved["score"], moved["gold score"]))
    if rise < outcome.LEAST:
        return ["The score did not rise, so the policy has not learned what the reward model likes."]
    if truly <= -outcome.LEAST:
        return [f"The score rose while the gold score fell: {stage} exploits the reward model's mistakes."]
    if truly >= outcome.LEAST:
        return ["Both scores rose: what the reward model likes more is truly better."]
    return ["The score rose and the gold score did not: what the reward model likes more is no better."]


def _loss(stage: str, curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    if len(curve.values) == 1:
        return f"The validation loss of {stage} was measured once, {number(first)}: no curve yet."
    place = min(range(len(curve.values)), key=curve.values.__getitem__)
    lowest = curve.values[place]
    told = f"The validation loss of {stage} went from {number(first)} to {number(last)}"
    if last - lowest >= outcome.LEAST:
        return f"{told}; it was lowest at step {curve.steps[place]:,} ({number(lowest)}), and more steps only overfit."
    still = curve.values[-2] - last >= outcome.LEAST
    return f"{told} and was still falling: more steps would help." if still else f"{told}."


def minutes(results: Results, curves: Curves) -> list[str]:
    """Where the time went."""
    spent = results["minutes"]
    total = sum(spent.values())
    stage = max(spent, key=spent.__getitem__)
    share = f" ({percent(spent[stage] / total)})" if total else ""
    return [f"{stage} took the most time: {spent[stage]:.1f} of {total:.1f} minutes{share}."]


CONCLUSIONS: dict[str, Callable[[Results, Curves], list[str]]] = {
    "quality": quality,
    "best_of_n": best_of_n,
    "majority": majority,
    "choice": choice,
    "reward_model": reward_model,
    "curves": learning,
    "minutes": minutes,
}
