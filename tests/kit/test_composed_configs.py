"""What the tests compose from a copy is what Hydra composes by itself."""

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from components.launch import composing
from tests.kit import composed_configs


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=micro", "stage=ppo", "seed=3", "trainer.max_steps=7", "+trainer.max_time=yesterday"],
        ["stage=sft", "run=a b", "model=micro", "~callbacks.samples", "data.mixture=[{path: a.txt}]", "++x.y=1"],
        ["stage=sft", "data.path=a=b,c.txt", "callbacks.samples=null"],
        ["hydra.mode=RUN", "stage=rm", "seed=5"],
    ],
    ids=" ".join,
)
def test_a_copy_that_is_changed_is_what_hydra_composes(overrides):
    """With what refers to other keys, and Hydra's own part."""

    def whole(compose_config):
        cfg = compose_config(overrides)
        hydra = OmegaConf.to_container(HydraConfig.get())
        return OmegaConf.to_container(cfg), hydra, dict(composing.INTERPOLATIONS), OmegaConf.is_struct(cfg)

    assert whole(composed_configs.compose_config) == whole(composing.compose_config)


@pytest.mark.parametrize("wrong", ["stage.no_such=1", "+seed=3", "seed=1,2", "lora=no_such", "seed={"])
def test_its_errors_are_hydras(wrong):
    def error(compose_config):
        with pytest.raises(HydraException) as caught:
            compose_config(["stage=ppo", wrong])
        return type(caught.value), str(caught.value)

    assert error(composed_configs.compose_config) == error(composing.compose_config)


def test_a_change_of_one_copy_is_in_no_other():
    composed_configs.compose_config(["stage=ppo"]).stage.beta = 77
    assert composed_configs.compose_config(["stage=ppo", "seed=3"]).stage.beta != 77
