"""What reward functions change in a task, and their checks before anything slow starts: by their source, then by a call
on the first prompts."""

import os
from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig

from components.artifacts.metadata import ArtifactError, load_config
from components.launch import settings
from components.system.disk import present

TRIED = 2  # prompts
MEASURES = "components.tasks.measure.measure"
NO_POLICIES = ("tokenizer", "rm", "reward")


def check(cfg: DictConfig) -> None:
    """Raises RewardError for a reward function that its file does not define. Runs none of it, and imports no torch."""
    settings.reward_functions(cfg)


def settle(cfg: DictConfig) -> None:
    """Turns an evaluation with reward functions, in place, into one by these alone: of the run's language models that
    exist, and of model.path. It needs no world and no reward model.

    Raises ArtifactError if there is no model.
    """
    if _measures_functions(cfg):
        cfg.task, cfg.reads = MEASURES, reads_of(cfg)


def _measures_functions(cfg: DictConfig) -> bool:
    """Whether the task is an evaluation with reward functions."""
    return settings.last_name(cfg.task) == "evaluate" and "reward" in settings.function_settings(cfg)


def reads_of(cfg: DictConfig, made: Collection[str] = ()) -> dict[str, str]:
    """What the stage reads: an evaluation with reward functions the run's language models, any other stage what its
    config says.

    made: absolute paths of artifacts that will be there. Raises ArtifactError if there is no model to evaluate, or none
    of a name in stage.models.
    """
    if not _measures_functions(cfg):
        return dict(cfg.reads)
    named = cfg.model.get("path")
    wanted = cfg.stage.models
    policies: dict[str, str] = {}
    for name, path in {**cfg.artifacts, **cfg.reads}.items():
        name = "model" if path == named else name
        if name in NO_POLICIES or path in policies.values() or (wanted is not None and name not in wanted):
            continue
        if path == named or os.path.abspath(path) in made or (present(path) and load_config(path)[1] == "CausalLM"):
            policies[name] = path
    if missing := set(wanted or ()) - policies.keys():
        raise ArtifactError(f"stage.models: run {cfg.run} has no language model {', '.join(sorted(missing))}")
    if not policies:
        raise ArtifactError(
            f"run {cfg.run} has no model to evaluate. Train one, or name one: model=hf model.path=<folder or Hub name>"
        )
    return {"tokenizer": next(iter(policies.values())), **policies}


def try_on(cfg: DictConfig, data: Any) -> None:
    """Calls the functions of the stage's reward or judge, if it has any, on empty responses to the first prompts of the
    data, which are read for it.

    Raises RewardError for what would stop the stage later: a column that is not there, a wrong number of scores, an
    exception. A model's response can be empty, so a function has to accept one.
    """
    for key, node in settings.function_settings(cfg).items():
        from components.rewards.functions import FunctionReward, answered_in  # imports torch
        from components.rewards.reward import batch_of

        data.prepare_data()
        data.setup()
        first = [data.train_examples[i] for i in range(min(TRIED, len(data.train_examples)))]
        batch = batch_of(first, [[] for _ in first], [True for _ in first], data.tokenizer)
        few = {"processes": min(1, node.get("processes") or 0)}  # each of them imports the user's module
        reward = FunctionReward.of({**node, **few}, key)
        try:
            reward.values(answered_in(batch))
        finally:
            reward.close()
