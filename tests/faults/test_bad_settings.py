"""A bad value of a setting is one clear message, before anything is trained or written over."""

from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from components.artifacts import store
from components.launch.schema import ConfigError, check
from components.tasks import dispatch
from tests.faults.bad_settings import SETTINGS
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import random_model, random_scalar, small_tokenizer

CALM = ["callbacks.throughput=null", "callbacks.progress=null", "callbacks.graceful_stop=null", "gate.enabled=false"]
LITTLE = {stage: ["data.num_documents=500"] for stage in ("tokenizer", "pretrain")}  # of the built-in world
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Artifacts of every stage that others start from."""
    folder, tokenizer = tmp_path_factory.mktemp("made"), small_tokenizer()
    size = tokenizer.vocab_size
    for stage, model in (
        ("tokenizer", None),
        ("pretrain", random_model(size)),
        ("sft", random_model(size)),
        ("rm", random_scalar(size)),
    ):
        store.write_artifact(folder / stage, card={"stage": stage}, tokenizer=tokenizer, model=model)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("stage", "override"), SETTINGS, ids=lambda part: part)
def test_a_bad_value_is_refused_with_one_message_and_the_artifact_is_as_it_was(stage, override, made, cache, tmp_path):
    store.write_artifact(tmp_path / f"logs/x/{stage}/export", card={"stage": "old"})
    parents = [f"artifacts.{name}={made / name}" for name in ("tokenizer", "pretrain", "sft", "rm") if name != stage]
    parents += [f"artifacts.teacher={made / 'pretrain'}"] if stage == "distill" else []
    with pytest.raises((ValueError, MisconfigurationException, InstantiationException)) as caught:
        cfg = compose_config(
            [
                f"stage={stage}",
                "model=micro",
                f"paths.logs={tmp_path}/logs",
                "run=x",
                "force=true",
                f"paths.cache={cache}",
                *CALM,
                *parents,
                *LITTLE.get(stage, ()),
                override,
            ]
        )
        check(cfg)
        dispatch.run(cfg)
    cause = caught.value.__cause__ if isinstance(caught.value, InstantiationException) else caught.value
    assert isinstance(cause, ValueError | MisconfigurationException), repr(cause)
    assert 10 < len(str(cause)) < 2000
    assert store.read_card(tmp_path / f"logs/x/{stage}/export")["stage"] == "old"
    assert not list(tmp_path.rglob("*.ckpt"))


def leaves(values, path=""):
    for key, value in values.items() if isinstance(values, dict) else ():
        full = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, full)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield full


@pytest.mark.parametrize("stage", ["pretrain", "ppo"])
def test_every_number_of_a_config_is_refused_as_a_word_and_every_key_beside_it_is_unknown(stage):
    cfg = compose_config([f"stage={stage}"])
    groups = ("stage", "data", "model", "tokenizer", "trainer", "callbacks", "seed")
    keys = [
        key
        for key in leaves({name: OmegaConf.to_container(cfg)[name] for name in groups})
        if "params" not in key and not key.startswith(("data.world.", "stage.learning_rates."))
    ]  # the world judges itself, and names of weights have dots
    assert len(keys) > 20
    free = {"trainer.devices", "trainer.val_check_interval"}  # a word, or several kinds of number, is right there
    words = [key for key in keys if key not in free]
    beside = [f"{key}s_" for key in keys if "." in key and not key.startswith("trainer.")]  # Lightning checks its own
    for changed, value in ((words, "many"), (beside, 1)):
        bad = OmegaConf.create(OmegaConf.to_container(cfg))
        for key in changed:
            OmegaConf.update(bad, key, value, force_add=True)
        with pytest.raises(ConfigError) as caught:
            check(bad)
        assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == set(changed)


def test_the_cases_are_distinct():
    assert len(SETTINGS) == len(set(SETTINGS)) > 150
