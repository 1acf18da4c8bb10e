"""The charts of every stage: of metrics that it logs, within ranges that its docstring states."""

import inspect
import re

import pytest

from components.generation.generate import Sampling
from components.stages.distill import Distill
from components.stages.dpo import DPO
from components.stages.grpo import GRPO
from components.stages.kto import KTO
from components.stages.orpo import ORPO
from components.stages.ppo import PPO
from components.stages.pretrain import Pretrain
from components.stages.rejection import Rejection
from components.stages.rloo import RLOO
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from components.stages.simpo import SimPO
from components.stages.stage import Stage
from tests.kit.tiny_stages import (
    CONSTANT,
    ListLogger,
    adam,
    causal,
    distill,
    dpo,
    grpo,
    kto,
    orpo,
    ppo,
    quiet_fit,
    rejection,
    rloo,
    scalar,
    simpo,
    trainer,
)

KINDS = {
    "pretrain": Pretrain,
    "sft": SFT,
    "rm": RewardModel,
    "dpo": DPO,
    "kto": KTO,
    "simpo": SimPO,
    "orpo": ORPO,
    "ppo_ptx": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
    "rejection": Rejection,
    "distill": Distill,
}

OF_ALL = ("grad_norm", "lr")  # explained once, in Stage


def tiny(name: str, tokenizer) -> Stage:
    size, learning = tokenizer.vocab_size, dict(optimizer=adam(1e-3), schedule=CONSTANT)
    if name in ("pretrain", "sft"):
        return KINDS[name](model=lambda: causal(0, size), **learning)
    if name == "rm":
        return RewardModel(model=lambda: scalar(1, size), **learning)
    offline = {"dpo": dpo, "kto": kto, "simpo": simpo, "orpo": orpo}
    if name in offline:
        return offline[name](policy=lambda: causal(0, size), **learning)
    if name == "distill":
        networks = {role: lambda seed=seed: causal(seed, size) for seed, role in enumerate(("policy", "teacher"))}
        return distill(stop_ids=tokenizer.stop_ids, sampling=Sampling(6), **networks, **learning)
    networks = dict(policy=lambda: causal(0, size), reward=lambda: scalar(1, size), stop_ids=tokenizer.stop_ids)
    settings = networks | learning | {"sampling": Sampling(6)}
    if name == "ppo_ptx":
        return ppo(value=lambda: scalar(1, size), pretraining_coefficient=1.0, **settings)
    return {"grpo": grpo, "rloo": rloo, "rejection": rejection}[name](**settings)


@pytest.mark.parametrize("name", KINDS)
def test_every_chart_shows_what_the_stage_logs(name, data):
    module, logger = data(name, val_fraction=0.4), ListLogger()  # enough held out that some answers match in length
    run = trainer(max_steps=2, limit_val_batches=4, logger=logger)
    quiet_fit(run, tiny(name, module.tokenizer), datamodule=module)
    charted = {tag for chart in KINDS[name].charts for tag in chart.tags}
    assert len(charted) >= 5
    assert charted <= logger.logged.keys()


def explanations(kind: type[Stage]) -> dict[str, str]:
    """Metric → its lines in the docstrings of the stage and of what it inherits; a prefix such as train/ left out."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in "\n".join(inspect.getdoc(one) for one in kind.__mro__ if issubclass(one, Stage)).splitlines():
        entry = re.match(r"(\S.*?)  +(\S.*)", line)
        if entry:
            names = [name.rpartition("/")[2] for name in entry[1].split(", ")]
            found |= {name: found.get(name, "") + entry[2] for name in names}
        elif line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_chart_is_explained_where_its_metrics_are_listed_and_so_is_its_range(kind):
    listed = explanations(kind)
    assert len({chart.title for chart in kind.charts}) == len(kind.charts)
    for chart in kind.charts:
        names = [tag.rpartition("/")[2] for tag in chart.tags]
        assert all(name in listed or name.startswith(OF_ALL) for name in names), names
        assert (chart.low is None) == (chart.high is None)
        if chart.low is not None:
            [name] = names
            assert chart.low < chart.high
            assert all(f"{abs(bound):g}" in listed[name] for bound in (chart.low, chart.high) if bound), listed[name]
