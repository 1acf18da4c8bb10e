"""What was made under the earlier name of a setting is read under its present one."""

import json

import pytest
from omegaconf import OmegaConf

from components.artifacts.metadata import read_card
from components.artifacts.renamed import RENAMED, as_named_now
from components.evaluation.report import output
from components.launch import settings
from components.training.checkpoint_io import AtomicCheckpointIO
from components.training.setting_changes import inputs_in, read_note
from tests.kit.composed_configs import compose_config

BEFORE = {"data.draw": 3, "callbacks.spike_guard.most": 10, "seed": 1}
NOW = {"data.answers_seed": 3, "callbacks.spike_guard.max_skips": 10, "seed": 1}


def test_a_card_is_read_under_the_present_names(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"stage": "rm", "inputs": BEFORE}))
    assert read_card(tmp_path) == {"stage": "rm", "inputs": NOW}


def test_a_report_is_read_under_the_present_names(tmp_path):
    (tmp_path / output.DATA).write_text(json.dumps({"inputs": {"comparisons.draw": 1}}))
    assert output.read(tmp_path) == {"inputs": {"comparisons.answers_seed": 1}}


def test_a_checkpoint_and_its_note_are_read_under_the_present_names(tmp_path):
    note, path = tmp_path / "inputs.json", tmp_path / "step=00000001.ckpt"
    note.write_text(json.dumps(BEFORE))
    AtomicCheckpointIO().save_checkpoint({"global_step": 1, "inputs": BEFORE}, path)
    assert read_note(note) == inputs_in(path) == NOW


@pytest.mark.parametrize("stage", ["rm", "eval"])
def test_every_present_name_is_a_setting_and_no_earlier_one_is(stage):
    plain = OmegaConf.to_container(compose_config([f"stage={stage}"]))
    names = set(settings.flatten(plain))
    own = {"rm": ("data.", "callbacks."), "eval": ("comparisons.",)}[stage]
    assert {now for now in RENAMED.values() if now.startswith(own)} <= names
    assert not set(RENAMED) & names


def test_the_present_names_stay():
    assert as_named_now(NOW) == NOW
