"""A policy's behavior: responses sampled from it, their entropy, and their KL to a reference."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from components.functional.logprobs import kl_k1
from components.functional.seeding import seeded
from components.generation.generate import Sampling, generate
from components.generation.responses import response_logprobs, response_scores
from components.generation.rollout import PackedResponses, packed
from components.models.heads import CausalLM, ScalarModel
from components.system.countdown import starts
from components.tokenizer.tokenizer import Tokenizer

ROWS_AT_ONCE = 512  # most responses sampled together
TOKENS_AT_ONCE = 2**16  # default for tokens of prompts and responses that a model reads or samples together
LOGITS_AT_ONCE = 2**25  # numbers: 128 MiB in fp32
NOT_NUMBERS = (
    "the reward model's scores are not numbers (NaN or infinite): its training diverged, or they overflow in this "
    "precision. Try trainer.precision=32-true, or a reward model from before it diverged"
)


class SamplePlan(NamedTuple):
    """How many responses to sample per prompt, of at most how many tokens, and from which seed.

    tokens_at_once: tokens of prompts and responses that a model samples or reads together, which bounds memory; a
    different value splits the batch differently and therefore samples from different random streams.
    """

    samples_per_prompt: int
    max_new_tokens: int
    seed: int
    tokens_at_once: int = TOKENS_AT_ONCE


class Responses(NamedTuple):
    """A model's responses: one entry per response, grouped by prompt.

    ids: sampled tokens, including the stop token. texts: the same without special tokens. finished: whether a stop
    token was sampled. prompt_index: index of the prompt that each response answers.
    """

    ids: list[list[int]]
    texts: list[str]
    finished: list[bool]
    prompt_index: list[int]


class Behavior(NamedTuple):
    """Metrics of a policy from responses that it sampled at temperature 1.

    finished             share that ended with a stop token
    length               tokens per response, including the stop token
    entropy_per_token    mean exact entropy of the distributions that the tokens were sampled from, nats
    sequence_entropy     mean over responses of the Σ of those, nats
    sequence_entropy_mc  mean −Σ log p per response, nats: the same quantity by Monte Carlo, a cross-check
    kl                   mean Σ (log p − log p_reference) per response, nats; None without a reference
    distinct             distinct texts per prompt ÷ samples per prompt, mean over prompts
    """

    finished: float
    length: float
    entropy_per_token: float
    sequence_entropy: float
    sequence_entropy_mc: float
    kl: float | None
    distinct: float


def respond(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    plan: SamplePlan,
    *,
    temperature: float = 1.0,
) -> Responses:
    """Samples plan.samples_per_prompt responses to every prompt from the full distribution (temperature 0: likeliest).

    They are sampled in parts of at most ROWS_AT_ONCE responses and plan.tokens_at_once tokens, counting the longest
    prompt for every row, so memory does not grow with their number; a single response can exceed the limit.
    """
    device = next(model.parameters()).device
    sampling = Sampling(plan.max_new_tokens, temperature=temperature)
    longest = max(map(len, prompts), default=0) + plan.max_new_tokens
    rows = max(1, min(ROWS_AT_ONCE, plan.tokens_at_once // longest))
    per_part = max(1, rows // plan.samples_per_prompt)
    ids: list[list[int]] = []
    finished: list[bool] = []
    for start in starts(len(prompts), per_part, "sampling: prompts"):
        for first in range(0, plan.samples_per_prompt, rows):  # one pass, unless a prompt has too many samples
            samples = generate(
                model,
                prompts[start : start + per_part],
                sampling,
                stop_ids=tokenizer.stop_ids,
                pad_id=tokenizer.pad_id,
                generator=seeded(device, plan.seed, start, *([first] if first else [])),
                samples_per_prompt=min(rows, plan.samples_per_prompt - first),
            )
            ids += samples.responses()
            finished += samples.finished.tolist()
    prompt_index = [i for i in range(len(prompts)) for _ in range(plan.samples_per_prompt)]
    return Responses(ids, [tokenizer.decode(response) for response in ids], finished, prompt_index)


@torch.no_grad()
def sequence_likelihoods(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    *,
    pad_id: int,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """((N,), (N,)) fp64 on the CPU: Σ log p of every response, and Σ of the exact entropies at its tokens."""
    logprobs, entropies = [], []
    for part in _parts(model, prompts, responses, pad_id, tokens_at_once):
        logprob, entropy = response_logprobs(model, part, temperature=1.0)
        logprobs.append(logprob.cpu().double().sum(1))  # not every device has double precision
        entropies.append(entropy.cpu().double().sum(1))
    return torch.cat(logprobs), torch.cat(entropies)


@torch.no_grad()
def scores(
    model: ScalarModel,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    *,
    pad_id: int,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Tensor:
    """(N,) on the CPU: the reward model's score at the last token of every response, read after its prompt.

    Raises ValueError if one is not a number.
    """
    parts = [response_scores(model, part).cpu() for part in _parts(model, prompts, responses, pad_id, tokens_at_once)]
    return numbers(torch.cat(parts))


def numbers(values: Tensor) -> Tensor:
    """A reward model's scores, of any shape. Raises ValueError if one of them is NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError(NOT_NUMBERS)
    return values


def describe(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    *,
    reference: CausalLM | None,
    pad_id: int,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Behavior:
    """How the model behaves in responses that it sampled at temperature 1."""
    reading = {"pad_id": pad_id, "tokens_at_once": tokens_at_once}
    logprobs, entropies = sequence_likelihoods(model, prompts, responses, **reading)
    tokens = sum(map(len, responses.ids))
    kl = None
    if reference is not None:
        kl = float(kl_k1(logprobs, sequence_likelihoods(reference, prompts, responses, **reading)[0]).mean())
    return Behavior(
        finished=sum(responses.finished) / len(responses.finished),
        length=tokens / len(responses.ids),
        entropy_per_token=float(entropies.sum()) / tokens,
        sequence_entropy=float(entropies.mean()),
        sequence_entropy_mc=-float(logprobs.mean()),
        kl=kl,
        distinct=distinct_share(responses),
    )


def distinct_share(responses: Responses) -> float:
    """Different (prompt, text) pairs ÷ responses: with equally many samples per prompt, the mean over prompts."""
    return len(set(zip(responses.prompt_index, responses.texts, strict=True))) / len(responses.texts)


def _parts(
    model: CausalLM | ScalarModel,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    pad_id: int,
    tokens_at_once: int,
) -> Iterator[PackedResponses]:
    """The responses as packed rows, in parts of at most tokens_at_once tokens and LOGITS_AT_ONCE logits; a single
    response can exceed either."""
    device = next(model.parameters()).device
    width = max(map(len, responses.ids))
    longest = width + max(map(len, prompts))
    rows = max(1, min(LOGITS_AT_ONCE // (width * model.config.vocab_size), tokens_at_once // longest))
    for start in starts(len(responses.ids), rows, "reading: responses"):
        ids = responses.ids[start : start + rows]
        response_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in ids], device=device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        yield packed(
            [prompts[i] for i in responses.prompt_index[start : start + rows]],
            response_ids,
            mask,
            row_length=model.config.longest,
            pad_id=pad_id,
        )
