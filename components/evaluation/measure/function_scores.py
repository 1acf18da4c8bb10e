"""How a policy scores by reward functions on prompts: sampled and greedy, pass@k and majority votes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from components.evaluation.measure.intervals import interval_of_shares, mean_interval, share_interval
from components.evaluation.measure.majority import vote
from components.evaluation.measure.policy import Responses, SamplePlan, describe, respond
from components.functional.estimators import pass_at_k
from components.models.heads import CausalLM
from components.rewards.functions import FunctionReward
from components.rewards.reward import batch_of
from components.tokenizer.tokenizer import Tokenizer

COUNTS = (1, 2, 4, 8, 16, 32, 64)  # k of pass@k and of majority votes


def function_scores(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Mapping[str, Any]],
    reward: FunctionReward,
    plan: SamplePlan,
    reference: CausalLM | None = None,
) -> dict[str, Any]:
    """Metrics of a policy on prompts of a PromptsData:

    sampled, greedy      at temperature 1 with plan.samples_per_prompt each, and the likeliest response; each a mapping
        score, score_ci  mean of the weighted sum, 95% interval over prompts
        parts            by function, {"mean", "ci", "count"} over the responses that it applies to; None if there are
                         none. "pass" and "majority", sampled only, if all of its scores are 0 or 1: by k
        finished         share that ended by themselves
        length           tokens per response
    behavior             of the sampled ones: entropy, nats per token; kl to the reference, nats per response, None
                         without one; distinct, different texts per prompt ÷ samples per prompt
    prompts, samples     how many
    Raises RewardError, as the reward does.
    """
    ids = [list(prompt["ids"]) for prompt in prompts]
    greedy = plan._replace(samples_per_prompt=1)
    sampled = respond(model, tokenizer, ids, plan)
    likeliest = respond(model, tokenizer, ids, greedy, temperature=0.0)
    reading = {"pad_id": tokenizer.pad_id, "tokens_at_once": plan.tokens_at_once}
    behavior = describe(model, ids, sampled, reference=reference, **reading)
    return {
        "sampled": _described(prompts, tokenizer, sampled, reward, plan.seed),
        "greedy": _described(prompts, tokenizer, likeliest, reward, plan.seed),
        "behavior": {
            "entropy": behavior.entropy_per_token,
            "kl": behavior.kl,
            "distinct": behavior.distinct,
        },
        "prompts": len(prompts),
        "samples": plan.samples_per_prompt,
    }


def _described(
    prompts: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, responses: Responses, reward: FunctionReward, seed: int
) -> dict[str, Any]:
    answered = [prompts[i] for i in responses.prompt_index]
    scores = reward.score(batch_of(answered, responses.ids, responses.finished, tokenizer))
    assert scores.parts is not None
    parts = {
        name: _part(part.double(), responses, len(prompts), seed)
        for name, part in zip(reward.weights, scores.parts.unbind(1), strict=True)
    }
    return {
        "score": float(scores.total.double().mean()),
        "score_ci": mean_interval(scores.total, responses.prompt_index),
        "parts": parts,
        "finished": sum(responses.finished) / len(responses.finished),
        "length": sum(map(len, responses.ids)) / len(responses.ids),
    }


def _part(values: Tensor, responses: Responses, prompts: int, seed: int) -> dict[str, Any] | None:
    """Metrics of one function's values (N,), NaN where it does not apply."""
    applies = ~values.isnan()
    if not applies.any():
        return None
    chosen, clusters = values[applies], [responses.prompt_index[i] for i in applies.nonzero().flatten().tolist()]
    binary = bool(((chosen == 0) | (chosen == 1)).all())
    interval = share_interval if binary else mean_interval
    part: dict[str, Any] = {"mean": float(chosen.mean()), "ci": interval(chosen, clusters), "count": len(chosen)}
    samples = len(values) // prompts
    if binary and samples > 1 and bool(applies.all()):
        counts = [k for k in COUNTS if k <= samples]
        right = chosen.view(prompts, samples)
        passed = [pass_at_k(right.sum(1), samples, k=k) for k in counts]
        votes = [vote(_answers(right, responses.texts), right.new_zeros(prompts).long(), k, seed=seed) for k in counts]
        for name, shares in (("pass", passed), ("majority", votes)):
            part[name] = {
                "k": counts,
                "share": [float(share.mean()) for share in shares],
                "ci": [interval_of_shares(share) for share in shares],
            }
    return part


def _answers(right: Tensor, texts: Sequence[str]) -> Tensor:
    """(P, N) int64: 0 for every right answer, and a number for each other text, white space around it aside."""
    rows = []
    for number, row in enumerate(right.tolist()):
        own = [text.strip() for text in texts[number * len(row) : (number + 1) * len(row)]]
        number_of = {text: place for place, text in enumerate(dict.fromkeys(own), 1)}
        rows.append([0 if correct else number_of[text] for correct, text in zip(row, own, strict=True)])
    return torch.tensor(rows)
