"""docs/results: pages that benchmarks/proof.py makes of runs, and that say when the training code has changed since."""

import importlib
import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from components.evaluation.measure.over_seeds import over_seeds
from tests.kit.composed_configs import compose_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs/results").glob("*.md"))
PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_TABLES = [page for page in PROSE if "<!-- measured" in page.read_text()]


@pytest.fixture
def proof(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("proof")


@pytest.fixture
def summary(tmp_path):
    """The summary folder of a run."""
    results = {
        "run": "optimum",
        "commits": ["abc1234"],
        "groups": {"": {"gold": 0.123456789, "values": [1, 2.0000001]}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(results))
    (tmp_path / "summary.md").write_text("# Summary of optimum\n\nSeeds 0.\n\n![a picture](gold.png)\n")
    (tmp_path / "gold.png").write_bytes(b"picture")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_so_exactly_if_the_training_code_has_changed_since(page, proof):
    record, now = json.loads(page.with_suffix(".json").read_text()), proof.code_here(proof.RUNS[page.stem].depends_on)
    changed = record["training_code"] != [now]
    confirmed = changed and record.get("confirmed") == now
    said = {note: note in page.read_text() for note in (proof.CHANGED, proof.CONFIRMED)}
    assert said == {proof.CHANGED: changed and not confirmed, proof.CONFIRMED: confirmed}, (
        "run: python benchmarks/proof.py --pages"
    )


@pytest.mark.parametrize("page", WITH_TABLES, ids=lambda page: page.stem)
def test_tables_of_what_was_measured_are_what_the_records_say(page, proof, tmp_path):
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    proof.fill(copy)
    assert copy.read_text() == page.read_text(), "run: python benchmarks/proof.py --pages"


def test_a_table_has_the_records_figures_its_commit_and_whether_the_code_has_changed(proof):
    seeds = [{"optimum": {"methods": {"kto": method(0.1), "grpo_own_beta": method(share)}}} for share in (0.5, 0.7)]
    content = {"commits": ["abc1234"], "hardware": ["a processor"], "versions": ["python 3.11, torch 2.13.0, numpy 2"]}
    record = proof.Record(content | {"groups": {"": over_seeds(seeds)}}, changed=True)
    before = "<!-- measured: optimum -->\nold\n<!-- /measured -->\n<!-- measured: rlvr -->\n<!-- /measured -->"
    lines = proof.proof_tables.filled(before, {"optimum": record}).splitlines()
    assert lines[3] == "| GRPO, β 0.25 | 60.0 ± 127.1% | 1.00 | 2.00 | 0.25 |"  # 12.706 · 0.1, Student's t
    assert lines[4] == "| KTO | 10.0% | 1.00 | 2.00 | 0.25 |"
    assert lines[6] == "Commit abc1234 of older training code; a processor; torch 2.13.0."
    assert "old" not in lines and lines[-2] == "Not yet measured."


def test_receipts_show_the_means_and_how_far_single_runs_were_from_what_they_were_told(proof):
    """1 − 90/100 too little and 1.2 times too much, of memory nothing known in the second run."""
    told = {"seconds": {"predicted": 100.0, "actual": 90.0}, "memory": {"predicted": 5e8, "actual": 4e8}}
    more = {"seconds": {"predicted": 100.0, "actual": 120.0}, "memory": {"predicted": None, "actual": 4e8}}
    seeds = [{"report": {"receipts": {"rm": receipt, "dpo_own_beta": receipt}}} for receipt in (told, more)]
    content = {"commits": ["abc1234"], "hardware": ["a processor"], "versions": ["torch 2.13.0, numpy 2"]}
    record = proof.Record(content | {"groups": {"": over_seeds(seeds)}}, changed=False)
    table = proof.proof_tables.receipts({"tiny": record}).splitlines()
    assert table[2:4] == ["| reward model | 100 → 105 (−10 to +20%) | 500 → 400 (−20 to −20%) |", ""]


def method(share):
    return {"fraction_of_optimum": share, "reward": 1.0, "kl": 2.0, "total_variation": 0.25}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_picture_of_a_page_is_there(page):
    for picture in re.findall(r"\]\((\S+\.png)\)", page.read_text()):
        assert (page.parent / picture).exists()


def test_every_experiment_of_the_proof_fills_the_run_that_its_page_is_made_of(proof):
    for name, page in proof.RUNS.items():
        for experiment in page.experiments:
            assert compose_config([f"experiment={experiment}", "hydra.mode=RUN"]).run.split("/")[0] == name


def test_a_page_is_the_summary_with_its_command_and_its_own_pictures(proof, summary, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "files_at", lambda commit: {"components/a.py": commit.encode()})
    proof.publish("optimum", summary, tmp_path / "pages")
    page = (tmp_path / "pages/optimum.md").read_text()
    assert page.startswith(
        "# Every method against the exact optimum\n\n```bash\npython train.py experiment=optimum\n```"
    )
    assert page.endswith("Seeds 0.\n\n![a picture](optimum_gold.png)\n")
    assert (tmp_path / "pages/optimum_gold.png").read_bytes() == b"picture"
    record = json.loads((tmp_path / "pages/optimum.json").read_text())
    assert record["groups"] == {"": {"gold": 0.12346, "values": [1, 2.0]}}
    assert record["training_code"] == [proof.training_code({"components/a.py": b"abc1234"}, ())]


def test_figures_of_uncommitted_changes_are_no_proof(proof, summary):
    (summary / "summary.json").write_text(json.dumps({"commits": ["abc1234+"]}))
    with pytest.raises(SystemExit, match="uncommitted changes .abc1234\\+."):
        proof.publish("optimum", summary)


def test_the_note_comes_and_goes_with_the_code(proof, tmp_path, monkeypatch):
    page = tmp_path / "optimum.md"
    page.write_text("# Title\n\nText.\n")
    now = proof.code_here(proof.RUNS["optimum"].depends_on)
    for made_with, expected in ((["old"], f"# Title\n\n{proof.CHANGED}\n\nText.\n"), ([now], "# Title\n\nText.\n")):
        page.with_suffix(".json").write_text(json.dumps({"training_code": made_with}))
        for _ in range(2):
            proof.note(page)
            assert page.read_text() == expected


@pytest.fixture
def old_page(proof, tmp_path, monkeypatch):
    """A page of older training code, and what short runs of it and of the present code write; change either."""
    page = tmp_path / "optimum.md"
    page.write_text("# Title\n\nText.\n")
    page.with_suffix(".json").write_text(json.dumps({"training_code": ["old"], "commits": ["abc1234"]}))
    ends = {"before": {"ppo/model.safetensors": "1", "report.json": "2"}}
    ends["now"] = dict(ends["before"])

    def short_runs(tree, run, logs, model):
        assert run == proof.RUNS["optimum"] and (tree / "train.py").is_file()
        logs.mkdir()
        return ends[tree.name]

    def archive(commit, *folders):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            tar.add(ROOT / "train.py", "train.py")
        return tarfile.open(fileobj=io.BytesIO(made.getvalue()))

    monkeypatch.setattr(proof, "PAGES", tmp_path)
    monkeypatch.setattr(proof, "short_runs", short_runs)
    monkeypatch.setattr(proof, "_archive", archive)
    return page, ends


def test_short_runs_are_known_by_their_models_and_figures_and_by_no_commit_or_seconds(proof, tmp_path, monkeypatch):
    def train(command, cwd, check):
        assert command[2:4] == ["experiment=rlvr", "debug=smoke"] and command[-1] == "model.path=folder"
        assert (cwd / "conf/experiment/rlvr.yaml").read_text() == "a: [trainer.max_steps=40, trainer.max_epochs=2]"
        logs = Path(next(argument for argument in command if argument.startswith("paths.logs=")).split("=")[1])
        for folder, content in (("ppo/export/model.safetensors", b"1"), ("report/report.json", reports.pop())):
            (logs / folder).parent.mkdir(parents=True, exist_ok=True)
            (logs / folder).write_bytes(content)

    figures = (
        {"of": {"gold": 1.0}, "commit": "a"},
        {"of": {"gold": 1.0, "seconds": 2.0}, "commit": "b", "minutes": {}},
        {"of": {"gold": 1.5}, "commit": "a"},
    )
    reports = [json.dumps(report).encode() for report in figures]
    monkeypatch.setattr(proof.subprocess, "run", train)
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/rlvr.yaml").write_text("a: [trainer.max_steps=480, trainer.max_epochs=2]")
    other, one, same = (proof.short_runs(tmp_path, proof.RUNS["rlvr"], tmp_path / name, "folder") for name in "abc")
    assert list(one) == ["rlvr/ppo/export/model.safetensors", "rlvr/report/report.json"]
    assert one == same != other


def test_short_runs_that_end_in_the_same_bits_confirm_a_page(proof, old_page):
    page, _ = old_page
    assert proof.record_of(page).changed
    proof.confirm("fedcba9", None)  # another commit's figures
    assert proof.record_of(page).changed
    proof.confirm("abc1234", None)
    proof.note(page)
    record = proof.record_of(page)
    assert (record.changed, record.confirmed) == (False, True)
    assert page.read_text() == f"# Title\n\n{proof.CONFIRMED}\n\nText.\n"


@pytest.mark.parametrize("name", ["ppo/model.safetensors", "report.json", "another/model.safetensors"])
def test_a_page_whose_short_runs_differ_is_to_be_measured_again(name, proof, old_page):
    page, ends = old_page
    ends["now"][name] = "3"
    with pytest.raises(SystemExit, match=f"optimum: not the same in {name}: measure it again"):
        proof.confirm("abc1234", None)
    assert proof.record_of(page).changed


def test_only_what_training_depends_on_counts_as_its_code(proof):
    files = {
        "components/stages/rm.py": b"a = 1\n",
        "conf/train.yaml": b"seed: 0\n",
        "conf/experiment/rlvr.yaml": b"a: 1",
    }
    same = files | {
        "components/stages/rm.py": b'"""What it is.\n\nMore.\n"""\n\na = 1  # why\n',
        "components/serving/app.py": b"b = 2\n",
        "conf/hardware/h100.yaml": b"peak: 1\n",
        "conf/train.yaml": b"# Why.\nseed:  0  # how\n",
        "conf/experiment/other.yaml": b"a: 1\n",
        "components/notes.txt": b"x",
    }
    page = proof.RUNS["rlvr"].depends_on
    assert proof.training_code(same, page) == proof.training_code(files, page)
    changes = {"conf/train.yaml": b"seed: 1", "components/stages/rm.py": b"a = '#'", "conf/experiment/rlvr.yaml": b""}
    for name, content in changes.items():
        assert proof.training_code(files | {name: content}, page) != proof.training_code(files, page)


def test_techniques_count_for_the_page_that_measures_them_alone(proof):
    files = {"components/prompting/voting.py": b"a = 1"}
    for name, page in proof.RUNS.items():
        changed = proof.training_code(files, page.depends_on) != proof.training_code({}, page.depends_on)
        assert changed == (name == "techniques")


def test_remarks_are_comments_and_docstrings_and_nothing_else(proof):
    source = 'def f():\n    """Doc."""\n    x = "# kept"  # gone\n    """also\n    kept"""\n\n    return x\n'
    kept = 'def f():\n    x = "# kept"\n    """also\n    kept"""\n    return x'
    assert proof.without_remarks(source) == kept
