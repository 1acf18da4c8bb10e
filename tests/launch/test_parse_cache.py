"""Parsing each text once changes no config, and still is what OmegaConf and Hydra call."""

import io

import omegaconf.base
import pytest
import yaml
from omegaconf import OmegaConf

from components.launch import parse_cache
from components.launch.composing import compose_config, composed
from components.launch.spawning import ROOT

TRICKY = "a: [1e-4, 1E5, 1_000, .5, 0x1f, 017, 1:30, 2001-01-01, yes, null, ~, '1', -.inf]\nb: {1: x, true: y}\n"


def test_a_second_compose_parses_no_file_and_no_interpolation():
    caches = omegaconf.base.parse, parse_cache._loaded
    compose_config(["stage=rm"])
    parsed = [cache.cache_info() for cache in caches]
    compose_config(["stage=rm"])
    again = [cache.cache_info() for cache in caches]
    assert all(info.misses > 10 for info in parsed)  # they are what is called
    assert [info.misses for info in again] == [info.misses for info in parsed]


def test_changes_by_one_caller_reach_no_other(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: [1, {b: 2}]")
    with file.open() as one, file.open() as other:
        first, second = OmegaConf.load(one), OmegaConf.load(other)
    first.a[1].b = 3
    assert second == {"a": [1, {"b": 2}]}
    file.write_text("a: 4")
    with file.open() as changed:
        assert OmegaConf.load(changed) == OmegaConf.load(file) == {"a": 4}


def test_libyaml_reads_what_omegaconf_reads():
    usual = parse_cache.usual_loader()
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "conf").rglob("*.yaml")]
    for text in [*texts, TRICKY]:
        assert OmegaConf.load(io.StringIO(text)) == OmegaConf.create(yaml.load(text, usual) or {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nstage: [1, 2\nx: 3\n", "line 4: "),  # one below the package's
        ("seed: 1\nrun: x\nseed: 2\n", "line 4: found duplicate key seed"),
        ("seed: \x07\n", "unacceptable character #x0007: "),
    ],
    ids=["syntax", "duplicate", "character"],
)
def test_a_file_that_is_not_yaml_is_named_with_the_line(text, problem, tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment/mine.yaml"
    file.write_text(f"# @package _global_\n{text}")
    with pytest.raises(ValueError) as refused, composed([f"--config-dir={tmp_path}", "stage=rm", "experiment=mine"]):
        pass
    assert f": {file} is not valid YAML: {problem}" in str(refused.value)
