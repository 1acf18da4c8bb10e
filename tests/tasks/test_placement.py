"""Every task that runs models runs them where the trainer says, in its precision, in batches that fit."""

from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.launch import spawning
from components.models.gpt import GPT
from components.tasks import dispatch, evaluate, optimum, overoptimization, placement
from components.tasks.placement import Place
from tests.kit import tiny_models
from tests.kit.composed_configs import compose_config

CONF = spawning.ROOT / "conf/stage"
WITHOUT_PLACE = (
    "fit",
    "train_tokenizer",
    "pipeline",
    "summary",
    "scaling_law",
)  # the trainer's own place, and no model at all
TASKS = {file.stem: yaml.safe_load(file.read_text())["task"] for file in sorted(CONF.glob("*.yaml"))}
MEASURING = [stage for stage, task in TASKS.items() if task.rpartition(".")[2] not in WITHOUT_PLACE]
SIZES = {
    "eval": [
        "stage.samples_per_prompt=1",
        "stage.max_prompts=2",
        "stage.max_new_tokens=3",
        "stage.best_of=2",
        "stage.text_batches=1",
        "comparisons.comparisons=8",
        "text.num_documents=40",
        "text.batch_size=2",
    ],
    "compare": ["judge=reward", "stage.records=4", "stage.max_new_tokens=8", "stage.distinct=false"],
    "optimum": ["stage.max_new_tokens=1", "~reads.grpo", "~reads.rloo", "~reads.dpo", "~reads.kto", "~reads.rejection"],
    "overoptimization": ["stage.samples_per_prompt=2", "stage.max_prompts=2", "stage.max_new_tokens=3"],
}


class Enough(Exception):
    """A task has run all its models."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[str]:
    """Overrides that name a tokenizer and a model of every stage."""
    folder, tokenizer = tmp_path_factory.mktemp("made"), tiny_models.small_tokenizer()
    models = {
        "tokenizer": None,
        "pretrain": tiny_models.random_model(tokenizer.vocab_size, 1, max_position_embeddings=256),
        "sft": tiny_models.parrot(tokenizer, context=256),  # whose answers end
        "ppo": tiny_models.random_model(tokenizer.vocab_size, 2, max_position_embeddings=256),
        "rm": tiny_models.random_scalar(tokenizer.vocab_size, 3, max_position_embeddings=256),
    }
    for stage, model in models.items():
        store.write_artifact(folder / stage, card={"stage": stage}, tokenizer=tokenizer, model=model)
    return [f"artifacts.{stage}={folder / stage}" for stage in models]


@pytest.fixture
def stopped(monkeypatch):
    """The tasks end once they have run their models, whatever these return."""

    def enough(*_: object, **__: object) -> None:
        raise Enough

    monkeypatch.setattr(evaluate.output, "write", enough)
    monkeypatch.setattr(optimum.optimum_card, "write", enough)
    monkeypatch.setattr(overoptimization, "ppo_runs", lambda *_: {})
    monkeypatch.setattr(overoptimization.analysis, "best_of_n_curve", enough)


@pytest.mark.parametrize("stage", MEASURING)
def test_a_task_runs_all_models_that_it_loads_on_its_device_in_its_precision(
    stage, made, stopped, tmp_path, monkeypatch
):
    loaded, moved, autocast = [], [], []
    for name in ("load_causal_lm", "load_scalar"):
        load = getattr(store, name)
        monkeypatch.setattr(store, name, lambda *a, load=load, **k: loaded.append(load(*a, **k)) or loaded[-1])
    to_device, forward = Place.to_device, GPT.forward
    monkeypatch.setattr(Place, "to_device", lambda self, model: moved.append(model) or to_device(self, model))

    def watched(self, *args, **kwargs):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(GPT, "forward", watched)
    own = ["run=x", f"paths.logs={tmp_path}", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed"]
    cfg = compose_config([f"stage={stage}", *made, *own, *SIZES[stage]])
    if stage == "compare":
        dispatch.run(cfg)
    else:
        with pytest.raises(Enough):
            dispatch.run(cfg)
    assert loaded and {id(model) for model in loaded} <= {id(model) for model in moved}
    assert autocast and all(autocast)


def config(**trainer: str):
    return OmegaConf.create({"trainer": {"accelerator": "cpu", "precision": "auto"} | trainer})


def test_a_place_is_where_the_trainer_of_the_config_would_train():
    assert Place.of(config(precision="32-true"), 64).device == torch.device("cpu")
    model = Place.of(config(precision="bf16-true"), 64).to_device(tiny_models.random_model(40))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and not model.training
    with Place.of(config(precision="bf16-true"), 64).running():
        assert torch.tensor(0.5).dtype == torch.float32  # metrics are not part of the model


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the GPU that is asked for")
def test_an_accelerator_that_is_not_available_is_rejected_as_in_training():
    with pytest.raises(Exception, match="No supported gpu backend found"):
        Place.of(config(accelerator="gpu"), 64)


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ("components.tasks.fit.fit", "lower data.batch_size (now 8); or set gradient_checkpointing=true"),
        (
            "components.tasks.evaluate.evaluate",
            "lower tokens_at_once (now 64), data.batch_size (now 8), or use another",
        ),
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_names_the_setting_to_lower(task, named, error):
    cfg = OmegaConf.create({"task": task, "tokens_at_once": 64, "data": {"batch_size": 8}})
    with pytest.raises(ValueError) as caught, placement.in_memory(cfg):
        raise error
    assert named in str(caught.value) and str(error) in str(caught.value)


def test_another_error_is_not_mistaken_for_running_out_of_memory():
    with pytest.raises(RuntimeError, match="shapes differ"), placement.in_memory(OmegaConf.create({})):
        raise RuntimeError("shapes differ")


class Prompts:
    max_prompt = 50


@pytest.mark.parametrize(
    ("room", "shorter"), [(60, "Set data.max_prompt=40"), (20, "Set a smaller stage.max_new_tokens")]
)
def test_a_reward_model_too_short_for_prompt_and_response_is_rejected(room, shorter, tmp_path: Path, small_tokenizer):
    model = tiny_models.random_scalar(small_tokenizer.vocab_size, max_position_embeddings=room)
    store.write_artifact(tmp_path / "rm", card={}, tokenizer=small_tokenizer, model=model)
    cfg = {"reads": {"reward": str(tmp_path / "rm")}, "context": None, "stage": {"max_new_tokens": 20}}
    with pytest.raises(ArtifactError, match=rf"reads at most {room} tokens, .* up to 70\. {shorter}"):
        placement.check_room(OmegaConf.create(cfg), Prompts(), "stage.max_new_tokens")
    taught = cfg | {"reads": {"teacher": str(tmp_path / "rm")}, "stage": cfg["stage"] | {"teacher": {}}}
    with pytest.raises(ArtifactError, match=r"the teacher at .* reads at most .*artifacts\.teacher=<folder>"):
        placement.check_room(OmegaConf.create(taught), Prompts(), "stage.max_new_tokens")
    fitting = cfg | {"stage": {"max_new_tokens": room - 50}}
    if room > 50:
        placement.check_room(OmegaConf.create(fitting), Prompts(), "stage.max_new_tokens")
