"""Making comparisons: several completions of each prompt, sampled from a model, and metrics of their ranking."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from components.data.loading.sampler import permutation
from components.data.records.formats import Message
from components.evaluation.measure.policy import TOKENS_AT_ONCE, SamplePlan, respond
from components.models.heads import CausalLM
from components.tokenizer.tokenizer import Tokenizer

Prompt = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """How many comparisons to make, of how many completions each, and how to sample these.

    records: comparisons; if more than there are prompts, prompts are asked again, in another order each time; None
    asks each prompt once. distinct: equal completions of one record count once. Raises ValueError naming an invalid
    setting.
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


class Samples(NamedTuple):
    """A prompt and two or more completions to rank. columns: of the prompt's record, for a judge that reads them."""

    prompt: list[Message]
    completions: list[str]
    columns: Mapping[str, Any] = MappingProxyType({})


class Ranking(NamedTuple):
    """A prompt, its completions, and the rank of each: lower is better, ties are equal."""

    prompt: list[Message]
    completions: list[str]
    ranks: list[int]


def sample(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    plan: Plan,
    seed: int,
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> tuple[list[Samples], Counter[str]]:
    """Completions for plan.records prompts, and counts of what was sampled and left out.

    prompts: {"ids": chat prompt, "prompt": messages}; all are asked equally often, to within one.
    Left out are completions without an end of turn, because readers of a preference record assume that every
    completion is finished; duplicates, with plan.distinct; then records with fewer than 2 completions.
    Counts: asked, unfinished, duplicates, dropped (records). Raises ValueError if no record is left.
    """
    passes = range(-(-(plan.records or len(prompts)) // len(prompts)))
    order = [int(i) for number in passes for i in permutation(len(prompts), seed, number)]
    asked = [prompts[i] for i in order[: plan.records]]
    sampling = SamplePlan(plan.completions, plan.max_new_tokens, seed, tokens_at_once)
    responses = respond(model, tokenizer, [prompt["ids"] for prompt in asked], sampling, temperature=plan.temperature)
    counts = Counter(
        {"asked": len(asked), "unfinished": responses.finished.count(False), "duplicates": 0, "dropped": 0}
    )
    sampled = []
    for number, prompt in enumerate(asked):
        indices = range(number * plan.completions, (number + 1) * plan.completions)
        finished = [tokenizer.prefill + responses.texts[i] for i in indices if responses.finished[i]]
        kept = list(dict.fromkeys(finished)) if plan.distinct else finished
        counts["duplicates"] += len(finished) - len(kept)
        if len(kept) < 2:
            counts["dropped"] += 1
        else:
            sampled.append(Samples(prompt["prompt"], kept, prompt.get("columns", {})))
    if not sampled:
        raise ValueError(
            f"none of {len(asked)} prompts got 2 different completions with an end of turn: of {len(responses.texts)} "
            f"completions, {counts['unfinished']} did not end within {plan.max_new_tokens} tokens and "
            f"{counts['duplicates']} repeated another. Raise stage.max_new_tokens or stage.temperature, or use a "
            "model that was trained to answer: artifacts.sft=<folder>"
        )
    return sampled, counts


def describe(rankings: Sequence[Ranking], gold: Callable[[list[Message], str], float] | None) -> dict[str, float]:
    """Metrics of rankings; gold: the true worth of a completion, if known.

    records           rankings
    completions       different completions per record, mean
    ties              share of pairs within a record that have equal ranks
    gold_best         mean gold of the completions with the lowest rank; gold_worst: with the highest
    agreement         share of pairs, of different rank and different gold, that are ranked as gold ranks them
    Metrics without data are left out.
    """
    if not rankings:
        return {"records": 0}
    pairs = tied = 0
    best: list[float] = []
    worst: list[float] = []
    agreeing: list[float] = []
    for prompt, completions, ranks in rankings:
        for a, b in combinations(range(len(ranks)), 2):
            pairs += 1
            tied += ranks[a] == ranks[b]
        if gold is None:
            continue
        worth = [gold(prompt, completion) for completion in completions]
        best.append(_mean([w for w, rank in zip(worth, ranks) if rank == min(ranks)]))
        worst.append(_mean([w for w, rank in zip(worth, ranks) if rank == max(ranks)]))
        agreeing += [
            (ranks[a] < ranks[b]) == (worth[a] > worth[b])
            for a, b in combinations(range(len(worth)), 2)
            if ranks[a] != ranks[b] and worth[a] != worth[b]
        ]
    metrics: dict[str, float] = {
        "records": len(rankings),
        "completions": _mean([len(set(ranking.completions)) for ranking in rankings]),
        "ties": tied / pairs,
    }
    from_gold: dict[str, list[float]] = {"gold_best": best, "gold_worst": worst, "agreement": agreeing}
    return metrics | {name: _mean(values) for name, values in from_gold.items() if values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
