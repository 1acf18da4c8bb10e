"""How good a reward model is on comparisons that it has not seen, before a policy is trained against it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.data.batches import PreferenceBatch
from components.data.preference import PreferenceData
from components.data.sources.builtin import make_world
from components.evaluation.measure.intervals import share_interval
from components.evaluation.measure.reward_model import answer_scores, evaluate_ranking
from components.evaluation.reward_exam.probes import PROBES, probed
from components.functional.evenly import evenly
from components.functional.ranking import LENGTH_MATCHED
from components.models.heads import ScalarModel
from components.system.countdown import countdown
from components.system.limits import Count
from components.tokenizer.tokenizer import Tokenizer
from components.world.gold import Judgment
from components.world.world import World

Record = dict[str, Any]
FEWEST_RECORDS, FEWEST_PROBED = 100, 16  # regardless of the budget
SHOWN = 12  # categories per grouping, those with the most pairs first


class Reading(NamedTuple):
    """The reading budget of a run: about how many answers to read, None for no limit; whether to show progress."""

    answers: int | None = None
    shown: bool = True


READ_ALL = Reading()


class Pair(NamedTuple):
    """Two answers to one prompt, one of them better. credit: 1 if the better one scores higher, ½ on a tie, else 0.

    judgments: the world's judgments of the better and the worse one, None without a judge.
    """

    record: Record
    better: int
    worse: int
    credit: float
    judgments: tuple[Judgment, Judgment] | None

    @property
    def lengths(self) -> tuple[int, int]:
        """In tokens, of the better and the worse answer; one that was cut counts as one token longer."""
        answers, finished = self.record["completions"], self.record["finished"]
        better, worse = (len(answers[i]) + (not finished[i]) for i in (self.better, self.worse))
        return better, worse

    @property
    def is_whole(self) -> bool:
        """Whether neither answer was cut."""
        return self.record["finished"][self.better] and self.record["finished"][self.worse]


def examine(
    model: ScalarModel,
    tokenizer: Tokenizer,
    data: PreferenceData,
    reading: Reading = READ_ALL,
    *,
    max_records: Count = 1000,
    max_probed: Count = 64,
    tokens_at_once: Count = 2**16,
) -> dict[str, Any]:
    """Examines a reward model on the held-out comparisons of a data module (after its setup), as plain numbers.

    max_records, max_probed: most records for the metrics and for the probes, evenly spaced; fewer if reading.answers
    limits them, each to half of it, but never below FEWEST_RECORDS and FEWEST_PROBED.
    tokens_at_once: how many tokens the model reads at once; it never reads more records at once than a training batch.
    ranking      RankingResult.metrics
    gold         agreement with the built-in world's judge {accuracy, accuracy_ci, pairs, prompts}; None on other data
    probes       name → the share of records whose best answer scores above the probe, same keys as gold
    length_choices  the share of pairs of different length whose longer answer is chosen, same keys; None without any
    categories   grouping → category → same keys: "length" (which answer is longer) always; "category" if records
                 have one; with the world, the "relation" asked for and the "difference" between the answers
    figures      name → number or None: the metrics that a gate's limits refer to, see gate.METRICS
    Returns {} if no comparisons are held out. Intervals are over prompts.
    """
    held_out = [record for i in range(len(data.val_examples)) for record in data.val_examples[i]]
    if not held_out:
        return {}
    if reading.answers is not None:
        each = sum(len(record["completions"]) for record in held_out) / len(held_out)
        max_records = min(max_records, max(FEWEST_RECORDS, int(reading.answers / 2 / each)))
        max_probed = min(max_probed, max(FEWEST_PROBED, reading.answers // 2 // (1 + len(PROBES))))
    records = evenly(held_out, max_records)
    batches = list(_batches(data, records, tokens_at_once))
    ranking = evaluate_ranking(model, _counted(batches, "examination: answers", reading))
    scores = _by_record(records, ranking.scores)
    judge = WorldJudge(data, tokenizer)
    pairs = [pair for record, score in zip(records, scores, strict=True) for pair in _pairs(record, score, judge)]
    examination = {
        "ranking": ranking.metrics(),
        "gold": _gold(records, scores, judge),
        "probes": probe(model, tokenizer, data, evenly(held_out, max_probed), judge, tokens_at_once, reading),
        "length_choices": longer_chosen(pairs),
        "categories": categories(pairs, judge),
    }
    return {**examination, "figures": limited_metrics(examination)}


@torch.no_grad()
def probe(
    model: ScalarModel,
    tokenizer: Tokenizer,
    data: PreferenceData,
    records: Sequence[Record],
    judge: "WorldJudge",
    tokens_at_once: int,
    reading: Reading = READ_ALL,
) -> dict[str, dict[str, Any]]:
    """For each probe, the share of records whose best answer scores above it, counting ties as half."""
    trials = list(probed(records, tokenizer, data.context, judge.renamed))
    rows = [
        {"prompt": record["prompt"], "completions": [ids], "finished": [True], "ranks": [0.0]}
        for record, (best, made) in zip(records, trials, strict=True)
        for ids in (record["completions"][best], *made.values())
    ]
    batches = list(_batches(data, rows, tokens_at_once))
    read = [answer_scores(model, batch).cpu() for batch in _counted(batches, "probes: answers", reading)]
    scores = iter(score for [score] in _by_record(rows, torch.cat(read)))
    credits: dict[str, list[float]] = {name: [] for name in PROBES}
    keys: dict[str, list[tuple]] = {name: [] for name in PROBES}
    for record, (_, made) in zip(records, trials, strict=True):
        best = next(scores)
        for name in made:
            credits[name].append(_credit(best, next(scores)))
            keys[name].append(tuple(record["prompt"]))
    return {name: _share(credits[name], keys[name]) for name in PROBES if credits[name]}


class WorldJudge:
    """The built-in world's judge, applied to stored records, if the data come from the built-in world."""

    def __init__(self, data: PreferenceData, tokenizer: Tokenizer) -> None:
        made = make_world(data.world) if data.is_builtin and data.world is not None else None
        self.world = made if isinstance(made, World) else None
        self.tokenizer = tokenizer

    def relation(self, record: Record) -> str:
        """The relation that a record's question asks for; only with a world."""
        assert self.world is not None
        return self.world.find(self.tokenizer.decode(record["prompt"])).relation

    def renamed(self, record: Record, text: str) -> str | None:
        """The text of a correct answer, about the next name of the world instead of the one asked about.

        None without a world, or if the text is wrong: then it is no worse about someone else.
        """
        if self.world is None:
            return None
        asked, names = self.world.find(self.tokenizer.decode(record["prompt"])), self.world.names
        if not self.world.judge(asked.text, text, finished=True).correct:
            return None
        return self.world.renamed(text, asked.name, names[(names.index(asked.name) + 1) % len(names)])

    def judgments(self, record: Record) -> list[Judgment] | None:
        """The judgment of each answer of a record; None without a world."""
        if self.world is None:
            return None
        question = self.tokenizer.decode(record["prompt"])
        answers = zip(record["completions"], record["finished"], strict=True)
        return [self.world.judge(question, self.tokenizer.decode(ids), finished) for ids, finished in answers]


