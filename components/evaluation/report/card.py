"""The report card as rows of text: one table for the terminal and for Markdown."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Results = dict[str, Any]
NONE = "–"


class Table(NamedTuple):
    """A title, the column names, rows with one cell per column, and a note on what the metrics are based on."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def number(value: float | None) -> str:
    """Two decimals, with a true minus sign; a dash for None."""
    return NONE if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no −0.00


def short(value: float | None) -> str:
    """One decimal; a dash for None."""
    return NONE if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    """In whole percent; a share that would round to 0% or 100% without being either gets a decimal."""
    if value is None:
        return NONE
    extreme = 0 < value < 0.01 or 0.99 < value < 1
    return f"{100 * value:.{1 if extreme else 0}f}%".replace("-", "−")


def with_interval(value: float | None, interval: list[float] | None, show: Callable = number) -> str:
    """value [low, high]; without brackets if there is no interval."""
    if value is None or interval is None:
        return show(value)
    low, high = (show(end).removesuffix("%") for end in interval)
    return f"{show(value)} [{low}, {high}]"


# key, label, formatter; gold, score and win rate also have an interval
MODEL_ROWS: tuple[tuple[str, str, Callable], ...] = (
    ("gold", "gold score", number),
    ("gold_train", "  on training prompts", number),
    ("correct", "correct answer", percent),
    ("correct_train", "  on training prompts", percent),
    ("greedy_correct", "correct likeliest answer", percent),
    ("greedy_correct_train", "  on training prompts", percent),
    ("wrong_name", "names someone else", percent),
    ("wrong_name_train", "  on training prompts", percent),
    ("win_rate", "wins against sft", percent),
    ("polite", "polite", percent),
    ("rude", "rude", percent),
    ("score", "reward model's score", number),
    ("score_train", "  on training prompts", number),
    ("proxy_score", "score by the model trained against", number),
    ("finished", "ends by itself", percent),
    ("words", "words", short),
    ("length", "tokens", short),
    ("entropy_per_token", "entropy per token, nats", number),
    ("sequence_entropy", "entropy per response, nats", number),
    ("kl", "KL to sft per response, nats", number),
    ("kl_train", "  on training prompts", number),
    ("distinct", "distinct responses", percent),
    ("bits_per_byte", "bits per byte of pretraining text", number),
)
# used when the models do not fit side by side: most informative first; the last columns are dropped to fit
SHORT_COLUMNS: tuple[tuple[str, str, Callable], ...] = (
    ("gold", "gold score", number),
    ("score", "score", number),
    ("correct", "correct", percent),
    ("win_rate", "beats sft", percent),
    ("kl", "KL", number),
    ("entropy_per_token", "entropy", number),
    ("polite", "polite", percent),
    ("rude", "rude", percent),
    ("wrong_name", "wrong name", percent),
    ("bits_per_byte", "bits/byte", number),
    ("distinct", "distinct", percent),
    ("finished", "ends", percent),
    ("length", "tokens", short),
)


def models_table(results: Results) -> Table:
    """The models side by side, with a row for each metric that at least one of them has."""
    models = results["models"]
    rows = [[label, *cells] for label, cells in _cells(models, MODEL_ROWS)]
    return Table("Models", ["", *models], rows, _note(results, rows))


def short_models_table(results: Results, columns: int) -> Table:
    """A row per model, with the first `columns` of the SHORT_COLUMNS that the models have; score only without gold."""
    models = results["models"]
    judged = any(metrics.get("gold") is not None for metrics in models.values())
    wanted = [column for column in SHORT_COLUMNS if not (judged and column[0] == "score")]
    shown = _cells(models, wanted)[:columns]
    rows = [[name, *(cells[i] for _, cells in shown)] for i, name in enumerate(models)]
    note = _note(results, rows) + " KL per response, entropy per token, nats. All metrics: report.html"
    return Table("Models", ["", *(label for label, _ in shown)], rows, note)


