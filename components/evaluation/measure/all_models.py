"""The evaluation of a run: every model on the same prompts, the reward model on rankings, all metrics in one dict."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from components.data.batches import LMBatch, PreferenceBatch
from components.evaluation.measure import quality as world_quality
from components.evaluation.measure.assessment import (
    Assessed,
    Judges,
    Prompt,
    assess,
    quality_metrics,
    question_of,
    win_rate,
)
from components.evaluation.measure.best_of_n import SHOWN_N, best_of_n, best_row
from components.evaluation.measure.bits import bits_per_byte
from components.evaluation.measure.choice import by_name, choice
from components.evaluation.measure.head_to_head import against_all, demonstrated
from components.evaluation.measure.majority import majority
from components.evaluation.measure.policy import Responses, SamplePlan, describe, respond
from components.evaluation.measure.reward_model import evaluate_ranking
from components.models.heads import CausalLM, ScalarModel
from components.tokenizer.tokenizer import Tokenizer
from components.world.world import World

BASE, REFERENCE = "base", "sft"  # model names with a special meaning
BEST = f"best-of-{SHOWN_N}"  # a row among the models that is not a model
SHOWN = 12  # prompts whose answers are shown in the report
# metrics that are also measured on training prompts
ON_TRAINING = ("gold", "correct", "wrong_name", "score", "kl", "greedy_correct")
TRAIN_SHARE = 4  # training prompts get 1/4 of the samples: there are more of them, and they matter less


class Material(NamedTuple):
    """What models are measured on; only the held-out prompts are required.

    prompts, train_prompts: {"ids": chat prompt, "prompt": text or messages}. seen, heldout: rankings on training
    prompts and on held-out ones. text: batches of held-out text like that of pretraining.
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
    proxy: ScalarModel | None = None,
    world: World | None,
    material: Material,
    plan: SamplePlan,
    best_of: int,
) -> dict[str, Any]:
    """Measures models ("base", "sft", "ppo", …) on held-out prompts, and the reward model on rankings.

    "base" continues the bare question as a raw document; all others answer the chat prompt. KL is to "sft".
    world: judges answers; without one (a user's own data) there is no gold, and the score takes its place.
    proxy: the reward model that policies were trained against, if `reward` is another one.
    best_of: samples per prompt for best-of-n and the majority vote; 0 leaves both out.

    Returns a dict of plain numbers, lists and strings:
        sampling      prompts, samples_per_prompt, train_prompts, train_samples_per_prompt, max_new_tokens, best_of
        models        name → policy.Behavior, quality.Quality (with a world), score and score_ci (with a reward
                      model), greedy_correct (share of likeliest answers that are correct; with a world),
                      assessment.WinRate against sft, bits_per_byte (with text), those ON_TRAINING prompts with the
                      suffix _train, samples: some answers;
                      last "best-of-16": the metrics of best_of_n.best_row, the others None
        crowd         with a world: quality.Crowd
        base          with a world and a base model: quality.BareBehavior and quality.FewShot
        best_of_n     with a reward model and sft: best_of_n.BestOfNCurve;
                      best_of_n_train: the same on training prompts, from a quarter of the samples
        majority      with a world and sft: majority.MajorityCurve
        choice        with a world and a reward model: choice.Choice, that on training prompts with the suffix
                      _train; compare with the models' greedy_correct and correct
        reward_model  reward_model.RankingResult, with a world also choice.NameAccuracy, those on held-out prompts
                      with the suffix _heldout
        proxy         the same of the second reward model, which also gives the models proxy_score and proxy_score_ci
        against, demonstrations  see `opponents`; seed
    Raises ValueError without a model or a prompt.
    """
    if not models or not material.prompts:
        raise ValueError(
            f"evaluation: expected at least one model and one prompt, got {len(models)} and {len(material.prompts)}"
        )
    reward, proxy = (model and model.eval() for model in (reward, proxy))
    judges = Judges(tokenizer, world, reward, proxy, plan.tokens_at_once)
    results: dict[str, Any] = {"seed": plan.seed, "sampling": sampling(material, plan, best_of), "models": {}}
    assessed, greedy = {}, {}
    for name, model in models.items():
        reference = None if name == BASE else models.get(REFERENCE)
        measured = measure(name, model.eval(), judges, material, plan, reference)
        results["models"][name], assessed[name], greedy[name] = measured
    if world is not None:
        results["crowd"] = world_quality.crowd(world)._asdict()
    if BASE in models and world is not None:
        results["base"] = base_metrics(models[BASE], judges, material.prompts, assessed[BASE].responses, plan)
    if REFERENCE in models:
        against_reference(results, assessed)
        if best_of and (world or reward):
            many = plan._replace(samples_per_prompt=best_of, seed=plan.seed + 2)
            sample_many(results, models[REFERENCE], judges, material, many, assessed[REFERENCE])
    return results | opponents(judges, material, assessed, greedy) | measure_reward(judges, material)


