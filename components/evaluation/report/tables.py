"""The report's tables other than that of the models: many answers to one prompt, the reward model, budgets."""

from collections.abc import Callable

from components.evaluation.report.card import NONE, Results, Table, chatting, number, percent, short, with_interval


def best_of_n_table(results: Results) -> Table | None:
    """Best-of-n by n; None if it was not measured."""
    curve = results.get("best_of_n")
    if not curve:
        return None
    wanted = [("kl", "KL to sft, nats", number), ("score", "reward model's score", number)]
    wanted += [("gold", "gold score", number), ("correct", "correct answer", percent)]
    columns = [(label, curve[key], curve.get(f"{key}_ci"), show) for key, label, show in wanted if key in curve]
    rows = [
        [str(n), *(with_interval(v[i], ci and ci[i], show) for _, v, ci, show in columns)]
        for i, n in enumerate(curve["n"])
    ]
    names = [label for label, *_ in columns]
    trained = results.get("best_of_n_train")
    if trained:
        on_training = dict(zip(trained["n"], trained["gold" if "gold" in trained else "score"], strict=True))
        rows = [[*row, number(on_training.get(n))] for row, n in zip(rows, curve["n"], strict=True)]
        names.append(f"{'gold' if 'gold' in trained else 'score'} on training prompts")
    sampling = results["sampling"]
    note = (
        f"The answer that the reward model scores highest among n answers of sft; an unbiased estimate from "
        f"{sampling['best_of']} answers to each of {sampling['prompts']} held-out prompts. KL is ln n − (n−1)/n. "
        "[95% interval over prompts]"
    )
    return Table("Best of n", ["n", *names], rows, note)


def majority_table(results: Results) -> Table | None:
    """Majority vote by the number of answers; None if it was not measured."""
    curve = results.get("majority")
    if not curve:
        return None
    cells = [with_interval(v, ci, percent) for v, ci in zip(curve["correct"], curve["correct_ci"], strict=True)]
    rows = [[str(k), cell] for k, cell in zip(curve["k"], cells, strict=True)]
    note = "The value that most of k answers of sft give, on held-out questions. [95% interval over questions]"
    return Table("Majority vote", ["k", "correct answer"], rows, note)


def choice_table(results: Results) -> Table | None:
    """Choosing the true statement against generating it, on held-out and training questions; None if not measured."""
    chosen = results.get("choice")
    if not chosen:
        return None
    endings = [ending for ending in ("", "_train") if f"reward_model{ending}" in chosen]
    names = {"": "held-out questions", "_train": "training questions"}
    rows = [["reward model chooses", *_choices(chosen, endings)]]
    for name, metrics in chatting(results).items():
        for key, what in (("greedy_correct", "likeliest answer"), ("correct", "sampled answer")):
            rows.append([f"{name}: {what}", *(percent(metrics.get(f"{key}{e}")) for e in endings)])
    note = (
        f"The reward model is shown the plain statement with each value; chance is {_chance(chosen)}. "
        "Models are asked the question and must answer it. [95% interval over questions]"
    )
    return Table("Choosing and answering", ["", *(names[e] for e in endings)], rows, note)


def _choices(chosen: Results, endings: list[str]) -> list[str]:
    return [with_interval(chosen[f"reward_model{e}"], chosen[f"reward_model_ci{e}"], percent) for e in endings]


def _chance(chosen: Results) -> str:
    return f"1 in {1 / chosen['chance']:.3g}"


def budget_table(results: Results) -> Table | None:
    """What it took to make each artifact; None if nothing is known."""
    budget = results.get("budget")
    if not budget:
        return None
    rows = [
        [
            name,
            _or_none(spent["minutes"], ".1f"),
            _or_none(spent["generated_tokens"], ",.0f"),
            _or_none(spent["flops"], ".2e"),
            spent["commit"] or NONE,
        ]
        for name, spent in budget.items()
    ]
    return Table("Budget", ["", "minutes", "tokens generated", "FLOPs", "commit"], rows)


