"""Tables of README.md and docs/ with what proof.py measured, made of the records in docs/results.

They stand between <!-- measured: NAME --> and <!-- /measured -->, where NAME is a function of MAKERS; proof.py writes
them along with its pages.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from receipts import beside

from components.evaluation.measure.over_seeds import most_seeds
from components.evaluation.report.card import Table, number, percent, short
from components.evaluation.seeds import seeds_tables
from components.evaluation.seeds.seeds_tables import cell, count, power

MARKED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
MISSING = "Not yet measured."
NAMES = {  # of models, where a record's differs
    **{name: name.upper() for name in ("sft", "ppo", "grpo", "rloo", "gspo", "cispo", "dpo", "kto", "orpo")},
    "pretrain": "pretraining",
    "rm": "reward model",
    "simpo": "SimPO",
    "distill": "distill, from PPO",
    "best_of_n": "best of n",
    "best-of-16": "best of 16",
    "dpo_own_pairs": "DPO on its own pairs",
    "shuffled": "control: GRPO, rewards shuffled",
}
OWN_BETA = {  # what a method's second β is in an experiment's YAML
    "optimum": {"grpo": "0.25"},
    "bakeoff": {"grpo": "0.04", "dpo": "0.3", "kto": "0.3"},
}
Cells = Sequence[str]


class Unmeasured(Exception):
    """A record, or a part of it, is not there."""


class Record(NamedTuple):
    """What a page's JSON says. changed: whether the training code is another by now. confirmed: whether it is, but
    short runs of it end in the same bits."""

    content: Mapping[str, Any]
    changed: bool
    confirmed: bool = False

    def of(self, *path: str) -> Any:
        """A part of the results, all without a path. Raises Unmeasured if they lack its first key."""
        found = self.content["groups"][""]
        if path and path[0] not in found:
            raise Unmeasured
        for key in path:
            found = found[key]
        return found

    @property
    def origin(self) -> str:
        content = self.content
        torch = ", ".join(sorted({re.findall(r"torch [^,]+", versions)[0] for versions in content["versions"]}))
        code = " of older training code" if self.changed else ""
        return f"commit {', '.join(content['commits'])}{code}; {', '.join(content['hardware'])}; {torch}"


class Records(dict[str, Record]):
    """By the name of their page."""

    def __missing__(self, name: str) -> Record:
        raise Unmeasured


def filled(text: str, records: Mapping[str, Record]) -> str:
    """The page with everything between its marks rewritten."""
    known = Records(records)

    def made(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}{_if_measured(MAKERS[name], known)}\n{end}"

    return MARKED.sub(made, text)


def _if_measured(maker: Callable[[Records], str], records: Records) -> str:
    try:
        return maker(records)
    except Unmeasured:
        return MISSING


def optimum(records: Records) -> str:
    """Methods against the exact optimum, the best first."""
    record = records["optimum"]
    methods = record.of("optimum", "methods")
    best_first = sorted(methods, key=lambda name: -methods[name]["fraction_of_optimum"]["mean"])
    rows = [
        [
            named(name, "optimum"),
            cell(methods[name]["fraction_of_optimum"], tenths),
            *(cell(methods[name][key]) for key in ("reward", "kl", "total_variation")),
        ]
        for name in best_first
    ]
    return table(["method", "share of the optimum", "E[r]", "KL, nats", "distance to π*"], rows, record.origin)


def bakeoff(records: Records) -> str:
    """Methods on the world, after SFT, the best first."""
    record = records["tiny"]
    models, gains, spent = record.of("report", "models"), record.of("gains"), record.of("report", "budget")
    methods = sorted((name for name in models if name not in ("base", "sft")), key=lambda n: -models[n]["gold"]["mean"])
    rows = []
    for name in ("sft", *methods):
        one = models[name]
        rows.append(
            [
                named(name, "bakeoff"),
                cell(one["gold"]),
                cell(gains[name].get("sft")),
                cell(one.get("gold_train")),
                *(cell(one.get(key), percent) for key in ("correct", "greedy_correct", "wrong_name", "polite")),
                cell(one.get("kl"), short),
                cell(one.get("entropy_per_token")),
                power(spent[name]["flops"]["mean"] if name in spent else None),
            ]
        )
    head = ["method", "gold, held-out", "− SFT", "gold, training questions", "correct", "likeliest answer correct"]
    return table([*head, "wrong name", "polite", "KL", "entropy per token", "FLOPs"], rows, record.origin)


def overoptimization(records: Records) -> str:
    return _of_summary(records["tiny"], seeds_tables.overoptimization)


def scaling(records: Records) -> str:
    return _of_summary(records["tiny"], seeds_tables.scaling)


def _of_summary(record: Record, maker: Callable[[Mapping[str, Any]], Table | None]) -> str:
    """A table that the summary of a sweep has as well."""
    made = maker(record.of())
    if made is None:
        raise Unmeasured
    return table(made.columns, made.rows, record.origin)


def rlvr(records: Records) -> str:
    record = records["rlvr"]
    models, gains = record.of("rewards", "models"), record.of("rewards", "gains")
    rows = [
        [
            NAMES[name],
            *(cell(models[name][how]["parts"]["strict"]["mean"], percent) for how in ("sampled", "greedy")),
            points(gains.get(name, {}).get("strict")),
        ]
        for name in ("sft", "ppo", "grpo", "shuffled")
    ]
    return table(["", "right", "likeliest answer right", "right, minus SFT"], rows, record.origin)


def proof(records: Records) -> str:
    """README's table: a line for each question."""
    records = Records({name: records[name] for name in ("optimum", "tiny", "rlvr")})
    rows = [
        [question, _if_measured(measured, records), command if command == "the same" else f"`experiment={command}`"]
        for question, measured, command in (
            ("How close is PPO to the exact optimum, all responses enumerated?", _share_of_optimum, "optimum"),
            ("Are new answers better (gold, at most 1.25)?", _gold, "bakeoff"),
            ("What does it cost?", _diversity, "the same"),
            ("Without a KL term, does a weak reward mislead it?", _misled, "overoptimization"),
            ("Does a verifier teach SmolLM2-135M sums?", _verified, "rlvr model.path=…"),
            ("Do comparisons help the reward model?", _by_comparisons, "scaling"),
        )
    ]
    named = {"tiny": "built-in world"}
    seeds = ", ".join(f"{named.get(name, name)} {most_seeds(record.of())}" for name, record in records.items())
    older = [named.get(name, name) for name, record in records.items() if record.changed]
    more = f" Measured with older training code: {', '.join(older)}." if older else ""
    return table(["question", "measured", "command"], rows) + f"\n\nSeeds: {seeds}.{more}"


