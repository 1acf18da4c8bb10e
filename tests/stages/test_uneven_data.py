"""Records that do not divide by the number of processes are all used, and no process waits forever."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from components.stages.rm import RewardModel
from components.stages.sft import SFT
from tests.kit.several import STRATEGIES, together
from tests.kit.tiny_stages import CONSTANT, END, Batches, adam, causal, lm_batch, quiet_fit, scalar, trainer

QUICK = (("sft", "ddp"),)  # of the combinations
KINDS = {"sft": (SFT, causal), "rm": (RewardModel, scalar)}


def epochs(name: str, data: Callable[..., Any], world_size: int, strategy: Any = None) -> dict[str, Any]:
    """Metrics of two epochs and a validation after each; the sizes show that they do not divide by two."""
    module = data(name, batch_size=6 // world_size)
    kind, model = KINDS[name]
    build = lambda: model(0, module.tokenizer.vocab_size)
    stage = kind(model=build, optimizer=adam(1e-3), schedule=CONSTANT)
    several = {"strategy": strategy(), "devices": world_size} if strategy else {}
    run = trainer(max_epochs=2, num_sanity_val_steps=1, **several)
    quiet_fit(run, stage, datamodule=module)
    metrics = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("val/")}
    return {"steps": run.global_step, "val": metrics, "sizes": (len(module.train_examples), len(module.val_examples))}


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, id=f"{name}-{key}", marks=() if (name, key) in QUICK else pytest.mark.slow)
        for name in KINDS
        for key, strategy in STRATEGIES.items()
    ],
)
def test_odd_numbers_of_records_are_trained_and_validated_on_by_two_processes(name, strategy, data, tmp_path):
    """In batches of six 27 rankings leave three, two for one process and one for the other; so do the five held out
    of them. Of 7 dialogues held out one is left, for which the second process has none."""
    odd = {"sft": {"demonstrations": 58, "val_fraction": 0.1}, "rm": {"comparisons": 27}}[name]
    make = lambda which, **changes: data(which, **({"val_fraction": 0.2} | odd | changes))
    one = epochs(name, make, 1)
    assert one["sizes"] == {"sft": (51, 7), "rm": (27, 5)}[name]
    ranks = together(lambda rank: epochs(name, make, 2, strategy), tmp_path / "two")
    for rank in ranks:
        assert rank["steps"] == one["steps"] and rank["sizes"] == one["sizes"]
        assert rank["val"]["val/loss"] == pytest.approx(one["val"]["val/loss"], abs=1e-5)


def uneven(rank: int, strategy: Any, training: int, validation: int) -> str:
    """What a process says that has `training` and `validation` batches, where the other one has four of each."""
    batch = lm_batch([([1, 3], [4, 5, END])])
    stage = SFT(model=causal, optimizer=adam(1e-3), schedule=CONSTANT)
    shares = ([training, 4], [validation, 4])
    loaders = [Batches([batch] * share[1 - rank], [batch] * share[1 - rank]) for share in shares]
    run = trainer(max_steps=4, strategy=strategy(), devices=2)
    with pytest.raises(ValueError) as caught:
        quiet_fit(run, stage, *loaders)
    return str(caught.value)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize(("training", "validation"), [(3, 4), (4, 3)])
def test_a_process_with_fewer_batches_ends_the_run_instead_of_being_waited_for(
    training, validation, strategy, tmp_path
):
    said = together(lambda rank: uneven(rank, strategy, training, validation), tmp_path / "two")
    what = "training" if training == 3 else "validation"
    assert [f"{what} data: process {rank} has {4 - rank} batches" in line for rank, line in enumerate(said)] == [
        True,
        True,
    ]


def test_processes_that_wait_for_each_other_forever_are_ended(tmp_path):
    """So that the tests above can fail."""
    lonely = lambda rank: torch.distributed.init_process_group("gloo", rank=0, world_size=2) if rank else None
    with pytest.raises(RuntimeError, match=r"exit statuses \[0, -9\]"):
        together(lonely, tmp_path / "two", seconds=2)