def categories(pairs: Sequence[Pair], judge: WorldJudge) -> dict[str, dict[str, Any]]:
    """Agreement by category, for every grouping that the data allow."""
    groupings: dict[str, Callable[[Pair], str]] = {"length": by_length}
    if judge.world is not None:
        groupings |= {"relation": lambda pair: judge.relation(pair.record), "difference": by_difference}
    if any(pair.record["category"] for pair in pairs):
        groupings["category"] = lambda pair: pair.record["category"] or "(none)"
    return {name: _agreement(pairs, label_of) for name, label_of in groupings.items()}


def by_length(pair: Pair) -> str:
    """The category of a pair by the lengths of its answers, in words."""
    better, worse = pair.lengths
    if pair.is_whole and abs(better - worse) < LENGTH_MATCHED * max(better, worse):
        return "matched lengths"
    if better == worse:
        return "both cut"
    return "the longer is better" if better > worse else "the shorter is better"


def by_difference(pair: Pair) -> str:
    """How two answers differ according to the world's judge: in naming someone else, in correctness, else in one point
    of manners, or several."""
    assert pair.judgments is not None
    better, worse = pair.judgments
    if better.wrong_name != worse.wrong_name:
        return "whom it names"
    if better.correct != worse.correct:
        return "right or wrong"
    points = {
        "politeness": (better.polite, worse.polite),
        "rudeness": (better.rude, worse.rude),
        "hedge or filler": (better.hedge + better.filler, worse.hedge + worse.filler),
    }
    differing = [name for name, (a, b) in points.items() if a != b]
    return differing[0] if len(differing) == 1 else "several manners" if differing else "length"


