"""What README and the pages of docs/ promise exists (that commands run: test_smoke_runs)."""

import importlib
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


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/results/")])  # make proof's
def test_prose_has_lines_of_at_most_120_characters(page):
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))] == []


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md", "CONTRIBUTING.md", "AGENTS.md", "llms.txt"])
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


def test_what_the_pages_say_of_settings_and_metrics_is_what_the_code_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    tables = importlib.import_module("stage_tables")
    stale = [page for page, text in PAGES.items() if tables.filled(text) != text]
    assert stale == [], "python docs/stage_tables.py writes them"


def test_every_stage_has_a_page_with_its_own_metrics():
    """A metric, its healthy band and a setting, by hand: what fills the pages reads the right places."""
    trained = [file.stem for file in ROOT.glob("conf/stage/*.yaml") if "components.stages." in file.read_text()]
    assert len(trained) >= 12 and {f"docs/stages/{stage}.md" for stage in trained} <= PAGES.keys()
    ppo = PAGES["docs/stages/ppo.md"]
    assert "| `rollout/kl` | mean over responses of Σ log π/π_ref, nats; 0 at first, stays below ~10" in ppo
    assert re.search(r"\| `rollout/kl` \|.*\| 0 to 10 \|$", ppo, re.MULTILINE)
    assert "| `stage.clip` | `0.2` |" in ppo
    assert "| `stage.schedule.kind` | `linear` |" in ppo and "`stage.schedule.decay_share`" not in ppo  # as in SFT
    assert "useless critic" in ppo and "useless critic" not in PAGES["docs/stages/grpo.md"]


def test_what_is_between_the_marks_of_a_page_is_rewritten(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    tables = importlib.import_module("stage_tables")
    text = tables.filled("before\n<!-- made: about sft -->\nold\n<!-- /made -->\nafter\n")
    assert text.startswith("before\n<!-- made: about sft -->\n\nThe pretraining loss on the assistant's tokens")
    assert "old" not in text and text.endswith("<!-- /made -->\nafter\n") and tables.filled(text) == text
