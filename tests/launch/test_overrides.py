"""A path on the command line is a path, with any characters."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from components.launch.overrides import as_typed, quoted, typed

ODD = [
    "logs/tiny/sft/checkpoints/step=00000040.ckpt",
    "my data/a, b.jsonl",
    "d[1]/x{2}(3).parquet",
    "C:/data:1/x",
    "s3://bucket/x",
    "données/日本.jsonl",
    "it's.jsonl",
    'say "so".jsonl',
    "back\\slash\\",
    "quote\\'",
    "#1 & more; *?.txt",
    " leading and trailing ",
    "1",
    "true",
    "choice(1)",
    "-5e3",
    "~/x",
]
KEYS = [
    "resume",
    "data.path",
    "data.root",
    "model.path",
    "artifacts.sft",
    "files.chat",
    "paths.logs",
    "reads.model",
    "run",
]


def parsed(arguments: list[str]) -> list:
    return OverridesParser.create().parse_overrides(as_typed(arguments))


@pytest.mark.parametrize("path", ODD)
def test_a_path_is_taken_literally(path):
    for override, key in zip(parsed([f"{key}={path}" for key in KEYS]), KEYS, strict=True):
        assert override.key_or_group == key and override.value() == path and not override.is_sweep_override()
    (added,) = parsed([f"+data.path={path}"])
    assert added.value() == path and added.is_add()
    assert OverridesParser.create().parse_override(f"x={quoted(path)}").value() == path


@pytest.mark.parametrize("value", ["null", "'quoted, already'", '"also=this"', ""])
def test_values_with_a_meaning_to_hydra_keep_it(value):
    assert as_typed([f"data.path={value}"]) == [f"data.path={value}"]


def test_an_interpolation_stays_an_interpolation():
    assert parsed(["artifacts.rm=${artifacts.ppo}"])[0].value() == "${artifacts.ppo}"


def test_other_arguments_are_left_alone():
    others = [
        "-m",
        "--config-dir",
        "a=b",
        "stage=rm",
        "data=chat",
        "data.mixture=[{path: a.txt}]",
        "seed=1,2",
        "~data.path",
    ]
    assert as_typed(others) == others


def test_in_a_sweep_a_comma_separates_paths_unless_one_of_that_name_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = as_typed(["-m", "artifacts.sft=a/step=1,'b,c',d [2]"])
    swept = OverridesParser.create().parse_override(arguments[1])
    assert swept.is_sweep_override()
    assert list(swept.sweep_string_iterator()) == ["'a/step=1'", "'b,c'", "'d [2]'"]
    assert as_typed(["-m", "run=choice(a,b)"])[1] == "run=choice(a,b)"
    (tmp_path / "a,b").touch()
    assert OverridesParser.create().parse_override(as_typed(["-m", "data.path=a,b"])[1]).value() == "a,b"


@pytest.mark.parametrize(
    "argument", ["paths.logs=/a b/c", "run=it's", "+reads.dpo=a=b", "data.path=", "run=null", "stage=rm", "x='y'"]
)
def test_an_argument_is_shown_as_typed(argument):
    [taken] = as_typed([argument])
    assert as_typed([typed(taken)]) == [taken]
    assert "'" in argument or typed(taken) == argument
