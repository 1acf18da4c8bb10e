"""How near a policy comes to the best there is: every response enumerated, nothing sampled, nothing left out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from components.evaluation.measure.policy import numbers
from components.generation.generate import compute_dtype
from components.models.heads import CausalLM

CHUNK = 8192  # texts that a model reads at once, unless a caller says otherwise
MOST_N = 1024  # best-of-n is looked at up to here
FRONTIER = [0.05 * 1.1**step for step in range(61)]  # temperatures that the optimum's curve is drawn at
Figures = dict[str, float]


class Task(NamedTuple):
    """What is optimised: E[r] − beta·KL(π‖reference) over responses of at most max_new_tokens ids.

    A response ends with one of stop_ids, and is worth what the reward model says at its last token; one that is still
    going after max_new_tokens is worth missing_end_score. vocabulary: number of ids, all of them possible everywhere
    but those in `unused`.
    texts_at_once: that a model reads together.
    """

    beta: float
    max_new_tokens: int
    missing_end_score: float
    stop_ids: tuple[int, ...]
    vocabulary: int
    unused: tuple[int, ...] = ()
    texts_at_once: int = CHUNK

    def beginnings(self) -> Iterator[tuple[Tensor, bool]]:
        """Blocks of texts (n, length) that have not ended, shorter ones first, and whether the next id is the last."""
        for length in range(self.max_new_tokens):
            for texts in _texts(self.going, length).split(self.texts_at_once):
                yield texts, length + 1 == self.max_new_tokens

    @property
    def going(self) -> tuple[int, ...]:
        """The ids that do not end a response."""
        return tuple(i for i in self.ids if i not in self.stop_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The possible ones."""
        return tuple(i for i in range(self.vocabulary) if i not in self.unused)


@functools.lru_cache(maxsize=8)
def _texts(ids: tuple[int, ...], length: int) -> Tensor:
    return torch.tensor(list(product(ids, repeat=length)), dtype=torch.int64)


@torch.no_grad()
def response_logprobs(model: CausalLM, prompt: Sequence[int], task: Task) -> Iterator[Tensor]:
    """Blocks (n,) float64 on the CPU of the log-probabilities of all responses to the prompt, in a fixed order.

    A block has, for each of a number of beginnings, its continuation by every stop id, and where the next id is the
    last by every other one too.
    """
    stops, going, possible = list(task.stop_ids), list(task.going), list(task.ids)
    reached, texts_before = torch.zeros(1, dtype=torch.float64), 0
    deeper: list[Tensor] = []
    length = 0
    for texts, last in task.beginnings():
        if texts.shape[1] > length:
            reached, deeper, texts_before, length = torch.cat(deeper), [], 0, texts.shape[1]
        whole = _next_logprobs(model, prompt, texts)
        whole += reached[texts_before : texts_before + len(texts), None]
        texts_before += len(texts)
        if last:
            yield whole[:, possible].flatten()
        else:
            deeper.append(whole[:, going].flatten())
            yield whole[:, stops].flatten()


@torch.no_grad()
def response_rewards(reward: nn.Module, prompt: Sequence[int], task: Task) -> Iterator[Tensor]:
    """Blocks (n,) float64 on the CPU of what those responses are worth, in the order of `response_logprobs`.

    Raises ValueError for scores that are not numbers.
    """
    stops = torch.tensor(task.stop_ids)
    for texts, last in task.beginnings():
        ended = torch.cat([texts.repeat_interleave(len(stops), 0), stops.repeat(len(texts))[:, None]], dim=1)
        rows = torch.cat([torch.tensor([list(prompt)]).expand(len(ended), -1), ended], dim=1)
        worth = numbers(reward(rows.to(_device_of(reward)))[:, -1].cpu().double()).view(len(texts), len(stops))
        if last:
            whole = worth.new_full((len(texts), task.vocabulary), task.missing_end_score)
            whole[:, stops] = worth
            worth = whole[:, list(task.ids)]
        yield worth.flatten()


def _next_logprobs(model: CausalLM, prompt: Sequence[int], texts: Tensor) -> Tensor:
    """(n, V) float64, on the CPU: log-probabilities of what follows the prompt and each of the texts (n, length)."""
    room, device = len(prompt) + texts.shape[1], _device_of(model)
    start = torch.zeros(1, dtype=torch.int64, device=device)
    cache = model.new_cache(start, room, dtype=compute_dtype(model))
    hidden = model.hidden(torch.tensor([list(prompt)], device=device), cache=cache)[:, -1]
    if texts.shape[1]:
        cache.select(torch.zeros(len(texts), dtype=torch.int64, device=device))
        hidden = model.hidden(texts.to(device), cache=cache)[:, -1]
    return model.head(hidden).cpu().double().log_softmax(-1)


def _device_of(model: nn.Module) -> torch.device:
    return next(
        chain(model.parameters(), model.buffers()), torch.empty(0)
    ).device  # a table of rewards has buffers alone