def _share_of_optimum(records: Records) -> str:
    return cell(records["optimum"].of("optimum", "methods", "ppo", "fraction_of_optimum"), tenths)


def _gold(records: Records) -> str:
    return change(records["tiny"].of("report", "models"), "gold", number)


def _diversity(records: Records) -> str:
    models = records["tiny"].of("report", "models")
    entropy, distinct = change(models, "entropy_per_token", number), change(models, "distinct", percent)
    return f"entropy {entropy}, distinct answers {distinct}"


def _misled(records: Records) -> str:
    run = records["tiny"].of("overoptimization", "runs", "0")
    return f"gold {cell(run['turning']['gold'])} → {cell(run['final']['gold'])}"


def _verified(records: Records) -> str:
    models = records["rlvr"].of("rewards", "models")
    right = {name: cell(one["sampled"]["parts"]["strict"]["mean"], percent) for name, one in models.items()}
    return f"{right['sft']} → PPO {right['ppo']}, GRPO {right['grpo']}"


def _by_comparisons(records: Records) -> str:
    sizes = records["tiny"].of("scaling")
    least, *_, most = sizes
    low, high = (f"{count(float(size))}: {cell(sizes[size]['accuracy'], percent)}" for size in (least, most))
    return f"{low}, {high} of pairs"


