"""A training step and a decoding step never make the host wait for a GPU, between the steps that are logged.

tests/kit/pretend_gpu.py says what is counted, and what cannot be seen without a GPU.
"""

from collections.abc import Callable, Iterator
from signal import SIGTERM
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from components.callbacks import throughput
from components.callbacks.signals import GracefulStop
from components.generation import generate as generating
from components.generation.generate import Sampling, generate
from components.models.attention.kv_cache import Steps
from components.stages.ppo import PPO
from components.training.contract import RunContext
from tests.kit import tiny_run
from tests.kit.composed_configs import compose_config
from tests.kit.pretend_gpu import CUDA, OnDevice, Pretended, PretendGPU, on_device, pretended
from tests.kit.several import GivenResponses
from tests.kit.stage_runs import MAKERS
from tests.kit.tiny_stages import PAD, Batches, causal, fit_prompts, ppo, quiet_fit, trainer

STEPS, WATCHED = 5, 3  # the watched one is neither the first, nor logged, nor the first of a rollout
FAST = ("sft", "kto")


@pytest.fixture
def gpu(monkeypatch) -> Iterator[PretendGPU]:
    with pretended(monkeypatch) as gpu:
        gpu.counting = False
        yield gpu


class Watched:
    """The batches of a loader. watch: called with True when the watched one is there, and with False when the next is
    asked for."""

    def __init__(self, batches: Any, watch: Callable[[bool], None]) -> None:
        self.batches, self.watch = batches, watch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            self.watch(number == WATCHED)
            yield batch
            self.watch(False)


def callbacks(folder: Any) -> list[Any]:
    """Those of a run, as the configuration has them, and a guard against spikes; a line of progress is printed at the
    first and last step alone."""
    changes = ["callbacks.progress.seconds=1e9", "callbacks.spike_guard.action=stop", f"paths.logs={folder}"]
    cfg = compose_config(["stage=sft", *changes]).callbacks
    cfg.checkpoints.every_n_steps = 10**6
    return [instantiate(one) for one in cfg.values()]


def on_its_device(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the samples that a stage is given on its device, as sampled ones would be."""
    if hasattr(stage, "sample"):
        given = stage.sample
        monkeypatch.setattr(
            stage, "sample", lambda *asked: type(made := given(*asked))(*(x.to(stage.device) for x in made))
        )


def train(name: str, watch: Callable[[bool], None], monkeypatch: Any, folder: Any, **settings: Any) -> None:
    """Trains a stage with the callbacks of a run, and watches one of its steps. of_stage: attributes to set."""
    stage, batches = MAKERS[name](1)
    on_its_device(stage, monkeypatch)
    for attribute, value in settings.pop("of_stage", {}).items():
        setattr(stage, attribute, value)
    run = trainer(
        limit_val_batches=0,
        max_steps=STEPS,
        log_every_n_steps=STEPS,
        gradient_clip_val=1.0,
        enable_checkpointing=True,
        enable_progress_bar=True,
        callbacks=callbacks(folder),
        **settings,
    )
    quiet_fit(run, stage, Watched(batches, watch), Batches([]))


def waits_of_a_step(name: str, gpu: PretendGPU, monkeypatch: Any, folder: Any, **settings: Any) -> list[str]:
    monkeypatch.setattr(throughput, "measured_peak", lambda *_: 1.0)  # products of a GPU's size
    settings = {"strategy": Pretended()} | settings
    train(name, lambda on: setattr(gpu, "counting", on), monkeypatch, folder, **settings)
    return gpu.waits


@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MAKERS])
def test_a_training_step_makes_no_host_wait_for_the_device(name, gpu, monkeypatch, tmp_path):
    assert waits_of_a_step(name, gpu, monkeypatch, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_micro_batch_of_several_with_recomputed_layers_does_not_either(name, gpu, monkeypatch, tmp_path):
    settings = dict(of_stage={"run": RunContext(gradient_checkpointing=True)}, accumulate_grad_batches=2)
    assert waits_of_a_step(name, gpu, monkeypatch, tmp_path, **settings) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_one_of_two_processes_that_end_rollouts_early_does_not_either(name, gpu, monkeypatch, tmp_path):
    of_stage = {"target_kl": 1e-9, "gathered": lambda numbers: numbers.cpu()}  # after training
    settings = dict(strategy=Pretended(world_size=2), of_stage=of_stage)
    assert waits_of_a_step(name, gpu, monkeypatch, tmp_path, **settings) == []


@pytest.mark.parametrize(("processes", "steps"), [(1, 3), (2, 4)])
def test_gpus_of_several_processes_stop_one_step_after_the_signal(processes, steps, gpu, tmp_path):
    stop = GracefulStop()
    run = tiny_run.trainer([tiny_run.Send(SIGTERM, 2), stop], max_steps=50, strategy=Pretended(processes))
    run.fit(tiny_run.Tiny(), tiny_run.Stream())
    assert (run.global_step, stop.exit_status) == (steps, 128 + SIGTERM)


def test_a_signal_in_the_last_step_is_not_left_unread(gpu):
    stop = GracefulStop()
    run = tiny_run.trainer([tiny_run.Send(SIGTERM, 2), stop], max_steps=3, strategy=Pretended(world_size=2))
    run.fit(tiny_run.Tiny(), tiny_run.Stream())
    assert (run.global_step, stop.exit_status) == (3, 128 + SIGTERM)


def rollouts_of_seven_steps(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Of at most four updates each, after the first of which KL is 0, and after the others above its target."""
    stage = ppo(type("GivenPPO", (GivenResponses, PPO), {}), epochs=4, minibatches=1, target_kl=1e-9)
    on_its_device(stage, monkeypatch)
    fit_prompts(stage, 7, **settings)
    return stage.rollout + 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .* does not have many workers")
def test_a_rollout_ends_one_update_later_on_a_gpu_than_on_a_cpu(monkeypatch):
    assert rollouts_of_seven_steps(monkeypatch) == 4  # 2 + 2 + 2 + 1 updates
    with pretended(monkeypatch):
        assert rollouts_of_seven_steps(monkeypatch, strategy=Pretended()) == 3  # 3 + 3 + 1


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.as_tensor(1.0, device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x + torch.zeros(3),
    ],
)
def test_what_makes_the_host_wait_is_seen(waits, gpu):
    x = OnDevice(torch.tensor([0.0, 1.0, 2.0]))
    gpu.counting = True
    waits(x)
    assert gpu.waits


