"""How close a policy comes to the optimum, exactly: every response is enumerated, none is sampled or left out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from components.evaluation.measure.policy import numbers
from components.generation.generate import compute_dtype
from components.models.heads import CausalLM

CHUNK = 8192  # default for texts that a model reads at once
MOST_N = 1024  # largest n of best-of-n
FRONTIER = [0.05 * 1.1**step for step in range(61)]  # temperatures at which the optimum's curve is computed
Metrics = dict[str, float]


class Task(NamedTuple):
    """The objective: E[r] − beta·KL(π‖reference) over responses of at most max_new_tokens ids.

    A response ends with one of stop_ids, and its reward is the reward model's score at its last token; the reward of
    one that does not end within max_new_tokens is missing_end_score. vocabulary: number of ids, all of them possible
    at every position except those in `unused`.
    texts_at_once: number of texts that a model reads together.
    """

    beta: float
    max_new_tokens: int
    missing_end_score: float
    stop_ids: tuple[int, ...]
    vocabulary: int
    unused: tuple[int, ...] = ()
    texts_at_once: int = CHUNK

    def prefixes(self) -> Iterator[tuple[Tensor, bool]]:
        """Blocks of texts (n, length) that have not ended, shorter ones first, and whether the next id is the last."""
        for length in range(self.max_new_tokens):
            for texts in _texts(self.continuing, length).split(self.texts_at_once):
                yield texts, length + 1 == self.max_new_tokens

    @property
    def continuing(self) -> tuple[int, ...]:
        """The ids that do not end a response."""
        return tuple(i for i in self.ids if i not in self.stop_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The possible ids."""
        return tuple(i for i in range(self.vocabulary) if i not in self.unused)


@functools.lru_cache(maxsize=8)
def _texts(ids: tuple[int, ...], length: int) -> Tensor:
    return torch.tensor(list(product(ids, repeat=length)), dtype=torch.int64)


@torch.no_grad()
def response_logprobs(model: CausalLM, prompt: Sequence[int], task: Task) -> Iterator[Tensor]:
    """Blocks (n,) float64 on the CPU of the log-probabilities of all responses to the prompt, in a fixed order.

    For each of several prefixes, a block has its continuation by every stop id and, if the next id is the last,
    also by every other id.
    """
    stops, continuing, possible = list(task.stop_ids), list(task.continuing), list(task.ids)
    reached, texts_before = torch.zeros(1, dtype=torch.float64), 0
    deeper: list[Tensor] = []
    length = 0
    for texts, last in task.prefixes():
        if texts.shape[1] > length:
            reached, deeper, texts_before, length = torch.cat(deeper), [], 0, texts.shape[1]
        extended = _next_logprobs(model, prompt, texts)
        extended += reached[texts_before : texts_before + len(texts), None]
        texts_before += len(texts)
        if last:
            yield extended[:, possible].flatten()
        else:
            deeper.append(extended[:, continuing].flatten())
            yield extended[:, stops].flatten()


@torch.no_grad()
def response_rewards(reward: nn.Module, prompt: Sequence[int], task: Task) -> Iterator[Tensor]:
    """Blocks (n,) float64 on the CPU of the rewards of those responses, in the order of `response_logprobs`.

    Raises ValueError for scores that are not numbers.
    """
    stops = torch.tensor(task.stop_ids)
    for texts, last in task.prefixes():
        ended = torch.cat([texts.repeat_interleave(len(stops), 0), stops.repeat(len(texts))[:, None]], dim=1)
        rows = torch.cat([torch.tensor([list(prompt)]).expand(len(ended), -1), ended], dim=1)
        worth = numbers(reward(rows.to(_device_of(reward)))[:, -1].cpu().double()).view(len(texts), len(stops))
        if last:
            extended = worth.new_full((len(texts), task.vocabulary), task.missing_end_score)
            extended[:, stops] = worth
            worth = extended[:, list(task.ids)]
        yield worth.flatten()


