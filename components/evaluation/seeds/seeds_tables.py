"""The summary of a sweep as tables, for the terminal and for Markdown; each table only if it has something to show."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from components.evaluation.measure.over_seeds import half_width, most_seeds
from components.evaluation.report.card import MODEL_ROWS, NONE, Table, number, percent, short
from components.evaluation.report.tables import AGAINST_COLUMNS, AGAINST_NOTE, against_rows
from components.evaluation.report.technique_rows import Figures, table_of

Summary = Mapping[str, Any]
BETWEEN = 3  # characters between two columns in the terminal
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def tables(summary: Summary) -> Iterator[Table]:
    """All tables of one group's summary (seeds_summary.summarize)."""
    makers = {maker: "report" for maker in (models, against, bake_off, claims, best_of_n, majority)}
    makers |= {maker: "rewards" for maker in (rewards, techniques)}
    makers |= {optimum: "optimum", overoptimization: "overoptimization", scaling: "scaling"}
    for maker, kind in makers.items():
        table = maker(summary)
        if table is not None:
            seeds = most_seeds(summary[kind])
            over = f"Mean ± half of the 95% interval over {seeds} seeds (Student's t); no interval if all seeds agree."
            yield table._replace(note=f"{over if seeds > 1 else 'One seed: no intervals.'} {table.note}".strip())


def fitting(table: Table, width: int) -> Iterator[Table]:
    """The table in parts of at most `width` characters, each with the first column; the last part has the note.

    A column takes its longest cell plus the gap; a column that is too wide on its own becomes a part of its own.
    """
    names = [table.title, *table.columns[1:]]
    widths = [BETWEEN + max(len(row[i]) for row in [names, *table.rows]) for i in range(len(names))]
    parts: list[list[int]] = [[]]
    for i in range(1, len(names)):
        if parts[-1] and widths[0] + sum(widths[p] for p in [*parts[-1], i]) > width:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        columns, rows = ([[line[p] for p in (0, *part)] for line in lines] for lines in ([table.columns], table.rows))
        yield Table(table.title, columns[0], rows, table.note if part is parts[-1] else "")


def cell(spread: Mapping[str, Any] | None, show: Callable[[float | None], str] = number) -> str:
    """mean ± half the width of its interval; the mean alone if there is none, a dash for None."""
    if spread is None:
        return NONE
    half = half_width(spread)
    if half is None:
        return show(spread["mean"])
    middle, unit = show(spread["mean"]), ""
    if middle.endswith("%"):
        middle, unit = middle.removesuffix("%"), "%"
    return f"{middle} ± {show(half).removesuffix('%')}{unit}"


def count(value: float | None) -> str:
    """A whole number with separators of thousands; a dash for None."""
    return NONE if value is None else f"{value:,.0f}"


def power(value: float | None) -> str:
    """Two significant digits and a power of ten: 1.2·10¹³."""
    if value is None:
        return NONE
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}·10{str(int(exponent)).translate(SUPERSCRIPTS)}" if value else "0"


def models(summary: Summary) -> Table | None:
    """Every model's metrics over seeds."""
    measured = _get(summary, "report", "models") or {}
    rows = [
        [label, *(cell(metrics.get(key), show) for metrics in measured.values())]
        for key, label, show in MODEL_ROWS
        if any(key in metrics for metrics in measured.values())
    ]
    return Table("Models over seeds", ["", *measured], rows) if rows else None


def against(summary: Summary) -> Table | None:
    """Every model against sft and against demonstrations."""
    rows = against_rows(summary.get("report") or {}, lambda metrics, key, show: cell(metrics.get(key), show))
    names = [label for _, label, _ in AGAINST_COLUMNS]
    return Table("Head to head over seeds", ["", *names], rows, AGAINST_NOTE) if rows else None