def _or_none(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def sampling_lines(results: Results) -> list[str]:
    """Best-of-n, majority and choice in one line each: what the terminal shows of those tables."""
    lines = []
    if results.get("best_of_n"):
        curve = results["best_of_n"]
        key = "gold" if "gold" in curve else "score"
        steps = [f"n={n} {number(value)}" for n, value in zip(curve["n"], curve[key], strict=True)][::2]
        line = f"Best of n sft answers by the reward model's score, {key}: {', '.join(steps)}"
        trained = results.get("best_of_n_train")
        if trained:
            first, last = number(trained[key][0]), number(trained[key][-1])
            line += f"; on training prompts n=1 {first}, n={trained['n'][-1]} {last}"
        lines.append(f"{line}.")
    if results.get("majority"):
        curve = results["majority"]
        steps = [f"k={k} {percent(value)}" for k, value in zip(curve["k"], curve["correct"], strict=True)]
        lines.append(f"Majority of k sft answers, correct: {', '.join(steps)}.")
    if results.get("choice"):
        chosen = results["choice"]
        greedy = [f"{name} {percent(metrics['greedy_correct'])}" for name, metrics in chatting(results).items()]
        lines.append(
            f"True statement among all values: the reward model chooses it {_choices(chosen, [''])[0]} "
            f"(chance: {_chance(chosen)}); likeliest answer correct: {', '.join(greedy)}."
        )
    return lines


REWARD_ROWS: tuple[tuple[str, str, Callable], ...] = (
    ("accuracy", "accuracy on pairs", percent),
    ("accuracy_length_matched", "  of matched length (±10%)", percent),
    ("longer_wins", "  of the rule “the longer one wins”", percent),
    ("over_longer", "  above that of this rule", percent),
    ("name_accuracy", "  of answers that differ only in the name", percent),
    ("ece", "calibration error (ECE)", number),
    ("margin", "mean margin", number),
    ("score_length_correlation", "score–length correlation", number),
)


AGAINST_COLUMNS: tuple[tuple[str, str, Callable], ...] = (
    ("win_rate", "wins", percent),
    ("length_controlled", "at equal length", percent),
    ("length_matched", "lengths ±10%", percent),
    ("length", "tokens", short),
    ("other_length", "the other's", short),
    ("finished", "ends", percent),
)
AGAINST_NOTE = (
    "Share of pairs of answers to one prompt in which the reward model scores this model's higher, ties counting as "
    "half. At equal length: predicted by a logistic regression on the difference in length, for a difference of 0 "
    "(Dubois et al. 2024). Lengths ±10%: the share among pairs of nearly equal length."
)


def against_rows(results: Results, cell: Callable) -> list[list[str]]:
    """A row per opponent, way of answering and model; cell(metrics, key, show) shows one metric."""
    return [
        [f"{name} against {opponent}, {how}", *(cell(metrics, key, show) for key, _, show in AGAINST_COLUMNS)]
        for opponent, modes in (results.get("against") or {}).items()
        for how, models in modes.items()
        for name, metrics in models.items()
    ]


def against_table(results: Results) -> Table | None:
    """Every model's answers against those of sft and against demonstrations; None if none were compared."""
    rows = against_rows(results, lambda metrics, key, show: with_interval(metrics[key], metrics.get(f"{key}_ci"), show))
    note = f"{AGAINST_NOTE} [95% interval over prompts]"
    shown = results.get("demonstrations")
    if shown:
        score = with_interval(shown["score"], shown["score_ci"])
        note += f" Demonstrations: {shown['prompts']} prompts, {short(shown['length'])} tokens, score {score}."
    return Table("Head to head", ["", *(label for _, label, _ in AGAINST_COLUMNS)], rows, note) if rows else None


def proxy_table(results: Results) -> Table | None:
    """The reward model that policies were trained against, if another one judges here."""
    made = reward_table({"reward_model": results.get("proxy")})
    return made and made._replace(title="Reward model trained against")


def reward_table(results: Results) -> Table | None:
    """The reward model on rankings of training and held-out prompts, side by side; None if it was not measured."""
    metrics = results.get("reward_model")
    if not metrics:
        return None
    names = {"": "training prompts", "_heldout": "held-out prompts"}
    endings = [ending for ending in names if f"accuracy{ending}" in metrics]
    rows = []
    for key, label, show in REWARD_ROWS:
        if any(f"{key}{e}" in metrics for e in endings):
            cells = [with_interval(metrics.get(f"{key}{e}"), metrics.get(f"{key}_ci{e}"), show) for e in endings]
            rows.append([label, *cells])
    for key, label in (("pairs", "pairs"), ("pairs_length_matched", "  of matched length"), ("prompts", "prompts")):
        rows.append([label, *(f"{metrics[f'{key}{e}']:,}" for e in endings)])
    return Table("Reward model", ["", *(names[e] for e in endings)], rows, "[95% interval over prompts]")
