"""requirements.lock is what pyproject.toml asks for, requirements-dev.lock what the tests need in addition to
it; both are whole, and these tests run with them."""

import functools
import importlib.metadata as metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEV = ("build", "dev", "test")  # extras: what the project is built with, and what it is developed and tested with


def entries(name: str) -> list[str]:
    """Of a lock: each requirement with its hashes."""
    return re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / name).read_text()))


CORE, ENTRIES = entries("requirements.lock"), entries("requirements.lock") + entries("requirements-dev.lock")
TORCH = Requirement(re.search(r"(?m)^torch==\S+", (ROOT / "constraints.txt").read_text())[0])
NOT_IN_LOCK = {
    "slurm",  # a Hydra plugin, which every start would import
    "wandb",  # these two bring many packages that nothing else needs
    "mlflow",
    "reasoning-gym",  # brings eleven packages, one of which is compiled; tests that need one of these three skip
    "math",
    "json-schema",
    "retrieval",
    "docs",  # pinned in pyproject.toml, since only the site is made with it
}


@functools.cache
def locked(core: bool = False) -> dict[str, Requirement]:
    """The locks' requirement of each package, of those that apply to this interpreter and system; core: those of
    requirements.lock alone."""
    requirements = [Requirement(entry.split(" \\")[0]) for entry in (CORE if core else ENTRIES)]
    here = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    assert len({canonicalize_name(one.name) for one in here}) == len(here), "a package is pinned twice"
    return {canonicalize_name(one.name): one for one in (*here, TORCH)}


def version_in_lock(name: str) -> Version:
    return Version(next(iter(locked()[name].specifier)).version)


def test_every_entry_pins_one_version_and_names_the_hashes_of_its_files():
    assert len(ENTRIES) > 80
    for entry in ENTRIES:
        requirement, *hashes = entry.strip().split(" \\\n")
        assert [one.operator for one in Requirement(requirement).specifier] == ["=="], requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *(r for n in sorted(EXTRAS.keys() - NOT_IN_LOCK) for r in EXTRAS[n])]
)
def test_the_lock_has_a_version_that_pyproject_allows(text):
    requirement = Requirement(text)
    if requirement.name != PROJECT["name"]:
        assert version_in_lock(canonicalize_name(requirement.name)) in requirement.specifier


@pytest.mark.parametrize("core", [True, False])
def test_a_lock_has_whatever_its_packages_require(core):
    """Of the packages installed here; the lock was resolved for the other systems by the same tool."""
    wanted = [Requirement(text) for group in DEV for text in EXTRAS[group]]
    extras = {canonicalize_name(one.name): one.extras for one in wanted}
    packages = locked(core)
    for name in packages.keys() & {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}:
        for text in metadata.distribution(name).requires or ():
            requirement = Requirement(text)
            contexts = [{"extra": extra} for extra in ("", *extras.get(name, ()))]
            if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
                needed = canonicalize_name(requirement.name)
                assert needed in packages, f"{name} needs {needed}"
                assert version_in_lock(needed) in requirement.specifier, f"{name} needs {requirement}"


def test_the_demo_installs_what_it_runs_with_and_nothing_of_the_tests():
    needed = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *EXTRAS["build"]]}
    own = {canonicalize_name(Requirement(text).name) for text in [*EXTRAS["test"], *EXTRAS["dev"]]} - {PROJECT["name"]}
    assert needed <= locked(core=True).keys()
    assert own and not own & locked(core=True).keys()


def test_make_demo_installs_one_lock_and_the_tests_the_other_beside_it():
    def rule(target: str) -> str:
        return re.search(rf"(?m)^{re.escape(target)}:.*(?:\n\t.*)*", (ROOT / "Makefile").read_text())[0]

    assert rule("demo").startswith("demo: .venv/installed\n")
    assert "-r requirements.lock" in rule(".venv/installed") and "requirements-dev" not in rule(".venv/installed")
    for target in ("test", "test-all", "check"):
        assert rule(target).startswith(f"{target}: .venv/tested\n")
    assert rule(".venv/tested").startswith(".venv/tested: .venv/installed requirements-dev.lock\n")
    assert "--require-hashes --no-deps -r requirements-dev.lock" in rule(".venv/tested")


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="an environment that the Makefile did not make")
def test_the_tests_run_with_the_locked_versions():
    for name, requirement in locked().items():
        installed = metadata.version(name)
        assert requirement.specifier.contains(installed.partition("+")[0], prereleases=True), f"{name} {installed}"


@pytest.mark.parametrize("bad", ["lightning==2.6.2", "lightning==2.6.3", "hydra-core==1.3.3", "hydra-core==1.4.0"])
def test_unsafe_releases_are_not_allowed(bad):
    name, _, version = bad.partition("==")
    assert not any(
        one.specifier.contains(version) for one in map(Requirement, PROJECT["dependencies"]) if one.name == name
    )