def claims(records: Records) -> str:
    """What the talk says, on the world."""
    report = records["tiny"].of("report")
    models, base, judge, choice = (report[name] for name in ("models", "base", "reward_model", "choice"))
    voters, shares = report["majority"]["k"], report["majority"]["correct"]
    votes = {f"{k['mean']:.0f}": share for k, share in zip(voters, shares, strict=True)}
    crowd, sft, ppo = report["crowd"], models["sft"], models["ppo"]
    p = functools.partial(cell, show=percent)
    rows = [
        [
            "base models are not assistants",
            "`base`",
            f"answers {p(base['answers_bare'])} of bare questions, asks another one after {p(base['asks_another'])}",
        ],
        [
            "but can be prompted into answering",
            "`base.few_shot`",
            f"{p(base['few_shot'])} correct after four solved examples",
        ],
        [
            "SFT turns a base model into an assistant",
            "`models.sft`",
            f"{p(sft['correct'])} of its answers are correct, {p(sft['correct_train'])} on training questions (its "
            f"crowd: {p(crowd['correct'])}); it names someone else in {p(sft['wrong_name'])} (its crowd: "
            f"{p(crowd['wrong_name'])})",
        ],
        [
            "a reward model learns from comparisons",
            "`reward_model`",
            f"{p(judge['accuracy'])} on unseen answers, {p(judge['accuracy_heldout'])} on unseen questions",
        ],
        [
            "RLHF beats SFT",
            "`models.ppo`",
            f"gold {change(models, 'gold', number)} at KL {cell(ppo['kl'], short)}; preferred in {p(ppo['win_rate'])}",
        ],
        [
            "discriminating is easier than generating",
            "`choice`",
            f"of eight statements the reward model picks the true one {p(choice['reward_model_train'])} of the time on "
            f"training questions, SFT states it {p(sft['correct_train'])} of the time; on held-out questions "
            f"{p(choice['reward_model'])} against {p(sft['correct'])}",
        ],
        [
            "RLHF lowers entropy, base models are more diverse",
            "`models`",
            "base, SFT, PPO: "
            + ", ".join(cell(models[name]["entropy_per_token"]) for name in ("base", "sft", "ppo"))
            + " nats a token; distinct answers "
            + ", ".join(p(models[name]["distinct"]) for name in ("base", "sft", "ppo")),
        ],
        [
            "many answers are better than one",
            "`majority`",
            "votes of k SFT answers correct, " + ", ".join(f"k = {k}: {p(votes[k])}" for k in ("1", "5", "33")),
        ],
    ]
    return table(["claim", "in the record", "measured"], rows, records["tiny"].origin)


def receipts(records: Records) -> str:
    """What the stages of the bake-off were predicted to take and what they took."""
    record = records["tiny"]
    rows = [
        [named(stage, "bakeoff"), _beside(figures["seconds"], 1, ",.0f"), _beside(figures["memory"], 1e6, ",.0f")]
        for stage, figures in record.of("report", "receipts").items()
        if not stage.endswith("_own_beta")  # they take as long
    ]
    return table(["", "seconds", "memory, MB"], rows, record.origin)


def _beside(figure: Mapping[str, Any], unit: float, form: str) -> str:
    return beside(zip(figure["predicted"]["values"], figure["actual"]["values"], strict=True), unit, form)


MAKERS: dict[str, Callable[[Records], str]] = {
    maker.__name__: maker for maker in (optimum, bakeoff, overoptimization, scaling, rlvr, proof, claims, receipts)
}


def table(head: Cells, rows: Sequence[Cells], origin: str = "") -> str:
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{origin[:1].upper()}{origin[1:]}." if origin else text


def named(model: str, experiment: str) -> str:
    method = model.removesuffix("_own_beta")
    name = NAMES.get(method, method)
    return name if method == model else f"{name}, β {OWN_BETA[experiment][method]}"


def tenths(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%".replace("-", "−")


def points(spread: Mapping[str, Any] | None) -> str:
    """A difference of shares."""
    return cell(spread, percent).replace("%", " points") if spread else ""


def change(models: Mapping[str, Any], metric: str, show: Callable[[float | None], str]) -> str:
    """From SFT to PPO."""
    return f"{cell(models['sft'][metric], show)} → {cell(models['ppo'][metric], show)}"
