"""Comparisons in the making: several completions of each prompt, drawn from a model, and figures of their ranking."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from components.data.loading.sampler import permutation
from components.data.records.formats import Message
from components.evaluation.measure.policy import TOKENS_AT_ONCE, SamplePlan, respond
from components.models.heads import CausalLM
from components.tokenizer.tokenizer import Tokenizer

Prompt = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """How many comparisons of how many completions, and how these are drawn.

    records: comparisons; more than there are prompts asks the prompts again, in another order each time; None asks
    each prompt once. distinct: equal completions of one record count once. Raises ValueError naming a wrong setting.
    """

    records: int | None
    completions: int
    temperature: float
    max_new_tokens: int
    distinct: bool

    def __post_init__(self) -> None:
        fewest = {"records": (1, ""), "completions": (2, " to compare"), "max_new_tokens": (1, "")}
        for name, (least, why) in fewest.items():
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(f"stage.{name}: got {given}, expected at least {least}{why}")
        if not self.temperature > 0:
            raise ValueError(
                f"stage.temperature: got {self.temperature}, expected a number above 0: at 0 all completions of a "
                "prompt are the same"
            )


class Drawn(NamedTuple):
    """A prompt and the completions to be ranked, 2 or more."""

    prompt: list[Message]
    completions: list[str]


class Ranking(NamedTuple):
    """A prompt, its completions, and a rank of each: lower is better, ties are equal."""

    prompt: list[Message]
    completions: list[str]
    ranks: list[int]


def draw(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    plan: Plan,
    seed: int,
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> tuple[list[Drawn], Counter[str]]:
    """Completions of as many prompts as the plan has records, and counts of what was drawn and left out.

    prompts: {"ids": chat prompt, "prompt": messages}; each is asked as often as another, give or take once.
    Left out are completions without an end of turn, because readers of a preference record take every completion to
    be whole; with plan.distinct equal ones; then records with fewer than 2 completions.
    Counts: asked, unfinished, duplicates, dropped (records). Raises ValueError where no record is left.
    """
    laps = range(-(-(plan.records or len(prompts)) // len(prompts)))
    order = [int(place) for lap in laps for place in permutation(len(prompts), seed, lap)]
    asked = [prompts[place] for place in order[: plan.records]]
    sampling = SamplePlan(plan.completions, plan.max_new_tokens, seed, tokens_at_once)
    said = respond(model, tokenizer, [prompt["ids"] for prompt in asked], sampling, temperature=plan.temperature)
    counts = Counter({"asked": len(asked), "unfinished": said.finished.count(False), "duplicates": 0, "dropped": 0})
    drawn = []
    for number, prompt in enumerate(asked):
        places = range(number * plan.completions, (number + 1) * plan.completions)
        whole = [tokenizer.prefill + said.texts[place] for place in places if said.finished[place]]
        kept = list(dict.fromkeys(whole)) if plan.distinct else whole
        counts["duplicates"] += len(whole) - len(kept)
        if len(kept) < 2:
            counts["dropped"] += 1
        else:
            drawn.append(Drawn(prompt["prompt"], kept))
    if not drawn:
        raise ValueError(
            f"none of {len(asked)} prompts got 2 different completions with an end of turn: of "
            f"{len(said.texts)} completions {counts['unfinished']} did not end within {plan.max_new_tokens} tokens, "
            f"{counts['duplicates']} repeated another. Raise stage.max_new_tokens or stage.temperature, or take a "
            "model that was trained to answer: artifacts.sft=<folder>"
        )
    return drawn, counts


def describe(rankings: Sequence[Ranking], gold: Callable[[list[Message], str], float] | None) -> dict[str, float]:
    """Figures of rankings; gold: true worth of a completion, where somebody knows it.

    records           rankings
    completions       different completions per record, mean
    ties              share of pairs of a record that have equal ranks
    gold_best         mean gold of the completions of the lowest rank; gold_worst: of the highest
    agreement         share of pairs, of different rank and different gold, that are ranked as gold ranks them
    What there is nothing to measure on is left out.
    """
    if not rankings:
        return {"records": 0}
    pairs = tied = 0
    best: list[float] = []
    worst: list[float] = []
    agreeing: list[float] = []
    for one in rankings:
        for a, b in combinations(range(len(one.ranks)), 2):
            pairs += 1
            tied += one.ranks[a] == one.ranks[b]
        if gold is None:
            continue
        worth = [gold(one.prompt, completion) for completion in one.completions]
        best.append(_mean([w for w, rank in zip(worth, one.ranks) if rank == min(one.ranks)]))
        worst.append(_mean([w for w, rank in zip(worth, one.ranks) if rank == max(one.ranks)]))
        agreeing += [
            (one.ranks[a] < one.ranks[b]) == (worth[a] > worth[b])
            for a, b in combinations(range(len(worth)), 2)
            if one.ranks[a] != one.ranks[b] and worth[a] != worth[b]
        ]
    figures: dict[str, float] = {
        "records": len(rankings),
        "completions": _mean([len(set(one.completions)) for one in rankings]),
        "ties": tied / pairs,
    }
    known: dict[str, list[float]] = {"gold_best": best, "gold_worst": worst, "agreement": agreeing}
    return figures | {name: _mean(values) for name, values in known.items() if values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