def bake_off(summary: Summary) -> Table | None:
    """A row per method that starts from the SFT model: its results and its cost."""
    measured = _get(summary, "report", "models") or {}
    names = [name for name in measured if name != "base"]
    if len(names) < 3 or any("gold" not in measured[name] for name in names):
        return None
    rows = []
    for name in names:
        metrics, spent = measured[name], _get(summary, "report", "budget", name) or {}
        gains = summary["gains"].get(name, {})
        rows.append(
            [
                name,
                cell(metrics["gold"]),
                cell(gains.get("sft")),
                cell(gains.get("ppo")),
                cell(metrics.get("correct"), percent),
                cell(metrics.get("kl")),
                cell(metrics.get("entropy_per_token")),
                cell(metrics.get("win_rate"), percent),
                *(
                    show((spent.get(key) or {}).get("mean"))
                    for key, show in (("generated_tokens", count), ("flops", power), ("minutes", short))
                ),
            ]
        )
    columns = [
        "",
        "gold",
        "− sft",
        "− ppo",
        "correct",
        "KL",
        "entropy",
        "beats sft",
        "sampled tokens",
        "FLOPs",
        "minutes",
    ]
    note = "Differences in gold are paired by seed. KL to sft in nats per response, entropy in nats per token."
    judge = _get(summary, "report", "budget", "reward", "minutes")
    if judge:
        note += f" The reward model, which only methods with rollouts use, took another {short(judge['mean'])} minutes."
    return Table("Bake-off", columns, rows, note)


CLAIMS: tuple[tuple[str, tuple[str, ...], Callable], ...] = (
    ("base: answers a bare question", ("base", "answers_bare"), percent),
    ("base: asks another", ("base", "asks_another"), percent),
    ("base: correct after solved examples", ("base", "few_shot"), percent),
    ("reward model: accuracy, training prompts", ("reward_model", "accuracy"), percent),
    ("reward model: accuracy, held-out prompts", ("reward_model", "accuracy_heldout"), percent),
    ("reward model: ECE, training prompts", ("reward_model", "ece"), number),
    ("reward model: ECE, held-out prompts", ("reward_model", "ece_heldout"), number),
    ("reward model: at matched lengths, held-out", ("reward_model", "accuracy_length_matched_heldout"), percent),
    ("reward model: the longer wins, held-out", ("reward_model", "longer_wins_heldout"), percent),
    ("reward model: above that, held-out", ("reward_model", "over_longer_heldout"), percent),
    ("trained against: accuracy, held-out prompts", ("proxy", "accuracy_heldout"), percent),
    ("trained against: at matched lengths, held-out", ("proxy", "accuracy_length_matched_heldout"), percent),
    ("trained against: above the longer wins, held-out", ("proxy", "over_longer_heldout"), percent),
    ("discriminates: true statement scored highest", ("choice", "reward_model"), percent),
    ("  on training prompts", ("choice", "reward_model_train"), percent),
    ("generates: sft's likeliest answer correct", ("models", "sft", "greedy_correct"), percent),
    ("  on training prompts", ("models", "sft", "greedy_correct_train"), percent),
)


def claims(summary: Summary) -> Table | None:
    """The base model's behavior and the reward model's accuracy."""
    rows = [
        [label, cell(spread, show)]
        for label, path, show in CLAIMS
        if (spread := _get(summary, "report", *path)) is not None
    ]
    return Table("Base and reward model over seeds", ["", "share"], rows) if rows else None


def best_of_n(summary: Summary) -> Table | None:
    """Best-of-n of sft by the reward model."""
    curve = _get(summary, "report", "best_of_n")
    if not curve:
        return None
    names = {"kl": "KL, nats", "score": "score", "gold": "gold"}
    names = {name: label for name, label in names.items() if name in curve}
    rows = [
        [f"{n['mean']:.0f}", number(curve["kl"][i]["mean"]), *(cell(curve[name][i]) for name in list(names)[1:])]
        for i, n in enumerate(curve["n"])
    ]
    return Table("Best of n of sft", ["n", *names.values()], rows, "KL is analytic: ln n − (n−1)/n.")


def majority(summary: Summary) -> Table | None:
    """sft's majority vote."""
    curve = _get(summary, "report", "majority")
    if not curve:
        return None
    rows = [[f"{k['mean']:.0f}", cell(share, percent)] for k, share in zip(curve["k"], curve["correct"], strict=True)]
    return Table("Majority vote of sft", ["answers", "correct"], rows)


