"""Under which name the project is installed, and that nothing tells a user to fetch another project's package."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from components.launch.schema import NEEDS
from components.system import installing

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")]
TEXTS += [*ROOT.glob("components/**/*.py"), *ROOT.glob("conf/**/*.yaml"), *ROOT.glob("docs/*.sh"), *ROOT.glob(".ci/*")]
TAKEN = re.compile(r"pip install[^\n]*\bgradus\b|['\"]gradus\[")  # `gradus` on PyPI is another project's package


def test_the_distribution_does_not_have_the_name_of_somebody_elses_package():
    assert PROJECT["name"] == "gradus-lm"
    assert PROJECT["scripts"] == {"gradus": "components.cli:main"}


@pytest.mark.parametrize("text", ["pip install 'gradus[hf]'", "uv pip install gradus", 'dev = ["gradus[test]"]'])
def test_a_command_that_would_fetch_it_is_recognized(text):
    assert TAKEN.search(text)


def test_no_text_of_the_project_installs_it_from_an_index():
    found = [str(file.relative_to(ROOT)) for file in TEXTS if TAKEN.search(file.read_text(encoding="utf-8"))]
    assert found == []


def test_every_extra_is_installed_from_the_checkout_whatever_the_folder_is_called(monkeypatch, tmp_path):
    checkout = tmp_path / "it's a [copy]"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(installing, "ROOT", checkout)
    assert shlex.split(installing.command("hf")) == [
        *("pip", "install", "-c", f"{checkout}/constraints.txt"),
        *("-e", f"{checkout}[hf]"),
    ]
    monkeypatch.chdir(checkout)
    assert installing.command("hf") == "pip install -c constraints.txt -e '.[hf]'"


def test_a_copy_without_pyproject_asks_for_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(installing, "ROOT", tmp_path)
    assert installing.command("hf") == "pip install -e '<checkout>[hf]'"


def test_every_extra_that_a_message_names_exists():
    named = {
        extra
        for file in ROOT.glob("components/**/*.py")
        for extra in re.findall(r"installing\.missing\([^\n]*, \"(\w+)\"\)", file.read_text(encoding="utf-8"))
    }
    needed = {extra for _, extra in NEEDS.values()}
    assert named | needed <= PROJECT["optional-dependencies"].keys() and len(named) == 6


def test_every_extra_that_a_text_names_exists():
    named = {extra for file in TEXTS for extra in re.findall(r"'\.\[(\w+)\]'", file.read_text(encoding="utf-8"))}
    assert named and named <= PROJECT["optional-dependencies"].keys()


def test_the_version_is_read_from_where_it_is_written_once():
    cited = re.search(r"(?m)^version: (\S+)", (ROOT / "CITATION.cff").read_text())
    assert cited and cited[1] == PROJECT["version"] == installing.version()
