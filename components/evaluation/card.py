"""The report card as rows of text: one table for the terminal and for Markdown."""

from collections.abc import Callable
from typing import Any, NamedTuple

Results = dict[str, Any]
NONE = "–"


class Table(NamedTuple):
    """A heading, the names of the columns, rows of as many cells, and what the figures rest on."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}".replace("-", "−")


def short(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    """In whole percent; a share that would round to none or all, but is not, has a decimal."""
    if value is None:
        return NONE
    extreme = 0 < value < 0.01 or 0.99 < value < 1
    return f"{100 * value:.{1 if extreme else 0}f} %"


def with_interval(value: float | None, interval: list[float] | None, show: Callable = number) -> str:
    """value [low, high]; without the bracket where there is no interval."""
    if value is None or interval is None:
        return show(value)
    low, high = (show(end).removesuffix(" %") for end in interval)
    return f"{show(value)} [{low}, {high}]"


# key, label, how it is shown; gold and score also have an interval
MODEL_ROWS: tuple[tuple[str, str, Callable], ...] = (
    ("gold", "gold score", number),
    ("gold_train", "  on training prompts", number),
    ("correct", "right answer", percent),
    ("correct_train", "  on training prompts", percent),
    ("polite", "polite", percent),
    ("rude", "rude", percent),
    ("score", "reward model's score", number),
    ("score_train", "  on training prompts", number),
    ("finished", "ends by itself", percent),
    ("words", "words", short),
    ("length", "tokens", short),
    ("entropy_per_token", "entropy per token, nats", number),
    ("sequence_entropy", "entropy per response, nats", number),
    ("kl", "KL to sft per response, nats", number),
    ("distinct", "distinct responses", percent),
)


def models_table(results: Results) -> Table:
    """Models side by side, a row per figure that at least one of them has."""
    models, sampling = results["models"], results["sampling"]
    rows = []
    for key, label, show in MODEL_ROWS:
        if all(figures.get(key) is None for figures in models.values()):
            continue
        cells = [with_interval(figures.get(key), figures.get(f"{key}_ci"), show) for figures in models.values()]
        rows.append([label, *cells])
    note = (
        f"{sampling['prompts']} held-out prompts × {sampling['samples_per_prompt']} samples at temperature 1, "
        f"at most {sampling['max_new_tokens']} tokens."
    )
    if sampling["train_prompts"]:
        note += f" Training: {sampling['train_prompts']} × {sampling['train_samples_per_prompt']}."
    if any("[" in cell for row in rows for cell in row):
        note += " [95 % interval over prompts]"
    return Table("Models", ["", *models], rows, note)


def base_lines(results: Results) -> list[str]:
    """What the base model makes of bare questions and of few-shot prompts."""
    base, sampling = results.get("base"), results["sampling"]
    if not base:
        return []
    line = (
        f"Base model after a bare question: asks another {percent(base['asks_another'])}, "
        f"answers {percent(base['answers_bare'])}"
    )
    if base["few_shot"] is not None:
        line += f"; after {base['shots']} solved examples it is right {percent(base['few_shot'])}"
    return [f"{line} ({sampling['prompts']} × {sampling['samples_per_prompt']} samples each)."]


REWARD_ROWS: tuple[tuple[str, str, Callable], ...] = (
    ("accuracy", "accuracy on pairs", percent),
    ("accuracy_length_matched", "  of matched length (±10 %)", percent),
    ("longer_wins", "  of “the longer one wins”", percent),
    ("ece", "calibration error (ECE)", number),
    ("margin", "mean margin", number),
    ("score_length_correlation", "score–length correlation", number),
)


def reward_table(results: Results) -> Table | None:
    """The reward model on rankings, seen and held-out prompts side by side; None if it was not measured."""
    figures = results.get("reward_model")
    if not figures:
        return None
    names = {"": "training prompts", "_heldout": "held-out prompts"}
    endings = [ending for ending in names if f"accuracy{ending}" in figures]
    rows = []
    for key, label, show in REWARD_ROWS:
        cells = [with_interval(figures[f"{key}{e}"], figures.get(f"{key}_ci{e}"), show) for e in endings]
        rows.append([label, *cells])
    for key, label in (("pairs", "pairs"), ("pairs_length_matched", "  of matched length"), ("prompts", "prompts")):
        rows.append([label, *(f"{figures[f'{key}{e}']:,}" for e in endings)])
    return Table("Reward model", ["", *(names[e] for e in endings)], rows, "[95 % interval over prompts]")


def minutes_line(results: Results) -> str:
    """Minutes of every stage and their sum; "" where none is known."""
    minutes = results.get("minutes") or {}
    parts = [f"{stage} {spent:.1f}" for stage, spent in minutes.items()]
    return f"Minutes: {', '.join(parts)}; together {sum(minutes.values()):.1f}." if parts else ""


def headline(results: Results) -> str:
    """One sentence: how far the last model got from the one before it."""
    models = results["models"]
    key = "gold" if all("gold" in figures for figures in models.values()) else "score"
    if len(models) < 2 or any(key not in figures for figures in models.values()):
        return ""
    (before, first), (after, last) = list(models.items())[-2:]
    word = "gold score" if key == "gold" else "reward model's score"
    sentence = f"{before} → {after}: {word} {number(first[key])} → {number(last[key])} on held-out prompts"
    if last.get("kl") is not None:
        sentence += f", at {number(last['kl'])} nats of KL from sft"
    return f"{sentence}."