def sampling(material: Material, plan: SamplePlan, best_of: int) -> dict[str, int]:
    """What the metrics are based on."""
    return {
        "prompts": len(material.prompts),
        "samples_per_prompt": plan.samples_per_prompt,
        "train_prompts": len(material.train_prompts),
        "train_samples_per_prompt": on_training(plan).samples_per_prompt,
        "max_new_tokens": plan.max_new_tokens,
        "best_of": best_of,
    }


def on_training(plan: SamplePlan) -> SamplePlan:
    """The plan for training prompts: fewer samples of each, from another seed."""
    return plan._replace(samples_per_prompt=max(1, plan.samples_per_prompt // TRAIN_SHARE), seed=plan.seed + 1)


def inputs(name: str, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The ids that a model of this name continues: the start of a raw document for "base", else the chat prompt.

    If the chat prompt was cut to its last tokens, so is the document, which is never the longer of the two.
    """
    if name == BASE:
        kept = [tokenizer.encode(question_of(prompt))[1 - len(prompt["ids"]) :] for prompt in prompts]
        return [[*tokenizer.beginning, *ids] for ids in kept]
    return [list(prompt["ids"]) for prompt in prompts]


def measure(
    name: str, model: CausalLM, judges: Judges, material: Material, plan: SamplePlan, reference: CausalLM | None
) -> tuple[dict[str, Any], Assessed, Assessed]:
    """All metrics of one model except its win rates, with some of its answers; and the assessed answers themselves,
    sampled and likeliest: to all prompts if a judge assesses those, else to the SHOWN first."""
    tokenizer, prompts = judges.tokenizer, material.prompts
    asked = inputs(name, tokenizer, prompts)
    responses = respond(model, tokenizer, asked, plan)
    reading = {"pad_id": tokenizer.pad_id, "tokens_at_once": plan.tokens_at_once}
    metrics: dict[str, Any] = describe(model, asked, responses, reference=reference, **reading)._asdict()
    assessed = assess(responses, prompts, judges)
    metrics |= quality_metrics(assessed)
    greedy = likeliest(name, model, judges, prompts if judges.world or judges.reward else prompts[:SHOWN], plan)
    if judges.world is not None:
        metrics["greedy_correct"] = correct_share(greedy)
    if material.train_prompts:
        metrics |= on_training_prompts(name, model, judges, material.train_prompts, on_training(plan), reference)
    if material.text:
        metrics["bits_per_byte"] = bits_per_byte(model, material.text)
    metrics["samples"] = samples(prompts[:SHOWN], greedy, assessed, plan.samples_per_prompt)
    return metrics, assessed, greedy


def opponents(
    judges: Judges, material: Material, assessed: Mapping[str, Assessed], greedy: Mapping[str, Assessed]
) -> dict[str, Any]:
    """Comparisons by the reward model; {} with a world, whose judge knows better, and without a reward model.

    against: head_to_head.against_all, of all models but "base"; demonstrations: score, score_ci, length and prompts of
    the references, if any prompt has one.
    """
    if judges.world is not None or judges.reward is None:
        return {}
    chat = {
        how: {name: found for name, found in answers.items() if name != BASE}
        for how, answers in (("sampled", assessed), ("greedy", greedy))
    }
    shown = demonstrated(material.prompts, judges.tokenizer, judges.reward.config.longest)
    if shown is None:
        return {"against": against_all(chat, REFERENCE, None)}
    given = assess(shown, material.prompts, judges)
    metrics = quality_metrics(given) | {"length": sum(map(len, shown.ids)) / len(shown.ids), "prompts": len(shown.ids)}
    return {"against": against_all(chat, REFERENCE, given), "demonstrations": metrics}


def on_training_prompts(
    name: str,
    model: CausalLM,
    judges: Judges,
    prompts: Sequence[Prompt],
    plan: SamplePlan,
    reference: CausalLM | None,
) -> dict[str, Any]:
    """A model's metrics ON_TRAINING prompts, with the suffix _train."""
    assessed = sample(name, model, judges, prompts, plan)
    asked = inputs(name, judges.tokenizer, prompts)
    reading = {"pad_id": judges.tokenizer.pad_id, "tokens_at_once": plan.tokens_at_once}
    metrics = quality_metrics(assessed)
    metrics |= describe(model, asked, assessed.responses, reference=reference, **reading)._asdict()
    if judges.world is not None:
        metrics["greedy_correct"] = correct_share(likeliest(name, model, judges, prompts, plan))
    return suffixed({key: metrics[key] for key in ON_TRAINING if key in metrics}, "_train")


def sample(name: str, model: CausalLM, judges: Judges, prompts: Sequence[Prompt], plan: SamplePlan) -> Assessed:
    """A model's answers to prompts, sampled at temperature 1 and assessed."""
    return assess(respond(model, judges.tokenizer, inputs(name, judges.tokenizer, prompts), plan), prompts, judges)


def likeliest(name: str, model: CausalLM, judges: Judges, prompts: Sequence[Prompt], plan: SamplePlan) -> Assessed:
    """A model's likeliest answer to every prompt, assessed by the world's judge or, without one, the reward model."""
    asked = inputs(name, judges.tokenizer, prompts)
    greedy = respond(model, judges.tokenizer, asked, plan._replace(samples_per_prompt=1), temperature=0.0)
    return assess(greedy, prompts, judges._replace(reward=None if judges.world else judges.reward, proxy=None))


def correct_share(assessed: Assessed) -> float:
    """The share of responses that the world's judge finds correct, from 0 to 1."""
    assert assessed.judgments is not None  # only called with a world's questions
    return sum(judgment.correct for judgment in assessed.judgments) / len(assessed.judgments)


def samples(prompts: Sequence[Prompt], greedy: Assessed, sampled: Assessed, per_prompt: int) -> list[dict[str, Any]]:
    """Per prompt: the likeliest answer and the first sampled one, each with its gold score if there is a judge."""
    shown = []
    for number, prompt in enumerate(prompts):
        row = {"prompt": question_of(prompt), "reference": prompt.get("reference")}
        for kind, answers, i in (("greedy", greedy, number), ("sampled", sampled, number * per_prompt)):
            row |= {kind: answers.responses.texts[i], f"{kind}_finished": answers.responses.finished[i]}
            if answers.judgments is not None:
                row[f"{kind}_gold"] = answers.judgments[i].gold
        shown.append(row)
    return shown


def base_metrics(
    model: CausalLM, judges: Judges, prompts: Sequence[Prompt], responses: Responses, plan: SamplePlan
) -> dict[str, Any]:
    """How a base model responds to bare questions (responses) and to few-shot prompts."""
    assert judges.world is not None  # only a world has bare questions
    questions = [question_of(prompt) for prompt in prompts]
    few = world_quality.few_shot(judges.world, model, judges.tokenizer, questions, plan)
    return {**world_quality.bare_behavior(judges.world, responses)._asdict(), **few._asdict()}


def against_reference(results: dict[str, Any], assessed: Mapping[str, Assessed]) -> None:
    """Adds to every model its win rate against the reference."""
    for name, answers in assessed.items():
        compared = win_rate(answers, assessed[REFERENCE])
        results["models"][name] |= compared._asdict() if compared is not None else {}


def sample_many(
    results: dict[str, Any],
    model: CausalLM,
    judges: Judges,
    material: Material,
    plan: SamplePlan,
    reference: Assessed,
) -> None:
    """Adds to results what the reference model reaches with many answers to each prompt, sampled once."""
    many = sample(REFERENCE, model, judges, material.prompts, plan)
    if judges.world is not None:
        questions = [question_of(prompt) for prompt in material.prompts]
        results["majority"] = majority(judges.world, questions, many, seed=plan.seed)._asdict()
    if judges.reward is None:
        return
    results["best_of_n"] = best_of_n(many).metrics()
    trained: dict[str, Any] = {}
    if material.train_prompts:
        trained = best_of_n(sample(REFERENCE, model, judges, material.train_prompts, on_training(plan))).metrics()
        results["best_of_n_train"] = trained
    if plan.samples_per_prompt < SHOWN_N:
        return
    row = dict.fromkeys(key for key in results["models"][REFERENCE] if key != "samples")
    row |= best_row(many, reference)
    if SHOWN_N in trained.get("n", ()):
        i = trained["n"].index(SHOWN_N)
        row |= suffixed({key: trained[key][i] for key in ON_TRAINING if key in trained}, "_train")
    results["models"][BEST] = row


def measure_reward(judges: Judges, material: Material) -> dict[str, Any]:
    """The reward model's rankings and, with a world, its choices among statements, and the proxy's rankings; {} without
    a reward model."""
    if judges.reward is None:
        return {}
    if judges.proxy is not None:
        proxy = measure_reward(judges._replace(reward=judges.proxy, proxy=None), material)
        return {"proxy": proxy["reward_model"], **measure_reward(judges._replace(proxy=None), material)}
    metrics: dict[str, Any] = {}
    for batches, ending in ((material.seen, ""), (material.heldout, "_heldout")):
        if batches is not None:
            metrics |= suffixed(evaluate_ranking(judges.reward, batches).metrics(), ending)
    if judges.world is None:
        return {"reward_model": metrics}
    shared = (judges.world, judges.reward, judges.tokenizer)
    reading: dict[str, Any] = {"tokens_at_once": judges.tokens_at_once}
    chosen = choice(*shared, material.prompts, **reading)._asdict()
    named = suffixed(by_name(*shared, material.prompts, **reading)._asdict(), "_heldout")
    if material.train_prompts:
        chosen |= suffixed(choice(*shared, material.train_prompts, **reading)._asdict(), "_train")
        named |= by_name(*shared, material.train_prompts, **reading)._asdict()
    return {"reward_model": metrics | named, "choice": chosen}


def suffixed(metrics: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """The metrics with `ending` at the end of their names."""
    return {f"{name}{ending}": value for name, value in metrics.items()}
