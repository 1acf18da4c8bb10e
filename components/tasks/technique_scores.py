"""Accuracy against tokens: what techniques make of a model, by reward functions on held-out prompts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from components.artifacts import lineage, store
from components.data.sources.builtin import make_world
from components.evaluation.measure.intervals import mean_interval, share_interval
from components.functional.seeding import derived_seed
from components.models.heads import CausalLM
from components.prompting.best_of import Score, Scored
from components.prompting.named import techniques_of
from components.prompting.technique import Answers, Generate, Query, Technique, applied
from components.rewards.functions import FunctionReward
from components.rewards.reward import batch_of
from components.serving.api_errors import ApiError
from components.serving.engine import Engine
from components.serving.generator import EngineGenerator
from components.serving.rows import Options
from components.serving.scoring import scorer_of
from components.serving.served import Served
from components.system.disk import present
from components.system.plain import plain
from components.tasks import common
from components.tasks.placement import Place
from components.tokenizer.tokenizer import Tokenizer
from components.world.exercises import Exercises

ALONE = "one sample"
TASK = "task"  # the column of the prompts by which figures are divided
WORLD = "world"  # documents and examples of this name are the world's
THREADS = 32  # prompts that are answered at a time; those of one technique share the engine's batches


class Chosen(NamedTuple):
    """Techniques that are measured together; tasks: on prompts of which tasks, None for all."""

    techniques: list[Technique]
    tasks: Collection[str] | None = None


def chosen_techniques(cfg: DictConfig, scorer: Callable[[str], Score]) -> dict[str, Chosen]:
    """The entries of stage.techniques, by name: a list of techniques, or {tasks: […], techniques: […]} for prompts
    whose column TASK is one of these. documents, examples: "world" stands for the built-in world's.

    Raises ValueError, naming the entry, for what does not exist or fit.
    """
    made = {}
    for name, given in (cfg.stage.techniques or {}).items():
        entry = plain(given)
        try:
            tasks, listed = None, entry
            if isinstance(entry, Mapping):
                if entry.keys() != {"tasks", "techniques"} or not isinstance(entry["tasks"], list):
                    raise ValueError(f"expected a list, or {{tasks: […], techniques: […]}}, got {entry}")
                tasks, listed = entry["tasks"], entry["techniques"]
            made[str(name)] = Chosen(techniques_of(_with_world(listed, cfg), scorer), tasks)
        except ValueError as error:
            raise ValueError(f"stage.techniques.{name}: {error}") from None
    return made


def _with_world(given: Any, cfg: DictConfig) -> Any:
    """Settings of techniques with the world's encyclopedia in place of documents: world, and its solved examples in
    place of examples: world."""
    if isinstance(given, list):
        return [_with_world(one, cfg) for one in given]
    if not isinstance(given, Mapping):
        return given
    settings = {key: _with_world(value, cfg) for key, value in given.items()}
    named = [key for key in ("documents", "examples") if settings.get(key) == WORLD]
    if not named:
        return settings
    world = make_world(dict(cfg.world))
    if not isinstance(world, Exercises):
        raise ValueError(f"{named[0]}: {WORLD}: expected world=exercises, got world.kind {cfg.world.kind}")
    return settings | {key: world.encyclopedia() if key == "documents" else world.examples() for key in named}


def check(cfg: DictConfig) -> None:
    """Raises ValueError as `chosen_techniques` does, before there is a reward model to score with."""
    chosen_techniques(cfg, lambda folder: lambda messages, answers: Scored([0.0] * len(answers)))


def scorers_of(cfg: DictConfig) -> dict[str, dict[str, str]]:
    """The reward models that stage.techniques names, as artifacts that are read, by folder.

    Raises ValueError as `chosen_techniques` does, also for a folder that is not there.
    """
    folders: dict[str, str] = {}

    def noted(folder: str) -> Score:
        if not present(folder):
            raise ValueError(f"score: no reward model at {folder}, expected a folder such as logs/tiny/rm/export")
        folders[folder] = folder
        return lambda messages, answers: Scored([0.0] * len(answers))

    chosen_techniques(cfg, noted)
    return lineage.require(folders, {}, common.identity(cfg))


def of_model(
    cfg: DictConfig,
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Mapping[str, Any]],
    reward: FunctionReward,
    place: Place,
) -> dict[str, dict[str, Any]]:
    """By the name in stage.techniques, after ALONE, a single sample at temperature 1:

    score, score_ci  mean of the weighted sum of the functions, 95% interval over prompts
    gain, gain_ci    mean difference from ALONE on the same prompts, with its interval; absent for ALONE
    read, sampled    tokens per prompt: of prompts, also of a reward model's, and of all answers, chosen or not
    tasks            the same by task, if the prompts have a column TASK
    Raises ValueError, naming the entry, for techniques that do not fit the model or the prompts.
    """
    engine, writer = Engine({"model": model}), ThreadPoolExecutor(1)
    served, options = Served("model", model, tokenizer), Options(max_tokens=cfg.stage.max_new_tokens)
    generate = EngineGenerator(engine, served, options, writer)

    def scorer(folder: str) -> Score:
        reader = Served(folder, place.to_device(store.load_scalar(folder)), store.load_tokenizer(folder), Path(folder))
        return scorer_of(engine, reader, writer)

    tasks = [str(one["columns"].get(TASK, "")) for one in prompts]
    chosen = {ALONE: Chosen([])} | chosen_techniques(cfg, scorer)
    found: dict[str, dict[str, Any]] = {}
    alone = torch.empty(0)
    try:
        for name, (techniques, wanted) in chosen.items():
            places = [i for i, task in enumerate(tasks) if wanted is None or task in wanted]
            if not places:
                raise ValueError(f"stage.techniques.{name}: tasks: no prompt is of {', '.join(wanted or ())}")
            asked = [prompts[i] for i in places]
            made = _answered(applied(techniques, generate), asked, [derived_seed(cfg.seed, i) for i in places])
            totals = _scored(made, tokenizer, asked, reward)
            if name == ALONE:
                alone = totals
            found[name] = by_task(totals, made, None if name == ALONE else alone[places], [tasks[i] for i in places])
    except ApiError as error:
        raise ValueError(f"stage.techniques.{name}: {error.message}") from None
    finally:
        generate.cancel()
        engine.close()
        writer.shutdown()
    return found


def _answered(answer: Generate, prompts: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Answers]:
    """One answer to each prompt, of the same seed for every technique."""
    queries = [Query(one["prompt"], seed=seed) for one, seed in zip(prompts, seeds, strict=True)]
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(answer, queries))


def _scored(
    made: Sequence[Answers], tokenizer: Tokenizer, prompts: Sequence[Mapping[str, Any]], reward: FunctionReward
) -> Tensor:
    """The score of every prompt's answer, (N,) float64."""
    texts = [answers[0].text.removeprefix(tokenizer.prefill) for answers, _ in made]
    finished = [answers[0].finished for answers, _ in made]
    batch = batch_of(prompts, [tokenizer.encode(text) for text in texts], finished, tokenizer)
    return reward.score(batch).total.double()


def by_task(totals: Tensor, made: Sequence[Answers], alone: Tensor | None, tasks: Sequence[str]) -> dict[str, Any]:
    """The figures of all prompts, with those of each task."""
    figures = _described(totals, made, alone)
    if any(tasks):
        figures["tasks"] = {
            task: _described(totals[places], [made[i] for i in places], None if alone is None else alone[places])
            for task in dict.fromkeys(tasks)
            for places in [[i for i, one in enumerate(tasks) if one == task]]
        }
    return figures


def _described(totals: Tensor, made: Sequence[Answers], alone: Tensor | None) -> dict[str, Any]:
    binary, places = bool(((totals == 0) | (totals == 1)).all()), range(len(totals))
    figures: dict[str, Any] = {
        "score": float(totals.mean()),
        "score_ci": (share_interval if binary else mean_interval)(totals, places),
        "read": sum(tokens.read for _, tokens in made) / len(made),
        "sampled": sum(tokens.sampled for _, tokens in made) / len(made),
    }
    if alone is not None:
        figures |= {"gain": float((totals - alone).mean()), "gain_ci": mean_interval(totals - alone, places)}
    return figures
