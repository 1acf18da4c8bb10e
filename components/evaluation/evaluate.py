"""The evaluation of a run: every model on the same prompts, the reward model on rankings, one dict of figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from components.data.batches import PreferenceBatch
from components.evaluation import world as world_quality
from components.evaluation.intervals import mean_interval
from components.evaluation.policy import Responses, SamplePlan, describe, respond, scores
from components.evaluation.reward import evaluate_ranking
from components.models.heads import CausalLM, ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.world import World

BASE, REFERENCE = "base", "sft"  # names among the models that mean something
SHOWN = 12  # prompts whose answers are shown in the report
TRAIN_SHARE = 4  # training prompts come with 1/4 of the samples: there are more of them and they are secondary

Prompt = Mapping[str, Any]


class Judges(NamedTuple):
    """Who reads answers: the tokenizer always, the world's judge and the reward model where there are such."""

    tokenizer: Tokenizer
    world: World | None
    reward: ScalarModel | None


def evaluate_pipeline(
    models: Mapping[str, CausalLM],
    tokenizer: Tokenizer,
    *,
    reward: ScalarModel | None,
    world: World | None,
    prompts: Sequence[Prompt],
    train_prompts: Sequence[Prompt],
    seen: Iterable[PreferenceBatch] | None,
    heldout: Iterable[PreferenceBatch] | None,
    samples_per_prompt: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """Measures models ("base", "sft", "ppo", …) on held-out prompts, and the reward model on rankings.

    prompts, train_prompts: {"ids": chat prompt, "prompt": text or messages}; train_prompts may be empty.
    "base" continues the bare question as a raw document; all others answer the chat prompt. KL is to "sft".
    world: judges answers; without one (a user's own data) there is no gold, and the score stands in its place.
    seen, heldout: rankings on prompts of training and on held-out ones; None or no reward model leaves them out.

    Returns a dict of plain numbers, lists and strings:
        sampling      prompts, samples_per_prompt, train_prompts, train_samples_per_prompt, max_new_tokens
        models        name → figures of policy.describe, world.quality (a world only), gold_train and correct_train,
                      score and score_ci (a reward model only; score_train), samples: some answers
        base          with a world and a base model: answers_bare, asks_another, few_shot, shots
        reward_model  figures of reward.evaluate_ranking, those on held-out prompts with the ending _heldout
        seed
    """
    if not models or not prompts:
        raise ValueError(f"evaluation: expected a model and a prompt at least, got {len(models)} and {len(prompts)}")
    plan = SamplePlan(samples_per_prompt, max_new_tokens, seed)
    train_plan = SamplePlan(max(1, samples_per_prompt // TRAIN_SHARE), max_new_tokens, seed + 1)
    results: dict[str, Any] = {
        "seed": seed,
        "sampling": {
            "prompts": len(prompts),
            "samples_per_prompt": plan.samples_per_prompt,
            "train_prompts": len(train_prompts),
            "train_samples_per_prompt": train_plan.samples_per_prompt,
            "max_new_tokens": max_new_tokens,
        },
        "models": {},
    }
    judges = Judges(tokenizer, world, reward.eval() if reward is not None else None)
    for name, model in models.items():
        reference = None if name == BASE else models.get(REFERENCE)
        figures, drawn = measure(name, model.eval(), judges, prompts, plan, reference=reference)
        if train_prompts:
            more = respond(model, tokenizer, inputs(name, tokenizer, train_prompts), train_plan)
            found = worth(more, train_prompts, judges)
            figures |= {f"{key}_train": found[key] for key in ("gold", "correct", "score") if key in found}
        results["models"][name] = figures
        if name == BASE and world is not None:
            few = world_quality.few_shot(world, model, tokenizer, [question_of(prompt) for prompt in prompts], plan)
            results["base"] = world_quality.bare_behaviour(world, drawn) | few
    if reward is not None:
        results["reward_model"] = rankings(reward, seen, heldout)
    return results


def question_of(prompt: Prompt) -> str:
    """The text of a prompt: itself, or what the last message says."""
    asked = prompt["prompt"]
    return asked if isinstance(asked, str) else asked[-1]["content"]


def inputs(name: str, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The ids that a model of this name continues: a raw document's start for the base model, else the chat prompt.

    Where the chat prompt was cut to its last tokens, so is the document: it is never the longer of the two.
    """
    if name == BASE:
        kept = [tokenizer.encode(question_of(prompt))[1 - len(prompt["ids"]) :] for prompt in prompts]
        return [[tokenizer.bos_id, *ids] for ids in kept]
    return [list(prompt["ids"]) for prompt in prompts]


def measure(
    name: str,
    model: CausalLM,
    judges: Judges,
    prompts: Sequence[Prompt],
    plan: SamplePlan,
    *,
    reference: CausalLM | None,
) -> tuple[dict[str, Any], Responses]:
    """All figures of one model on prompts and some of its answers; and the responses that the figures rest on."""
    tokenizer = judges.tokenizer
    asked = inputs(name, tokenizer, prompts)
    drawn = respond(model, tokenizer, asked, plan)
    greedy = respond(model, tokenizer, asked[:SHOWN], plan._replace(samples_per_prompt=1), temperature=0.0)
    figures = describe(model, asked, drawn, reference=reference, pad_id=tokenizer.pad_id)
    figures |= worth(drawn, prompts, judges)
    figures["samples"] = samples(prompts[:SHOWN], greedy, drawn, plan.samples_per_prompt, judges.world)
    return figures, drawn


def worth(drawn: Responses, prompts: Sequence[Prompt], judges: Judges) -> dict[str, Any]:
    """What the judge and the reward model think of responses; the latter reads them after the chat prompt, always."""
    figures: dict[str, Any] = {}
    if judges.world is not None:
        found = world_quality.judgements(judges.world, [question_of(prompt) for prompt in prompts], drawn)
        figures |= world_quality.quality(found, drawn)
    if judges.reward is not None:
        chat = [list(prompt["ids"]) for prompt in prompts]
        given = scores(judges.reward, chat, drawn, pad_id=judges.tokenizer.pad_id)
        figures |= {"score": float(given.mean()), "score_ci": mean_interval(given, drawn.of)}
    return figures


def samples(
    prompts: Sequence[Prompt], greedy: Responses, drawn: Responses, per_prompt: int, world: World | None
) -> list[dict[str, Any]]:
    """Per prompt: its likeliest answer and the first one drawn, each with its gold score where there is a judge."""
    shown = []
    for number, prompt in enumerate(prompts):
        question = question_of(prompt)
        row = {"prompt": question, "reference": prompt.get("reference")}
        for kind, responses, place in (("greedy", greedy, number), ("sampled", drawn, number * per_prompt)):
            text, finished = responses.texts[place], responses.finished[place]
            row |= {kind: text, f"{kind}_finished": finished}
            if world is not None:
                row[f"{kind}_gold"] = world.judge(question, text, finished).gold
        shown.append(row)
    return shown


def rankings(
    reward: ScalarModel, seen: Iterable[PreferenceBatch] | None, heldout: Iterable[PreferenceBatch] | None
) -> dict[str, Any]:
    """evaluate_ranking on both sets, the keys of the held-out one ending in _heldout."""
    figures: dict[str, Any] = {}
    for batches, ending in ((seen, ""), (heldout, "_heldout")):
        if batches is not None:
            figures |= {f"{key}{ending}": value for key, value in evaluate_ranking(reward, batches).items()}
    return figures