def test_what_only_launches_work_is_not_counted(gpu):
    x = OnDevice(torch.tensor([0.0, 1.0, 2.0])).requires_grad_()
    gpu.counting = True
    moved = torch.zeros(3).to(CUDA, non_blocking=True)
    y = (x + moved + torch.arange(3, device=CUDA)).where(x > 0, 0.0).index_select(0, torch.ones_like(x).long())
    y.square().sum().backward()
    x.detach().to("cpu", non_blocking=True)
    assert gpu.waits == [] and x.grad.device == CUDA


def test_a_decoding_step_makes_no_host_wait_for_the_device(gpu, monkeypatch):
    """The graph that a GPU replays is one launch, so the steps here are those without one."""
    plain = lambda model, cache: lambda token: model.next_logits(token[:, None], cache)
    monkeypatch.setattr(generating, "step_of", plain)
    picked = []
    pick = generating.pick

    def watched(*args: Any) -> Any:
        picked.append(None)
        gpu.counting = 2 < len(picked) < 6  # of eight tokens: prompts are read before, and all is read after
        return pick(*args)

    monkeypatch.setattr(generating, "pick", watched)
    generator = torch.Generator().manual_seed(0)
    samples = generate(on_device(causal()), [[1, 3], [4]], Sampling(8), stop_ids=[], pad_id=PAD, generator=generator)
    assert samples.mask.all() and gpu.waits == []


def test_the_step_that_a_gpu_captures_makes_no_host_wait(gpu):
    model = on_device(causal())
    cache = model.new_cache(torch.zeros(2, dtype=torch.int64, device=CUDA), 8, dtype=torch.float32)
    model.next_logits(torch.ones((2, 3), dtype=torch.int64, device=CUDA), cache)
    steps = Steps(cache)
    gpu.counting = True
    model.next_logits(torch.ones((2, 1), dtype=torch.int64, device=CUDA), steps)
    assert gpu.waits == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .* does not have many workers", "ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", MAKERS)
def test_a_gpu_sees_no_wait_in_a_training_step_either(name, monkeypatch, tmp_path):
    watch = lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    try:
        train(name, watch, monkeypatch, tmp_path, accelerator="gpu")
    finally:
        watch(False)
