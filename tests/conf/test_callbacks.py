from pathlib import Path

from hydra.utils import instantiate
from lightning import Callback
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf" / "callbacks" / "default.yaml"


def test_every_entry_of_the_default_builds_a_callback_and_all_live_together(tmp_path):
    run = {"paths": {"stage": str(tmp_path)}, "export": "last", "selection": {"metric": "val/loss", "mode": "min"}}
    conf = OmegaConf.create({**run, "callbacks": OmegaConf.load(CONF)})
    callbacks = {name: instantiate(node) for name, node in conf.callbacks.items()}
    assert all(isinstance(callback, Callback) for callback in callbacks.values())
    assert len({type(callback) for callback in callbacks.values()}) == len(callbacks)
    assert callbacks["checkpoints"].folder == tmp_path / "checkpoints"
