"""The origin from a config alone equals that of its data module, and does not import torch."""

import json
import os
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from components.data.records.errors import SourceError
from components.data.sources.origin import fingerprint_of, origin_of
from tests.kit.composed_configs import compose_config

ROOT = Path(__file__).resolve().parents[3]
STAGES = {"text": "pretrain", "chat": "sft", "preference": "rm", "prompts": "ppo"}
RECORDS = {
    "text": {"text": "what color is the fev ?"},
    "chat": {"prompt": "what color is the fev ?", "completion": "red ."},
    "preference": {"prompt": "what color is the fev ?", "chosen": "red .", "rejected": "gray ."},
    "prompts": {"prompt": "what color is the fev ?"},
}


def settings(name: str, *more: str) -> tuple[dict, str]:
    """A composed data config, as plain data, and the fingerprint of the module that it makes."""
    stage = STAGES[next((format for format in STAGES if format in name), "text")]
    cfg = compose_config([f"stage={stage}", f"data={name}", *more])
    module = instantiate(cfg.data, tokenizer=None, context=64, cache_dir="unused", seed=0)
    plain = OmegaConf.to_container(cfg.data)
    return plain, module.fingerprint()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("world_text", ()),
        ("world_text", ("data.num_documents=7",)),
        ("world_chat", ("data.demonstrations=9",)),
        ("world_preference", ()),
        ("world_preference", ("data.comparisons=11", "data.answers_seed=2", "data.val_fraction=0")),
        ("world_prompts", ("world.seed=3",)),
        ("alpaca", ()),  # a name on the Hub, whose contents are not requested
        ("llama_mixture", ()),
    ],
)
def test_it_has_the_modules_fingerprint(name, more):
    plain, fingerprint = settings(name, *more)
    assert fingerprint_of(plain) == fingerprint


@pytest.mark.parametrize("format", RECORDS)
def test_of_a_file_it_is_of_the_contents_and_a_change_is_noticed(format, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(RECORDS[format]) + "\n")
    plain, fingerprint = settings(format, f"data.path={file}")
    assert fingerprint_of(plain) == fingerprint
    before = file.stat().st_mtime_ns
    file.write_text(file.read_text().replace("fev", "toz"))  # the same number of bytes
    os.utime(file, ns=(before + 1, before + 1))
    assert fingerprint_of(plain) != fingerprint


def test_a_missing_source_is_an_error_and_a_foreign_class_is_left_to_itself(tmp_path):
    known = OmegaConf.to_container(compose_config(["stage=sft", "data=chat", f"data.path={tmp_path}/no.jsonl"]).data)
    with pytest.raises(SourceError, match=r"no\.jsonl: no such file or folder\. Set data\.path to one that exists"):
        origin_of(known).sources()
    with pytest.raises(LookupError):
        origin_of(known | {"_target_": "mine.Data"})
    with pytest.raises(LookupError):  # its pretraining text leaves settings to the defaults of their class
        fingerprint_of(settings("world_prompts_ptx")[0])
    with pytest.raises(LookupError):
        origin_of({name: value for name, value in known.items() if name != "root"})