def _next_logprobs(model: CausalLM, prompt: Sequence[int], texts: Tensor) -> Tensor:
    """(n, V) float64 on the CPU: log-probabilities of the next id after the prompt and each text (n, length)."""
    room, device = len(prompt) + texts.shape[1], _device_of(model)
    start = torch.zeros(1, dtype=torch.int64, device=device)
    cache = model.new_cache(start, room, dtype=compute_dtype(model))
    hidden = model.hidden(torch.tensor([list(prompt)], device=device), cache=cache)[:, -1]
    if texts.shape[1]:
        cache.select(torch.zeros(len(texts), dtype=torch.int64, device=device))
        hidden = model.hidden(texts.to(device), cache=cache)[:, -1]
    return model.head(hidden).cpu().double().log_softmax(-1)


def _device_of(model: nn.Module) -> torch.device:
    tensors = chain(model.parameters(), model.buffers())  # a table of rewards has only buffers
    return next(tensors, torch.empty(0)).device


class Question(NamedTuple):
    """All responses to one prompt, in blocks: log-probabilities under the reference and the optimum π*, in nats, and
    rewards; best: the objective of π*."""

    reference: list[Tensor]
    rewards: list[Tensor]
    optimum: list[Tensor]
    best: float

    @classmethod
    def of(cls, reference: Iterable[Tensor], rewards: Iterable[Tensor], beta: float) -> "Question":
        """π* ∝ π_ref·exp(r / beta), whose objective is beta·ln Z.  Source: Rafailov et al. 2023 (DPO), eq. 4."""
        reference, rewards = list(reference), list(rewards)
        weights = [logprobs + worth / beta for logprobs, worth in zip(reference, rewards, strict=True)]
        log_z = torch.stack([block.logsumexp(0) for block in weights]).logsumexp(0)
        return cls(reference, rewards, [block - log_z for block in weights], beta * float(log_z))

    def metrics(self, logprobs: Iterable[Tensor], *, beta: float) -> Metrics:
        """Metrics of a policy: objective E[r] − beta·KL, reward E[r], kl to the reference in nats, total_variation
        ½ Σ|π − π*|.

        Raises ValueError unless its probabilities sum to 1; otherwise a response was left out or counted twice, or the
        model's logits are not numbers.
        """
        total = reward = kl = apart = 0.0
        for own, reference, worth, best in zip(logprobs, self.reference, self.rewards, self.optimum, strict=True):
            probs = own.exp()
            total += float(probs.sum())
            reward += float(probs @ worth)
            kl += float(torch.where(probs > 0, probs * (own - reference), 0.0).sum())
            apart += float((probs - best.exp()).abs().sum())
        if not abs(total - 1) <= 1e-9:  # also catches NaN
            raise ValueError(f"optimum: the probabilities of all responses sum to {total!r}, expected 1")
        return {"objective": reward - beta * kl, "reward": reward, "kl": kl, "total_variation": apart / 2}

    def levels(self) -> "Levels":
        """The reference's probability of every distinct reward."""
        shares: dict[float, float] = {}
        for logprobs, worth in zip(self.reference, self.rewards, strict=True):
            values, level = worth.unique(return_inverse=True)
            sums = torch.zeros_like(values).index_add(0, level, logprobs.exp())
            for value, share in zip(values.tolist(), sums.tolist(), strict=True):
                shares[value] = shares.get(value, 0.0) + share
        rewards = sorted(shares)
        return Levels(torch.tensor(rewards).double(), torch.tensor([shares[r] for r in rewards], dtype=torch.float64))


