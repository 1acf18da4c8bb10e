"""Runs the experiments that prove what Gradus claims, and makes the pages of docs/results from what they measured.

python benchmarks/proof.py                  all of them, hours; started again, it goes on where it was
python benchmarks/proof.py --model FOLDER   the experiments on a real model as well: a folder or a name on the Hub
python benchmarks/proof.py --only optimum   one of them
python benchmarks/proof.py --pages          run nothing: the pages of the runs that are there, notes on the others
python benchmarks/proof.py --same 1a2b3c4   do the figures of that commit hold for the present code? They do if short
                                            runs of the experiments, at both, write the same models and reports

The tables of README.md and docs/ with these figures are made of the pages' records as well, see proof_tables.py.

A page names the commit, hardware, versions, seeds and minutes of its runs. Its record, the JSON file next to it, has
the digest of the code that they trained with; a page whose code has changed since says so, and whether short runs
ended in the same bits.
"""

import argparse
import ast
import functools
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import proof_tables
import yaml
from proof_tables import Record

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs/results"
TRAINS = ("components", "conf")  # what a figure depends on …
BUT = (  # … and what in there it does not depend on
    "components/cli.py",
    "components/evaluation/report/",
    "components/evaluation/seeds/",
    "components/planning/",
    "components/serving/",
    "components/system/provenance.py",
    *(
        f"components/tasks/{name}.py"
        for name in (
            "compare",
            "duration",
            "forecast",
            "law_card",
            "plan",
            "scaling_law",
            "summary",
            "this_machine",
            "workload",
        )
    ),
    "conf/hardware/",
    "conf/stage/scaling_law.yaml",
    "conf/experiment/",  # except the page's own, see Page.depends_on
    "components/prompting/",
)
CHANGED = "**The training code has changed since these runs**; the commits below are the ones to check out."
CONFIRMED = "The training code has changed since these runs; short runs with the new code end in the same bits."
STEPS = "trainer.max_steps=40"  # of short runs: five rollouts of PPO, the fewest that over-optimization is drawn from
SHORT = ("debug=smoke", STEPS, "run=short", "sizes.prompts=200")  # of which the worlds have fewer: all are measured
REPORTS = ("report.json", "rewards.json", "optimum.json", "overoptimization.json")
# parts of them, at any depth, without figures of models
UNLIKE = ("commit", "inputs", "minutes", "seconds", "receipts", "budget", "learning")
SECTIONS = ("overoptimization", "scaling")  # experiments that have a section of a summary for themselves
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Page(NamedTuple):
    """title: of the page. experiments: what fills the run. model: the real one that they were measured on, by its name
    on the Hub; "" for the built-in world's. uses: what of BUT its figures do depend on, besides its experiments. short:
    settings of its short runs, besides SHORT."""

    title: str
    experiments: tuple[str, ...]
    model: str = ""
    uses: tuple[str, ...] = ()
    short: tuple[str, ...] = ()

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (*self.uses, *(f"conf/experiment/{experiment}.yaml" for experiment in self.experiments))


