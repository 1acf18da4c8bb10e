"""What README and the pages of docs/ promise exists (that commands run: test_smoke_runs)."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from components.cli import app
from components.launch import schema
from tests.kit.composed_configs import compose_config
from tests.kit.readme import BLOCKS, PAGES, README, TRAIN

ROOT = Path(__file__).resolve().parents[1]


def test_readme_gives_exactly_one_command_for_the_main_job_and_one_for_the_tests():
    assert BLOCKS[0].strip() == "make demo"
    assert BLOCKS[1].strip() == "make test"
    targets = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t.*train.py stage=all$", targets, re.MULTILINE)
    assert re.search(r"^test:.*\n\t\$\(PYTEST\)", targets, re.MULTILINE)
    assert "make check\nmake test-all" in (ROOT / ".ci/run").read_text()


def test_readme_is_a_first_page():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md", "CONTRIBUTING.md"])
def test_every_link_within_the_project_leads_somewhere(page):
    text = PAGES.get(page) or (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_there_are_commands_to_check():
    assert len(TRAIN) >= 30


@pytest.mark.parametrize("command", TRAIN)
def test_a_command_of_the_pages_composes_and_every_value_fits(command):
    overrides = [part for part in shlex.split(command)[2:] if not part.startswith("-")]
    if "--cfg" in command:
        overrides.remove("job")
    single = [re.sub(r"=([^,\[{]+),.*", r"=\1", part) for part in overrides]  # the first job of a sweep
    schema.check(compose_config(single))


def test_everyday_commands_read_only_what_earlier_ones_have_made():
    [everyday] = [block for block in BLOCKS if "# a sweep" in block]
    made = set(compose_config(["stage=all"]).stages)  # by make demo
    for line in everyday.splitlines():
        assert set(re.findall(r"logs/tiny/(\w+)", line)) <= made, line
        made |= set(re.findall(r"train.py stage=(\w+)", line))


def test_every_gradus_command_of_the_pages_exists():
    calls = re.findall(r"^(?:\.venv/bin/)?gradus (\w+)", "\n".join(BLOCKS), re.MULTILINE)
    named = {*calls, *re.findall(r"`gradus (\w+)", "\n".join(PAGES.values()))}
    assert named and named <= set(get_command(app).commands)


def test_every_file_and_folder_on_the_map_exists():
    block = README.split("## Map\n\n```\n")[1].split("```")[0]
    components = [line for line in block.splitlines() if line.startswith("  ")]
    for name in re.findall(r"(?:^|\s{2,})([\w/]+(?:\.py|/))", "\n".join(components)):
        assert (ROOT / "components" / name).exists(), name
    for name in re.findall(r"^(\S+)", block, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_every_folder_of_components_is_on_the_map():
    block = README.split("## Map")[1]
    for folder in (ROOT / "components").iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in block