class Levels(NamedTuple):
    """The responses to one prompt grouped by reward: rewards (L,) ascending, reference (L,) probabilities.

    A policy that is the reference times a function of the reward, as π* and best-of-n are, is determined by its
    probabilities of these levels.
    """

    rewards: Tensor
    reference: Tensor

    def best_of_n(self, n: int) -> Tensor:
        """(L,) probabilities of the best of n independent samples: F(r)^n − F(r−)^n, ties broken arbitrarily."""
        up_to = (self.reference.cumsum(0) / self.reference.sum()).clamp(max=1) ** n
        return torch.diff(up_to, prepend=up_to.new_zeros(1))

    def tilted(self, temperature: float) -> Tensor:
        """(L,) probabilities of the policy ∝ reference · exp(r / temperature)."""
        return (self.reference.log() + self.rewards / temperature).softmax(0)

    def metrics(self, probs: Tensor, *, beta: float) -> Metrics:
        """As Question.metrics, for such a policy."""
        reward = float(probs @ self.rewards)
        kl = float((torch.xlogy(probs, probs) - torch.xlogy(probs, self.reference)).sum())
        variation = float((probs - self.tilted(beta)).abs().sum()) / 2
        return {"objective": reward - beta * kl, "reward": reward, "kl": kl, "total_variation": variation}


def measure(
    reference: CausalLM,
    methods: Mapping[str, CausalLM],
    reward: nn.Module,
    prompts: Sequence[Sequence[int]],
    task: Task,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Every method compared with the reference and the optimum: exact means over the prompts, without sampling.

    fraction_of_optimum = (J(π) − J(π_ref)) / (J* − J(π_ref)), where J* = beta·ln Z. That is
    1 − KL(π‖π*) / KL(π_ref‖π*): 1 only for π*, negative for a policy further from it than the reference.
    best_of_n: the best of n samples from the reference, with the n that maximizes this objective.
    Returns methods {name: metrics}, optimum and reference (metrics: see Question, plus fraction_of_optimum), best_n,
    responses (per prompt), prompts, beta, and two curves of [kl, reward]: frontier (the highest reward at each kl) and
    best_of_n_curve.
    """
    per_prompt: dict[str, list[Metrics]] = {name: [] for name in ("reference", "optimum", *methods)}
    levels: list[Levels] = []
    for number, prompt in enumerate(prompts, 1):
        question = Question.of(
            response_logprobs(reference, prompt, task), response_rewards(reward, prompt, task), task.beta
        )
        levels.append(question.levels())
        per_prompt["reference"].append(question.metrics(question.reference, beta=task.beta))
        optimum = question.metrics(question.optimum, beta=task.beta)
        per_prompt["optimum"].append(optimum | {"objective": question.best})
        for name, model in methods.items():
            per_prompt[name].append(question.metrics(response_logprobs(model, prompt, task), beta=task.beta))
        responses = sum(map(len, question.rewards))
        progress(f"prompt {number}/{len(prompts)}: {responses:,} responses under each of {len(methods) + 1} models")
    means = {name: _mean(metrics) for name, metrics in per_prompt.items()}
    best_n, means["best_of_n"] = _best_n(levels, task.beta)
    low, high = means["reference"]["objective"], means["optimum"]["objective"]
    for metrics in means.values():
        metrics["fraction_of_optimum"] = (metrics["objective"] - low) / (high - low)
    tried = sorted({round(2 ** (step / 4)) for step in range(4 * MOST_N.bit_length() - 3)})
    return {
        "optimum": means.pop("optimum"),
        "reference": means.pop("reference"),
        "methods": means,
        "best_n": best_n,
        "beta": task.beta,
        "prompts": len(prompts),
        "responses": responses,
        "frontier": [_point(levels, lambda level, t=t: level.tilted(t), task.beta) for t in FRONTIER],  # type: ignore[misc]
        "best_of_n_curve": [_point(levels, lambda level, n=n: level.best_of_n(n), task.beta) for n in tried],  # type: ignore[misc]
    }


def _best_n(levels: Sequence[Levels], beta: float) -> tuple[int, Metrics]:
    tried = {n: _mean([level.metrics(level.best_of_n(n), beta=beta) for level in levels]) for n in range(1, MOST_N + 1)}
    n = max(tried, key=lambda n: tried[n]["objective"])
    return n, tried[n]


def _point(levels: Sequence[Levels], policy: Callable[[Levels], Tensor], beta: float) -> list[float]:
    metrics = _mean([level.metrics(policy(level), beta=beta) for level in levels])
    return [metrics["kl"], metrics["reward"]]


def _mean(rows: Sequence[Metrics]) -> Metrics:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
