"""Accuracy against tokens: what techniques make of a model, by reward functions on held-out prompts."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from components.artifacts import lineage, store
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

ALONE = "one sample"
THREADS = 32  # prompts that are answered at a time; those of one technique share the engine's batches


def chosen_techniques(cfg: DictConfig, scorer: Callable[[str], Score]) -> dict[str, list[Technique]]:
    """The lists of stage.techniques, by name. Raises ValueError, naming the list, for what does not exist or fit."""
    made = {}
    for name, given in (cfg.stage.techniques or {}).items():
        try:
            made[str(name)] = techniques_of(plain(given), scorer)
        except ValueError as error:
            raise ValueError(f"stage.techniques.{name}: {error}") from None
    return made


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
    Raises ValueError, naming the list, for techniques that do not fit the model or the prompts.
    """
    engine, writer = Engine({"model": model}), ThreadPoolExecutor(1)
    served, options = Served("model", model, tokenizer), Options(max_tokens=cfg.stage.max_new_tokens)
    generate = EngineGenerator(engine, served, options, writer)

    def scorer(folder: str) -> Score:
        reader = Served(folder, place.to_device(store.load_scalar(folder)), store.load_tokenizer(folder), Path(folder))
        return scorer_of(engine, reader, writer)

    chosen: dict[str, list[Technique]] = {ALONE: []} | chosen_techniques(cfg, scorer)
    found: dict[str, dict[str, Any]] = {}
    alone: Tensor | None = None
    try:
        for name, techniques in chosen.items():
            made = _answered(applied(techniques, generate), prompts, cfg.seed)
            totals = _scored(made, tokenizer, prompts, reward)
            alone = totals if alone is None else alone
            found[name] = _described(totals, made, alone if techniques else None)
    except ApiError as error:
        raise ValueError(f"stage.techniques.{name}: {error.message}") from None
    finally:
        generate.cancel()
        engine.close()
        writer.shutdown()
    return found


def _answered(answer: Generate, prompts: Sequence[Mapping[str, Any]], seed: int) -> list[Answers]:
    """One answer to each prompt, of the same seed for every technique."""
    queries = [Query(one["prompt"], seed=derived_seed(seed, number)) for number, one in enumerate(prompts)]
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(answer, queries))


def _scored(
    made: Sequence[Answers], tokenizer: Tokenizer, prompts: Sequence[Mapping[str, Any]], reward: FunctionReward
) -> Tensor:
    """(N,) float64."""
    texts = [answers[0].text.removeprefix(tokenizer.prefill) for answers, _ in made]
    finished = [answers[0].finished for answers, _ in made]
    batch = batch_of(prompts, [tokenizer.encode(text) for text in texts], finished, tokenizer)
    return reward.score(batch).total.double()


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
