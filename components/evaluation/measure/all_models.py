"""The evaluation of a run: every model on the same prompts, the reward model on rankings, one dict of figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from components.data.batches import LMBatch, PreferenceBatch
from components.evaluation.measure import quality as world_quality
from components.evaluation.measure.assessment import (
    Assessed,
    Judges,
    Prompt,
    assess,
    question_of,
    win_rate,
    worth_figures,
)
from components.evaluation.measure.best_of_n import SHOWN_N, best_of_n, best_row
from components.evaluation.measure.bits import bits_per_byte
from components.evaluation.measure.choice import by_name, choice
from components.evaluation.measure.majority import majority
from components.evaluation.measure.policy import Responses, SamplePlan, describe, respond
from components.evaluation.measure.reward_model import evaluate_ranking
from components.models.heads import CausalLM, ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.world import World

BASE, REFERENCE = "base", "sft"  # names among the models that mean something
BEST = f"best-of-{SHOWN_N}"  # the row among the models that is not one
SHOWN = 12  # prompts whose answers are shown in the report
# figures that are wanted on training prompts too
ON_TRAINING = ("gold", "correct", "wrong_name", "score", "kl", "greedy_correct")
TRAIN_SHARE = 4  # training prompts come with 1/4 of the samples: there are more of them and they are secondary


class Material(NamedTuple):
    """What models are measured on; only the held-out prompts must be there.

    prompts, train_prompts: {"ids": chat prompt, "prompt": text or messages}. seen, heldout: rankings on prompts of
    training and on held-out ones. text: batches of held-out text of the kind that was pretrained on.
    """

    prompts: Sequence[Prompt]
    train_prompts: Sequence[Prompt] = ()
    seen: Iterable[PreferenceBatch] | None = None
    heldout: Iterable[PreferenceBatch] | None = None
    text: Sequence[LMBatch] = ()


def evaluate_pipeline(
    models: Mapping[str, CausalLM],
    tokenizer: Tokenizer,
    *,
    reward: ScalarModel | None,
    world: World | None,
    material: Material,
    plan: SamplePlan,
    best_of: int,
) -> dict[str, Any]:
    """Measures models ("base", "sft", "ppo", …) on held-out prompts, and the reward model on rankings.

    "base" continues the bare question as a raw document; all others answer the chat prompt. KL is to "sft".
    world: judges answers; without one (a user's own data) there is no gold, and the score stands in its place.
    best_of: samples per prompt that the best of n and the majority are taken from; 0 leaves both out.

    Returns a dict of plain numbers, lists and strings:
        sampling      prompts, samples_per_prompt, train_prompts, train_samples_per_prompt, max_new_tokens, best_of
        models        name → figures of policy.describe, world.quality (a world only), score and score_ci (a reward
                      model only), greedy_correct (share of right likeliest answers; a world only), win_rate and
                      win_rate_ci against sft (assessment.win_rate), bits_per_byte (text only), those ON_TRAINING
                      prompts with the ending _train, samples: some answers;
                      last "best-of-16": those of best_of_n.best_row, the others None
        crowd         with a world: figures of world.crowd, of the demonstrations
        base          with a world and a base model: answers_bare, asks_another, few_shot, shots
        best_of_n     with a reward model and sft: figures of best_of_n.best_of_n, lists over n;
                      best_of_n_train the same on training prompts, from a quarter of the samples
        majority      with a world and sft: figures of majority.majority, lists over k
        choice        with a world and a reward model: figures of choice.choice, those on training prompts with
                      the ending _train; greedy_correct and correct of the models are what they compare with
        reward_model  figures of reward.evaluate_ranking, with a world of choice.by_name too, those on held-out
                      prompts with the ending _heldout
        seed
    Raises ValueError without a model or a prompt.
    """
    if not models or not material.prompts:
        raise ValueError(
            f"evaluation: expected a model and a prompt at least, got {len(models)} and {len(material.prompts)}"
        )
    judges = Judges(tokenizer, world, reward.eval() if reward is not None else None, plan.tokens_at_once)
    results: dict[str, Any] = {"seed": plan.seed, "sampling": sampling(material, plan, best_of), "models": {}}
    assessed = {}
    for name, model in models.items():
        reference = None if name == BASE else models.get(REFERENCE)
        results["models"][name], assessed[name] = measure(name, model.eval(), judges, material, plan, reference)
    if world is not None:
        results["crowd"] = world_quality.crowd(world)
    if BASE in models and world is not None:
        results["base"] = base_figures(models[BASE], judges, material.prompts, assessed[BASE].drawn, plan)
    if REFERENCE in models:
        against_reference(results, assessed)
        if best_of and (world or reward):
            many = plan._replace(samples_per_prompt=best_of, seed=plan.seed + 2)
            sample_many(results, models[REFERENCE], judges, material, many, assessed[REFERENCE])
    return results | measure_reward(judges, material)


def sampling(material: Material, plan: SamplePlan, best_of: int) -> dict[str, int]:
    """What the figures rest on."""
    return {
        "prompts": len(material.prompts),
        "samples_per_prompt": plan.samples_per_prompt,
        "train_prompts": len(material.train_prompts),
        "train_samples_per_prompt": on_training(plan).samples_per_prompt,
        "max_new_tokens": plan.max_new_tokens,
        "best_of": best_of,
    }


def on_training(plan: SamplePlan) -> SamplePlan:
    return plan._replace(samples_per_prompt=max(1, plan.samples_per_prompt // TRAIN_SHARE), seed=plan.seed + 1)


def inputs(name: str, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The ids that a model of this name continues: a raw document's start for the base model, else the chat prompt.

    Where the chat prompt was cut to its last tokens, so is the document: it is never the longer of the two.
    """
    if name == BASE:
        kept = [tokenizer.encode(question_of(prompt))[1 - len(prompt["ids"]) :] for prompt in prompts]
        return [[*tokenizer.beginning, *ids] for ids in kept]
    return [list(prompt["ids"]) for prompt in prompts]


def measure(
    name: str, model: CausalLM, judges: Judges, material: Material, plan: SamplePlan, reference: CausalLM | None
) -> tuple[dict[str, Any], Assessed]:
    """All figures of one model but its win rate, with some of its answers; and the answers that they rest on."""
    tokenizer, prompts = judges.tokenizer, material.prompts
    asked = inputs(name, tokenizer, prompts)
    drawn = respond(model, tokenizer, asked, plan)
    reading = {"pad_id": tokenizer.pad_id, "tokens_at_once": plan.tokens_at_once}
    figures = describe(model, asked, drawn, reference=reference, **reading)
    assessed = assess(drawn, prompts, judges)
    figures |= worth_figures(assessed)
    greedy = likeliest(name, model, judges, prompts if judges.world else prompts[:SHOWN], plan)
    if judges.world is not None:
        figures["greedy_correct"] = share_right(greedy)
    if material.train_prompts:
        figures |= on_training_prompts(name, model, judges, material.train_prompts, on_training(plan), reference)
    if material.text:
        figures["bits_per_byte"] = bits_per_byte(model, material.text)
    figures["samples"] = samples(prompts[:SHOWN], greedy, assessed, plan.samples_per_prompt)
    return figures, assessed


def on_training_prompts(
    name: str,
    model: CausalLM,
    judges: Judges,
    prompts: Sequence[Prompt],
    plan: SamplePlan,
    reference: CausalLM | None,
) -> dict[str, Any]:
    """Those of a model's figures that are wanted on training prompts too, with the ending _train."""
    assessed = draw(name, model, judges, prompts, plan)
    asked = inputs(name, judges.tokenizer, prompts)
    reading = {"pad_id": judges.tokenizer.pad_id, "tokens_at_once": plan.tokens_at_once}
    figures = worth_figures(assessed)
    figures |= describe(model, asked, assessed.drawn, reference=reference, **reading)
    if judges.world is not None:
        figures["greedy_correct"] = share_right(likeliest(name, model, judges, prompts, plan))
    return {f"{key}_train": figures[key] for key in ON_TRAINING if key in figures}


def draw(name: str, model: CausalLM, judges: Judges, prompts: Sequence[Prompt], plan: SamplePlan) -> Assessed:
    """A model's answers to prompts at temperature 1, assessed."""
    return assess(respond(model, judges.tokenizer, inputs(name, judges.tokenizer, prompts), plan), prompts, judges)


def likeliest(name: str, model: CausalLM, judges: Judges, prompts: Sequence[Prompt], plan: SamplePlan) -> Assessed:
    """A model's likeliest answer to every prompt, which the world's judge alone reads."""
    asked = inputs(name, judges.tokenizer, prompts)
    greedy = respond(model, judges.tokenizer, asked, plan._replace(samples_per_prompt=1), temperature=0.0)
    return assess(greedy, prompts, judges._replace(reward=None))


def share_right(assessed: Assessed) -> float:
    assert assessed.found is not None  # asked of a world's questions alone
    return sum(one.correct for one in assessed.found) / len(assessed.found)


def samples(prompts: Sequence[Prompt], greedy: Assessed, drawn: Assessed, per_prompt: int) -> list[dict[str, Any]]:
    """Per prompt: its likeliest answer and the first one drawn, each with its gold score where there is a judge."""
    shown = []
    for number, prompt in enumerate(prompts):
        row = {"prompt": question_of(prompt), "reference": prompt.get("reference")}
        for kind, answers, place in (("greedy", greedy, number), ("sampled", drawn, number * per_prompt)):
            row |= {kind: answers.drawn.texts[place], f"{kind}_finished": answers.drawn.finished[place]}
            if answers.found is not None:
                row[f"{kind}_gold"] = answers.found[place].gold
        shown.append(row)
    return shown


def base_figures(
    model: CausalLM, judges: Judges, prompts: Sequence[Prompt], drawn: Responses, plan: SamplePlan
) -> dict[str, Any]:
    """What a base model makes of bare questions (drawn) and of few-shot prompts."""
    assert judges.world is not None  # bare questions are a world's
    questions = [question_of(prompt) for prompt in prompts]
    few = world_quality.few_shot(judges.world, model, judges.tokenizer, questions, plan)
    return world_quality.bare_behaviour(judges.world, drawn) | few


def against_reference(results: dict[str, Any], assessed: Mapping[str, Assessed]) -> None:
    """Adds to every model how often its answers win against the reference's."""
    for name, found in assessed.items():
        results["models"][name] |= win_rate(found, assessed[REFERENCE])


def sample_many(
    results: dict[str, Any],
    model: CausalLM,
    judges: Judges,
    material: Material,
    plan: SamplePlan,
    reference: Assessed,
) -> None:
    """Adds to results what the reference model reaches with many answers to each prompt, drawn once."""
    many = draw(REFERENCE, model, judges, material.prompts, plan)
    if judges.world is not None:
        questions = [question_of(prompt) for prompt in material.prompts]
        results["majority"] = majority(judges.world, questions, many, seed=plan.seed)
    if judges.reward is None:
        return
    results["best_of_n"] = best_of_n(many)
    trained: dict[str, Any] = {}
    if material.train_prompts:
        trained = best_of_n(draw(REFERENCE, model, judges, material.train_prompts, on_training(plan)))
        results["best_of_n_train"] = trained
    if plan.samples_per_prompt < SHOWN_N:
        return
    row = dict.fromkeys(key for key in results["models"][REFERENCE] if key != "samples")
    row |= best_row(many, reference)
    if SHOWN_N in trained.get("n", ()):
        place = trained["n"].index(SHOWN_N)
        row |= {f"{key}_train": trained[key][place] for key in ON_TRAINING if key in trained}
    results["models"][BEST] = row


def measure_reward(judges: Judges, material: Material) -> dict[str, Any]:
    """The reward model's rankings, and in a world its choices among statements; {} without a reward model."""
    if judges.reward is None:
        return {}
    figures: dict[str, Any] = {}
    for batches, ending in ((material.seen, ""), (material.heldout, "_heldout")):
        if batches is not None:
            figures |= {f"{key}{ending}": value for key, value in evaluate_ranking(judges.reward, batches).items()}
    if judges.world is None:
        return {"reward_model": figures}
    known = (judges.world, judges.reward, judges.tokenizer)
    reading: dict[str, Any] = {"tokens_at_once": judges.tokens_at_once}
    chosen = choice(*known, material.prompts, **reading)
    named = by_name(*known, material.prompts, "_heldout", **reading)
    if material.train_prompts:
        chosen |= choice(*known, material.train_prompts, "_train", **reading)
        named |= by_name(*known, material.train_prompts, **reading)
    return {"reward_model": figures | named, "choice": chosen}