class Question(NamedTuple):
    """All responses to one prompt, in blocks: reference and optimum (π*) nats, rewards; best: the objective of π*."""

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

    def figures(self, logprobs: Iterable[Tensor], *, beta: float) -> Figures:
        """What a policy is worth: objective E[r] − beta·KL, reward E[r], kl to the reference in nats, total_variation
        ½ Σ|π − π*|.

        Raises ValueError unless its probabilities sum to 1: a response was left out or counted twice, or the model's
        logits are not numbers.
        """
        total = reward = kl = apart = 0.0
        for own, known, worth, best in zip(logprobs, self.reference, self.rewards, self.optimum, strict=True):
            probs = own.exp()
            total += float(probs.sum())
            reward += float(probs @ worth)
            kl += float(torch.where(probs > 0, probs * (own - known), 0.0).sum())
            apart += float((probs - best.exp()).abs().sum())
        if not abs(total - 1) <= 1e-9:  # of NaN neither is true
            raise ValueError(f"optimum: the probabilities of all responses sum to {total!r}, expected 1")
        return {"objective": reward - beta * kl, "reward": reward, "kl": kl, "total_variation": apart / 2}

    def levels(self) -> "Levels":
        """The reference's probability of every reward that there is."""
        shares: dict[float, float] = {}
        for known, worth in zip(self.reference, self.rewards, strict=True):
            values, place = worth.unique(return_inverse=True)
            sums = torch.zeros_like(values).index_add(0, place, known.exp())
            for value, share in zip(values.tolist(), sums.tolist(), strict=True):
                shares[value] = shares.get(value, 0.0) + share
        rewards = sorted(shares)
        return Levels(torch.tensor(rewards).double(), torch.tensor([shares[r] for r in rewards], dtype=torch.float64))


class Levels(NamedTuple):
    """The responses to one prompt by what they are worth: rewards (L,) ascending, reference (L,) probabilities.

    A policy that is the reference times a function of the reward, as π* and best-of-n are, is known by its
    probabilities of these levels.
    """

    rewards: Tensor
    reference: Tensor

    def best_of_n(self, n: int) -> Tensor:
        """(L,) probabilities of the best of n independent draws: F(r)^n − F(r−)^n, ties going to any of them."""
        up_to = (self.reference.cumsum(0) / self.reference.sum()).clamp(max=1) ** n
        return torch.diff(up_to, prepend=up_to.new_zeros(1))

    def tilted(self, temperature: float) -> Tensor:
        """(L,) probabilities of the policy ∝ reference · exp(r / temperature)."""
        return (self.reference.log() + self.rewards / temperature).softmax(0)

    def figures(self, probs: Tensor, *, beta: float) -> Figures:
        """As Question.figures, of such a policy."""
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
    """Every method beside the reference and the optimum: means over the prompts, exact, without sampling.

    fraction_of_optimum = (J(π) − J(π_ref)) / (J* − J(π_ref)), where J* = beta·ln Z. That is
    1 − KL(π‖π*) / KL(π_ref‖π*): 1 for π* alone, negative for a policy further from it than the reference.
    best_of_n: the best of n draws from the reference, with the n that is best for this objective.
    Returns methods {name: figures}, optimum and reference (figures: see Question, with fraction_of_optimum), best_n,
    responses (to a prompt), prompts, beta, and two curves of [kl, reward]: frontier (the most reward at each kl) and
    best_of_n_curve.
    """
    found: dict[str, list[Figures]] = {name: [] for name in ("reference", "optimum", *methods)}
    levels: list[Levels] = []
    for number, prompt in enumerate(prompts, 1):
        known = Question.of(
            response_logprobs(reference, prompt, task), response_rewards(reward, prompt, task), task.beta
        )
        levels.append(known.levels())
        found["reference"].append(known.figures(known.reference, beta=task.beta))
        found["optimum"].append(known.figures(known.optimum, beta=task.beta) | {"objective": known.best})
        for name, model in methods.items():
            found[name].append(known.figures(response_logprobs(model, prompt, task), beta=task.beta))
        responses = sum(map(len, known.rewards))
        progress(f"prompt {number}/{len(prompts)}: {responses:,} responses by each of {len(methods) + 1} models")
    means = {name: _mean(ones) for name, ones in found.items()}
    best_n, means["best_of_n"] = _best_n(levels, task.beta)
    low, high = means["reference"]["objective"], means["optimum"]["objective"]
    for figures in means.values():
        figures["fraction_of_optimum"] = (figures["objective"] - low) / (high - low)
    tried = sorted({round(2 ** (step / 4)) for step in range(4 * MOST_N.bit_length() - 3)})
    return {
        "optimum": means.pop("optimum"),
        "reference": means.pop("reference"),
        "methods": means,
        "best_n": best_n,
        "beta": task.beta,
        "prompts": len(prompts),
        "responses": responses,
        "frontier": [_point(levels, lambda of, t=t: of.tilted(t), task.beta) for t in FRONTIER],  # type: ignore[misc]
        "best_of_n_curve": [_point(levels, lambda of, n=n: of.best_of_n(n), task.beta) for n in tried],  # type: ignore[misc]
    }


def _best_n(levels: Sequence[Levels], beta: float) -> tuple[int, Figures]:
    tried = {n: _mean([of.figures(of.best_of_n(n), beta=beta) for of in levels]) for n in range(1, MOST_N + 1)}
    n = max(tried, key=lambda n: tried[n]["objective"])
    return n, tried[n]


def _point(levels: Sequence[Levels], policy: Callable[[Levels], Tensor], beta: float) -> list[float]:
    figures = _mean([of.figures(policy(of), beta=beta) for of in levels])
    return [figures["kl"], figures["reward"]]


def _mean(ones: Sequence[Figures]) -> Figures:
    return {name: sum(one[name] for one in ones) / len(ones) for name in ones[0]}
