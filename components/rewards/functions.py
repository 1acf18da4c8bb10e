"""Rewards that are Python functions of prompts, responses and columns."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch

from components.functional.seeding import seeded
from components.rewards.function_call import Answered, RewardFunction, Value
from components.rewards.function_file import RewardError, entries, place_of
from components.rewards.reward import RewardBatch, Scores
from components.rewards.scorer_pool import TIMED_OUT, ScorerPool
from components.system.limits import NonNegativeInt, Positive

log = logging.getLogger(__name__)
OnTimeout = Literal["error"] | float


class FunctionReward:
    """The weighted sum of functions. A response that none of them applies to has no score, which is an error.

    functions, weights: by name. key: of the settings that they come from, for messages. processes: 0 calls each
    function once with all responses, in this process; above 0, that many processes of their own call it with one
    response at a time. timeout: seconds for one response, None for no limit; needs processes. on_timeout: the score of
    a response that takes longer, or "error". shuffle: a control, every response gets the scores of another, in an order
    that depends on the responses alone. Raises RewardError for settings that contradict each other.
    """

    def __init__(
        self,
        functions: Mapping[str, RewardFunction],
        weights: Mapping[str, float],
        key: str = "reward",
        timeout: float | None = None,
        processes: int = 0,
        on_timeout: OnTimeout = "error",
        shuffle: bool = False,
    ) -> None:
        if timeout is not None and not processes:
            raise RewardError(
                f"{key}.timeout={timeout} needs processes that can be stopped: set {key}.processes, for example to 4"
            )
        if on_timeout != "error" and not math.isfinite(on_timeout):
            raise RewardError(f"{key}.on_timeout: got {on_timeout}, expected error or a finite score")
        self.functions, self.key = dict(functions), key
        self.weights = {name: weights[name] for name in functions}
        self.timeout, self.on_timeout, self.shuffle = timeout, on_timeout, shuffle
        self.pool = ScorerPool(list(self.functions.values()), processes, timeout) if processes else None

    @classmethod
    def of_functions(cls, *functions: Callable[..., Any], weights: Sequence[float] = ()) -> Self:
        """The weighted sum of Python functions, each under its own name; without weights, their sum.
        Raises RewardError for two functions of one name, and for another number of weights."""
        made = [RewardFunction.of(function) for function in functions]
        names, factors = [function.name for function in made], weights or [1.0] * len(made)
        if not made or len(set(names)) != len(names) or len(factors) != len(names):
            got = ", ".join(names) or "none"
            raise RewardError(f"reward: expected functions of different names and a weight for each, got {got}")
        return cls(dict(zip(names, made, strict=True)), dict(zip(names, factors, strict=True)))

    @classmethod
    def of(cls, settings: Mapping[str, Any], key: str) -> Self:
        """The reward that settings describe: path and arguments, or functions, see `function_file.entries`; timeout,
        processes, on_timeout, shuffle. key: of the settings. Raises RewardError."""
        chosen = entries(settings, key)
        how = {name: settings[name] for name in ("timeout", "processes", "on_timeout", "shuffle") if name in settings}
        made = {
            entry.name: RewardFunction(entry.name, place_of(entry.written, entry.key), entry.key, entry.arguments)
            for entry in chosen
        }
        return cls(made, {entry.name: entry.weight for entry in chosen}, key, **how)

    def score(self, batch: RewardBatch) -> Scores:
        answered = answered_in(batch)
        values = self.values(answered)
        parts = [[math.nan if value is None else value for value in row] for row in zip(*values.values(), strict=True)]
        total = torch.tensor(self.totals(values, answered), dtype=torch.float32)
        scores = Scores(total, torch.tensor(parts, dtype=torch.float32))
        return shuffled(scores, batch) if self.shuffle else scores

    def totals(self, values: Mapping[str, list[Value]], answered: Answered) -> list[float]:
        """The weighted sum for each response, over the functions that apply to it. Raises RewardError if none does."""
        totals = []
        for i, row in enumerate(zip(*values.values(), strict=True)):
            terms = [self.weights[name] * value for name, value in zip(values, row, strict=True) if value is not None]
            if not terms:
                raise RewardError(
                    f"no reward applies: {' and '.join(values)} returned None; on{answered.described(i)}\n"
                    "Return a number from at least one function, or leave such records out of the data"
                )
            totals.append(math.fsum(terms))
        return totals

    def values(self, answered: Answered) -> dict[str, list[Value]]:
        """Each function's number for each response; None where it does not apply. Raises RewardError."""
        return {name: self._values(function, answered) for name, function in self.functions.items()}

    def close(self) -> None:
        """Ends the processes, if there are any."""
        if self.pool is not None:
            self.pool.close()

    def _values(self, function: RewardFunction, answered: Answered) -> list[Value]:
        if self.pool is None:
            return function(answered)
        replies = self.pool.values(function, answered)
        slow = [i for i, value in enumerate(replies) if value == TIMED_OUT]
        if slow and self.on_timeout == "error":
            raise RewardError(
                f"{function} took longer than {self.key}.timeout={self.timeout} s; on{answered.described(slow[0])}\n"
                f"Raise the limit, or set {self.key}.on_timeout=0 (or another score for such responses)"
            )
        if slow:
            log.warning(f"{function}: {len(slow)} of {len(replies)} responses took longer than {self.timeout} s")
        return [self.on_timeout if value == TIMED_OUT else value for value in replies]  # type: ignore[misc]


def answered_in(batch: RewardBatch) -> Answered:
    """What functions see of a batch."""
    return Answered(batch.prompts, batch.texts, batch.response_ids, batch.finished, batch.columns)


def shuffled(scores: Scores, batch: RewardBatch) -> Scores:
    """The same scores, each with its parts, for other responses of the batch: a reward that carries no information."""
    order = torch.randperm(len(batch), generator=seeded("cpu", *(token for ids in batch.response_ids for token in ids)))
    return Scores(scores.total[order], None if scores.parts is None else scores.parts[order])


def function_reward(
    path: str | None = None,
    functions: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    timeout: Positive | None = None,
    processes: NonNegativeInt = 0,
    on_timeout: OnTimeout = "error",
    shuffle: bool = False,
) -> FunctionReward:
    """The reward of conf/reward/function.yaml. Raises RewardError."""
    chosen = {"path": path, "functions": functions, "arguments": arguments}
    how = {"timeout": timeout, "processes": processes, "on_timeout": on_timeout, "shuffle": shuffle}
    return FunctionReward.of(chosen | how, "reward")