def longer_chosen(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """How often the longer of two answers of different length is chosen; None if no lengths differ."""
    unequal = [pair for pair in pairs if pair.lengths[0] != pair.lengths[1]]
    chosen = [pair.credit if pair.lengths[0] > pair.lengths[1] else 1 - pair.credit for pair in unequal]
    return _share(chosen, [tuple(pair.record["prompt"]) for pair in unequal]) if unequal else None


def limited_metrics(examination: dict[str, Any]) -> dict[str, float | None]:
    """The metrics that limits refer to, by name; None if the data cannot tell."""
    ranking, gold = examination["ranking"], examination["gold"]
    longer, correlation = ranking["longer_wins"], ranking["score_length_correlation"]
    choices = examination["length_choices"]
    length_share = choices and choices["accuracy"]
    highs = [
        category["accuracy_ci"][1]
        for grouping, table in examination["categories"].items()
        for category in table.values()
        if grouping != "length"
    ]
    return {
        "accuracy": ranking["accuracy"],
        "accuracy_low": ranking["accuracy_ci"][0],
        "gold_accuracy_low": gold and gold["accuracy_ci"][0],
        "ece": ranking["ece"],
        "length_correlation": None if correlation is None else abs(correlation),
        "over_length": ranking["accuracy"] - max(longer, 1 - longer),
        "against_length": None if length_share is None else min(length_share, 1 - length_share),
        "length_matched": ranking["accuracy_length_matched"],
        "worst_category_high": min(highs, default=None),
        **{f"probe_{name}": probe["accuracy"] for name, probe in examination["probes"].items()},
    }


def _batches(data: PreferenceData, records: Sequence[Record], tokens_at_once: int) -> Iterator[PreferenceBatch]:
    """Batches of the records, in order, of training's batch size and at most tokens_at_once tokens; a single record
    can exceed that."""
    batch: list[list[Record]] = []
    tokens = 0
    for record in records:
        size = len(record["prompt"]) + sum(map(len, record["completions"]))
        if len(batch) == data.batch_size or (batch and tokens + size > tokens_at_once):
            yield data.collate(batch)
            batch, tokens = [], 0
        batch.append([record])
        tokens += size
    yield data.collate(batch)


def _counted(batches: Sequence[PreferenceBatch], what: str, reading: Reading) -> Iterator[PreferenceBatch]:
    total = sum(len(batch.ranks) for batch in batches)
    return countdown(batches, what, total, count=lambda batch: len(batch.ranks), shown=reading.shown)


def _by_record(records: Sequence[Record], scores: Tensor) -> list[list[float]]:
    """The scores of the answers of each record; scores: (A,), of all records' answers in order."""
    rest = iter(scores.tolist())
    return [[next(rest) for _ in record["completions"]] for record in records]


def _pairs(record: Record, scores: list[float], judge: WorldJudge) -> Iterator[Pair]:
    judgments, ranks = judge.judgments(record), record["ranks"]
    indices = range(len(ranks))
    for better, worse in ((i, j) for i in indices for j in indices if ranks[i] < ranks[j]):
        both = (judgments[better], judgments[worse]) if judgments else None
        yield Pair(record, better, worse, _credit(scores[better], scores[worse]), both)


def _credit(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


def _gold(records: Sequence[Record], scores: list[list[float]], judge: WorldJudge) -> dict[str, Any] | None:
    """Agreement with the judge itself, independent of the labels: only this shows whether the labels are flipped."""
    if judge.world is None:
        return None
    credits, keys = [], []
    for record, score in zip(records, scores, strict=True):
        gold = [judgment.gold for judgment in judge.judgments(record) or ()]
        of_record = [_credit(score[i], score[j]) for i, a in enumerate(gold) for j, b in enumerate(gold) if a > b]
        credits += of_record
        keys += [tuple(record["prompt"])] * len(of_record)
    return _share(credits, keys) if credits else None


def _agreement(pairs: Sequence[Pair], label_of: Callable[[Pair], str]) -> dict[str, Any]:
    by_label: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_label[label_of(pair)].append(pair)
    most = sorted(by_label, key=lambda label: (-len(by_label[label]), label))[:SHOWN]
    return {
        label: _share([p.credit for p in by_label[label]], [tuple(p.record["prompt"]) for p in by_label[label]])
        for label in most
    }


def _share(credits: list[float], keys: list[tuple]) -> dict[str, Any]:
    values = torch.tensor(credits)
    counts = {"pairs": len(credits), "prompts": len(set(keys))}
    return {"accuracy": float(values.double().mean()), "accuracy_ci": share_interval(values, keys), **counts}
