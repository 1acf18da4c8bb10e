"""Parsing each text once changes no config, and still is what OmegaConf and Hydra call."""

import omegaconf.base
from omegaconf import OmegaConf

from components.launch import parse_cache
from components.launch.composing import compose_config


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