def rewards(summary: Summary) -> Table | None:
    """A row per model: what each reward function says of its responses, sampled and greedy, and how it behaves."""
    measured = _get(summary, "rewards", "models")
    if not measured:
        return None
    names = list(dict.fromkeys(n for metrics in measured.values() for n in metrics["sampled"].get("parts", {})))
    rows = []
    for model, metrics in measured.items():
        sampled, greedy = (metrics[kind].get("parts") for kind in ("sampled", "greedy"))
        rows.append(
            [
                model,
                *(cell(_get(sampled, name, "mean"), percent) for name in names),
                *(cell(_get(summary, "rewards", "gains", model, name), percent) for name in names[:1]),
                *(cell(_get(greedy, name, "mean"), percent) for name in names),
                *(cell(_get(metrics, "behavior", key)) for key in ("entropy", "kl")),
                cell(metrics["sampled"]["length"], short),
                short(_get(summary, "rewards", "minutes", model, "mean")),
            ]
        )
    columns = ["", *names, *(f"{name} − sft" for name in names[:1]), *(f"{name}, greedy" for name in names)]
    note = "Responses to held-out prompts, at temperature 1 if not greedy. Differences are paired by seed. Entropy in "
    note += "nats per token, KL to sft in nats per response."
    return Table("Rewards", [*columns, "entropy", "KL", "tokens", "minutes"], rows, note)


def techniques(summary: Summary) -> Table | None:
    """A row per model, task and technique: its score, its gain on the same prompts, and the tokens that it takes."""
    models = _get(summary, "rewards", "models") or {}
    measured = {name: one["techniques"] for name, one in models.items() if "techniques" in one}

    def cells(one: Figures) -> list[str]:
        tokens = [count(one[key]["mean"]) for key in ("read", "sampled")]
        return [cell(one["score"], percent), cell(one.get("gain"), percent), *tokens]

    note = "Gains are over one sample of the same prompts, tokens per prompt."
    return table_of(measured, ("Techniques", ""), note, cells) if measured else None


def optimum(summary: Summary) -> Table | None:
    """How close every method comes to the exact optimum."""
    methods = _get(summary, "optimum", "methods")
    if not methods:
        return None
    columns = {
        "fraction_of_optimum": "fraction of optimum",
        "objective": "objective",
        "reward": "reward",
        "kl": "KL",
        "total_variation": "total variation",
    }
    everyone = {**methods, "optimum": _get(summary, "optimum", "optimum") or {}}
    rows = [[name, *(cell(metrics.get(key), _fine) for key in columns)] for name, metrics in everyone.items()]
    return Table("The exact optimum", ["", *columns.values()], rows, "Enumerated, not sampled.")


def overoptimization(summary: Summary) -> Table | None:
    """Gold at its peak and at the end, for every β."""
    study = summary.get("overoptimization")
    if not study:
        return None
    rows = []
    for label, run in study["runs"].items():
        turning, final, fit = run["turning"], run["final"], run.get("fit") or {}
        turned = turning["turned"]
        rows.append(
            [
                f"β {label}",
                cell(run["curve"]["gold"][0]),
                cell(turning["gold"]),
                cell(turning["sqrt_kl"]),
                f"{turned['mean'] * turned['n']:.0f} of {turned['n']}",
                cell(final["gold"]),
                cell(final["kl"], short),
                cell(final["proxy"]),
                cell(fit.get("r2")),
            ]
        )
    columns = [
        "PPO",
        "gold at the start",
        "at its peak",
        "√KL there",
        "turned",
        "at the end",
        "KL",
        "proxy",
        "R² of law",
    ]
    best = study["recommended"]
    note = f"Recommended: β {best['beta']:g}, gold at the end {cell(best['gold'])}. "
    note += "Law: gain = d(α − β_gold ln d), d = √KL."
    return Table("Over-optimization", columns, rows, note)


def scaling(summary: Summary) -> Table | None:
    """Accuracy of reward models by the number of comparisons."""
    sizes = summary.get("scaling")
    if not sizes:
        return None
    rows = [
        [f"{int(size):,}", cell(metrics.get("accuracy"), percent), cell(metrics.get("ece"))]
        for size, metrics in sizes.items()
    ]
    note = "On held-out questions; four ranked answers per comparison."
    return Table("Reward model by comparisons", ["comparisons", "accuracy", "ECE"], rows, note)


def _get(summary: Any, *path: str) -> Any:
    for key in path:
        summary = (summary or {}).get(key)
    return summary


def _fine(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}".replace("-", "−")