def _cells(models: Mapping[str, Results], wanted: Iterable[tuple[str, str, Callable]]) -> list[tuple[str, list[str]]]:
    """(label, one cell per model) for every wanted metric that at least one model has."""
    return [
        (label, [with_interval(metrics.get(key), metrics.get(f"{key}_ci"), show) for metrics in models.values()])
        for key, label, show in wanted
        if any(metrics.get(key) is not None for metrics in models.values())
    ]


def _note(results: Results, rows: list[list[str]]) -> str:
    """What the models' metrics are based on."""
    sampling = results["sampling"]
    note = (
        f"{sampling['prompts']} held-out prompts × {sampling['samples_per_prompt']} samples at temperature 1, "
        f"at most {sampling['max_new_tokens']} tokens."
    )
    if sampling["train_prompts"]:
        note += f" Training: {sampling['train_prompts']} × {sampling['train_samples_per_prompt']}."
    if any("[" in cell for row in rows for cell in row):
        note += " [95% interval over prompts]"
    return note


def answering(results: Results) -> dict[str, Results]:
    """The models that answered: all but the best-of-n row, which chooses among another model's answers."""
    return {name: metrics for name, metrics in results["models"].items() if "samples" in metrics}


def chatting(results: Results) -> dict[str, Results]:
    """The models that answer a chat prompt: all but the base model."""
    return {name: metrics for name, metrics in answering(results).items() if name != "base"}


def base_lines(results: Results) -> list[str]:
    """How the base model responds to bare questions and to few-shot prompts."""
    base, sampling = results.get("base"), results["sampling"]
    if not base:
        return []
    line = (
        f"Base model: after a bare question it asks another {percent(base['asks_another'])} of the time "
        f"and answers {percent(base['answers_bare'])}"
    )
    if base["few_shot"] is not None:
        line += f"; after {base['shots']} solved examples it is correct {percent(base['few_shot'])}"
    return [f"{line} ({sampling['prompts']} × {sampling['samples_per_prompt']} samples each)."]


def crowd_line(results: Results) -> str:
    """The quality of the demonstrations that the models imitate; "" if unknown."""
    crowd = results.get("crowd")
    if not crowd:
        return ""
    correct, wrong = percent(crowd["correct"]), percent(crowd["wrong_name"])
    return f"The crowd's demonstrations: {correct} correct, {wrong} name someone else ({crowd['answers']:,} answers)."


def minutes_line(results: Results) -> str:
    """Minutes per stage and in total; "" if none are known."""
    minutes = results.get("minutes") or {}
    parts = [f"{stage} {spent:.1f}" for stage, spent in minutes.items()]
    return f"Minutes: {', '.join(parts)}; total {sum(minutes.values()):.1f}." if parts else ""


def quality_key(models: dict[str, Results]) -> str:
    """The metric that models are compared by: gold if all have it, else the reward model's score."""
    return "gold" if all("gold" in metrics for metrics in models.values()) else "score"


def best(results: Results) -> str:
    """The name of the best model that answers; on a tie, or without a metric, the last one."""
    models = answering(results)
    key = quality_key(models)
    return max(reversed(models), key=lambda name: models[name].get(key, 0.0))


def headline(results: Results) -> str:
    """One sentence: how the last model compares with the one before it, or, with several methods, all of them."""
    models = answering(results)
    key = quality_key(models)
    if len(models) < 2 or any(key not in metrics for metrics in models.values()):
        return ""
    word = "gold score" if key == "gold" else "reward model's score"
    if len(models) > 3:
        reached = [
            f"{name} {number(f[key])}" + (f" (KL {number(f['kl'])})" if f.get("kl") else "")
            for name, f in models.items()
        ]
        return f"{word.capitalize()} on held-out prompts (nats of KL from sft): {', '.join(reached)}."
    (before, first), (after, last) = list(models.items())[-2:]
    sentence = f"{before} → {after}: {word} {number(first[key])} → {number(last[key])} on held-out prompts"
    if last.get("kl") is not None:
        sentence += f", at {number(last['kl'])} nats of KL from sft"
    return f"{sentence}."