RUNS = {
    "optimum": Page("Every method against the exact optimum", ("optimum",)),
    "tiny": Page("Every method on the built-in world", ("bakeoff", "overoptimization", "scaling")),
    "rlvr": Page("Reinforcement learning from a verifier on a real model", ("rlvr",), SMOL),
    "techniques": Page(
        "Prompting techniques",
        ("techniques",),
        uses=("components/prompting/",),
        short=("model.max_position_embeddings=256",),  # a model of few steps talks on, and reflection reads it all
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name of the model for the experiments on a real one")
    parser.add_argument("--logs", default="logs", help="folder of the runs")
    parser.add_argument(
        "--only", choices=sorted(experiment for page in RUNS.values() for experiment in page.experiments)
    )
    parser.add_argument("--pages", action="store_true", help="run nothing")
    parser.add_argument("--same", metavar="COMMIT", help="compare short runs with those of this commit")
    args = parser.parse_args()
    if args.model and Path(args.model).exists():
        args.model = str(Path(args.model).resolve())  # short runs start in other folders
    if args.same:
        confirm(args.same, args.model)
        args.pages = True
    for name, page in RUNS.items():
        for experiment in page.experiments:
            if args.pages or args.only not in (None, experiment):
                continue
            if page.model and not args.model:
                print(f"{experiment} is left out: it needs --model", flush=True)
                continue
            run(experiment, page, args)
        summary = Path(args.logs, name, "summary/summary.json")
        if summary.exists():
            publish(name, summary.parent)
    for page in sorted(PAGES.glob("*.md")):
        note(page)
    fill(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def run(experiment: str, page: Page, args: argparse.Namespace) -> None:
    model = [f"model.path={args.model}"] if page.model else []
    command = [sys.executable, "train.py", f"experiment={experiment}", f"paths.logs={args.logs}"]
    subprocess.run([*command, *model], cwd=ROOT, check=True)


def publish(name: str, summary: Path, folder: Path = PAGES) -> None:
    """Makes a run's page, record and pictures from its summary folder."""
    results = json.loads((summary / "summary.json").read_text(encoding="utf-8"))
    if changed := [commit for commit in results["commits"] if commit.endswith("+")]:
        sys.exit(f"{summary} is of a tree with uncommitted changes ({', '.join(changed)}); a page needs a commit")
    text = (summary / "summary.md").read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in re.findall(r"!\[[^\]]*\]\((\S+\.png)\)", text):
        text = text.replace(f"({picture})", f"({name}_{picture})")
        shutil.copyfile(summary / picture, folder / f"{name}_{picture}")
    page = RUNS[name]
    model = f" model.path={page.model}" if page.model else ""
    measured = {section for group in results["groups"].values() for section in group}
    ran = [one for one in page.experiments if one not in SECTIONS or one in measured]
    commands = "\n".join(f"python train.py experiment={experiment}{model}" for experiment in ran)
    heading = f"# {page.title}\n\n```bash\n{commands}\n```"
    (folder / f"{name}.md").write_text(re.sub(r"^# .*", lambda _: heading, text, count=1), encoding="utf-8")
    digests = sorted({training_code(files_at(commit), page.depends_on) for commit in results["commits"]})
    record = {"training_code": digests, **rounded(results)}
    write_record(folder / f"{name}.md", record)


def confirm(commit: str, model: str | None) -> None:
    """Marks the records of this commit, whose training code is not the present one, as confirmed if short runs of their
    experiments end in the same bits. Raises SystemExit, at the end, if one does not."""
    failed = []
    for page in sorted(PAGES.glob("*.md")):
        record, run = record_of(page), RUNS[page.stem]
        if record.content["commits"] != [commit] or not record.changed or (run.model and not model):
            continue
        with tempfile.TemporaryDirectory() as folder:
            before, now, logs = (Path(folder, name) for name in ("before", "now", "logs"))
            _archive(commit, *TRAINS, "train.py").extractall(before, filter="data")
            for part in TRAINS:
                shutil.copytree(ROOT / part, now / part)
            shutil.copy(ROOT / "train.py", now)
            ends = []
            for tree in (before, now):
                ends.append(short_runs(tree, run, logs, model))
                shutil.rmtree(logs)
        different = sorted(name for name in ends[0].keys() | ends[1].keys() if ends[0].get(name) != ends[1].get(name))
        if different:
            failed.append(f"{page.stem}: not the same in {', '.join(different)}: measure it again")
            continue
        write_record(page, {**record.content, "confirmed": code_here(run.depends_on)})
        print(f"{page.stem}: the same in {len(ends[0])} models and reports", flush=True)
    if failed:
        sys.exit("\n".join(failed))


def short_runs(tree: Path, page: Page, logs: Path, model: str | None) -> dict[str, str]:
    """{file: what identifies its content} of the models and reports that short runs of a page's experiments write.

    tree: a copy of the code, whose experiments' own numbers of steps are replaced.
    """
    identities = {}
    for experiment in page.experiments:
        file = tree / f"conf/experiment/{experiment}.yaml"
        file.write_text(re.sub(r"trainer\.max_steps=\d+", STEPS, file.read_text(encoding="utf-8")), encoding="utf-8")
        settings = [
            f"experiment={experiment}",
            *SHORT,
            *page.short,
            "seed=100",
            "hydra.mode=RUN",
            f"paths.logs={logs / experiment}",
        ]
        of_model = [f"model.path={model}"] if page.model else []
        subprocess.run([sys.executable, "train.py", *settings, *of_model], cwd=tree, check=True)
        for file in sorted((logs / experiment).rglob("*.safetensors")):
            identities[file.relative_to(logs).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(file for name in REPORTS for file in (logs / experiment).rglob(name)):
            report = json.loads(file.read_text(encoding="utf-8"))
            identities[file.relative_to(logs).as_posix()] = json.dumps(_figures(report))
    return identities


def _figures(report: Any) -> Any:
    """A report without what differs between two runs of the same code."""
    if not isinstance(report, dict):
        return report
    return {key: _figures(value) for key, value in report.items() if key not in UNLIKE}


def note(page: Path) -> None:
    """Puts the note on a page whose training code is not the present one, or removes it."""
    text = page.read_text(encoding="utf-8")
    for former in (CHANGED, CONFIRMED):
        text = text.replace(f"{former}\n\n", "")
    record = record_of(page)
    if record.changed or record.confirmed:
        heading, rest = text.split("\n\n", 1)
        text = f"{heading}\n\n{CHANGED if record.changed else CONFIRMED}\n\n{rest}"
    page.write_text(text, encoding="utf-8")


def fill(*pages: Path) -> None:
    """Rewrites the tables that README.md and docs/ have of the records."""
    records = {page.stem: record_of(page) for page in PAGES.glob("*.md")}
    for page in pages:
        page.write_text(proof_tables.filled(page.read_text(encoding="utf-8"), records), encoding="utf-8")


def record_of(page: Path) -> Record:
    content = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    now = code_here(RUNS[page.stem].depends_on)
    same = content["training_code"] == [now]
    confirmed = not same and content.get("confirmed") == now
    return Record(content, changed=not (same or confirmed), confirmed=confirmed)


def write_record(page: Path, content: Mapping[str, Any]) -> None:
    page.with_suffix(".json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def training_code(files: Mapping[str, bytes], but_not: tuple[str, ...]) -> str:
    """A digest of the code and settings that figures depend on, see BUT; comments and docstrings do not count.

    but_not: beginnings of paths that count although BUT has them.
    """
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        if name.endswith((".py", ".yaml")) and (name.startswith(but_not) or not name.startswith(BUT)):
            text = content.decode()
            code = without_remarks(text) if name.endswith(".py") else json.dumps(yaml.safe_load(text))
            digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()[:16]


def without_remarks(source: str) -> str:
    """Python code without comments, docstrings, and empty lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            doc = node.body[0]
            lines[doc.lineno - 1 : doc.end_lineno] = [""] * (doc.end_lineno - doc.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.cache
def code_here(but_not: tuple[str, ...]) -> str:
    """The digest of the training code on disk."""
    files = (file for folder in TRAINS for file in (ROOT / folder).rglob("*.*") if file.suffix in (".py", ".yaml"))
    return training_code({file.relative_to(ROOT).as_posix(): file.read_bytes() for file in files}, but_not)


def files_at(commit: str) -> dict[str, bytes]:
    """{path: content} of the training code at a commit."""
    with _archive(commit, *TRAINS) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar.getmembers() if one.isfile()}


def _archive(commit: str, *folders: str) -> tarfile.TarFile:
    """The files of a commit, or of some of its folders."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *folders], capture_output=True, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(made))


def rounded(value: Any) -> Any:
    """Figures to five significant digits, so that a record is small."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
