"""What a policy says, and how surely: responses drawn from it, their entropy, their KL to a reference."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.functional.logprobs import kl_k1
from components.generation.generate import Sampling, generate, seeded
from components.generation.responses import response_logprobs, response_scores
from components.generation.rollout import Experience, packed
from components.models.heads import CausalLM, ScalarModel
from components.tokenizer.tokenizer import Tokenizer

ROWS_AT_ONCE = 512  # responses drawn together
LOGITS_AT_ONCE = 2**25  # numbers: 128 MiB in fp32


class SamplePlan(NamedTuple):
    """How many responses to each prompt, of how many tokens at most, drawn from which seed."""

    samples_per_prompt: int
    max_new_tokens: int
    seed: int


class Responses(NamedTuple):
    """What a model said: one entry per response, grouped by prompt.

    ids: drawn tokens, the stop token included. texts: the same, specials left out. finished: a stop token came.
    of: number of the prompt that each response answers.
    """

    ids: list[list[int]]
    texts: list[str]
    finished: list[bool]
    of: list[int]


def respond(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    plan: SamplePlan,
    *,
    temperature: float = 1.0,
) -> Responses:
    """Draws plan.samples_per_prompt responses to every prompt from the whole distribution (temperature 0: likeliest).

    Prompts are taken in parts of about ROWS_AT_ONCE responses, so memory does not grow with their number.
    """
    device = next(model.parameters()).device
    sampling = Sampling(plan.max_new_tokens, temperature=temperature)
    per_part = max(1, ROWS_AT_ONCE // plan.samples_per_prompt)
    ids: list[list[int]] = []
    finished: list[bool] = []
    for start in range(0, len(prompts), per_part):
        samples = generate(
            model,
            prompts[start : start + per_part],
            sampling,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            generator=seeded(device, plan.seed, start),
            samples_per_prompt=plan.samples_per_prompt,
        )
        ids += samples.responses()
        finished += samples.finished.tolist()
    of = [number for number in range(len(prompts)) for _ in range(plan.samples_per_prompt)]
    return Responses(ids, [tokenizer.decode(response) for response in ids], finished, of)


@torch.no_grad()
def sequence_likelihoods(
    model: CausalLM, prompts: Sequence[Sequence[int]], responses: Responses, *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """((N,), (N,)) fp64 on the CPU: Σ log p of every response, and Σ of the exact entropies its tokens came from."""
    logprobs, entropies = [], []
    for part in _parts(model, prompts, responses, pad_id):
        found, uncertain = response_logprobs(model, part, temperature=1.0)
        logprobs.append(found.double().sum(1).cpu())
        entropies.append(uncertain.double().sum(1).cpu())
    return torch.cat(logprobs), torch.cat(entropies)


@torch.no_grad()
def scores(model: ScalarModel, prompts: Sequence[Sequence[int]], responses: Responses, *, pad_id: int) -> Tensor:
    """(N,) on the CPU: the reward model's score at the last token of every response, read after its prompt."""
    found = [response_scores(model, part).cpu() for part in _parts(model, prompts, responses, pad_id)]
    return torch.cat(found)


def describe(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    *,
    reference: CausalLM | None,
    pad_id: int,
) -> dict[str, Any]:
    """Figures of a policy from the responses it drew at temperature 1.

    finished             share that ended by itself
    length               tokens per response, the stop token included
    entropy_per_token    mean exact entropy of the distributions that the tokens were drawn from, nats
    sequence_entropy     mean of Σ of those per response, nats
    sequence_entropy_mc  mean −Σ log p per response, nats: the same quantity by Monte Carlo, a cross-check
    kl                   mean Σ (log p − log p_reference) per response, nats; None without a reference
    distinct             distinct texts per prompt ÷ samples per prompt, mean over prompts
    """
    logprobs, entropies = sequence_likelihoods(model, prompts, responses, pad_id=pad_id)
    tokens = sum(map(len, responses.ids))
    kl = None
    if reference is not None:
        kl = float(kl_k1(logprobs, sequence_likelihoods(reference, prompts, responses, pad_id=pad_id)[0]).mean())
    return {
        "finished": sum(responses.finished) / len(responses.finished),
        "length": tokens / len(responses.ids),
        "entropy_per_token": float(entropies.sum()) / tokens,
        "sequence_entropy": float(entropies.mean()),
        "sequence_entropy_mc": -float(logprobs.mean()),
        "kl": kl,
        "distinct": distinct_share(responses),
    }


def distinct_share(responses: Responses) -> float:
    """Different (prompt, text) pairs ÷ responses: with as many samples for every prompt, the mean over prompts."""
    return len(set(zip(responses.of, responses.texts, strict=True))) / len(responses.texts)


def _parts(
    model: CausalLM | ScalarModel, prompts: Sequence[Sequence[int]], responses: Responses, pad_id: int
) -> Iterator[Experience]:
    """The responses as packed rows, in parts whose logits stay below LOGITS_AT_ONCE numbers."""
    device = next(model.parameters()).device
    width = max(map(len, responses.ids))
    rows = max(1, LOGITS_AT_ONCE // (width * model.config.vocab_size))
    for start in range(0, len(responses.ids), rows):
        ids = responses.ids[start : start + rows]
        drawn = torch.tensor([one + [pad_id] * (width - len(one)) for one in ids], device=device)
        lengths = torch.tensor([len(one) for one in ids], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        yield packed(
            [prompts[number] for number in responses.of[start : start + rows]],
            {"response_ids": drawn, "mask": mask},
            row_length=model.config.longest,
            pad_id=pad_id,
        )
