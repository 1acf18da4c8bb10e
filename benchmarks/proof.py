"""Runs the experiments that prove what Gradus claims, and makes the pages of docs/results from what they measured.

python benchmarks/proof.py                  all of them, hours; started again, it goes on where it was
python benchmarks/proof.py --model FOLDER   the experiments on a real model as well: a folder or a name on the Hub
python benchmarks/proof.py --only optimum   one of them
python benchmarks/proof.py --pages          run nothing: the pages of the runs that are there, notes on the others

The tables of README.md and docs/ with these figures are made of the pages' records as well, see proof_tables.py.

A page names the commit, hardware, versions, seeds and minutes of its runs. Its record, the JSON file next to it, has
the digest of the code that they trained with; a page whose code has changed since says so.
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
SECTIONS = ("overoptimization", "scaling")  # experiments that have a section of a summary for themselves
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Page(NamedTuple):
    """title: of the page. experiments: what fills the run. model: the real one that they were measured on, by its name
    on the Hub; "" for the built-in world's. uses: what of BUT its figures do depend on, besides its experiments."""

    title: str
    experiments: tuple[str, ...]
    model: str = ""
    uses: tuple[str, ...] = ()

    @property
    def depends_on(self) -> tuple[str, ...]:
        return (*self.uses, *(f"conf/experiment/{experiment}.yaml" for experiment in self.experiments))


RUNS = {
    "optimum": Page("Every method against the exact optimum", ("optimum",)),
    "tiny": Page("Every method on the built-in world", ("bakeoff", "overoptimization", "scaling")),
    "rlvr": Page("Reinforcement learning from a verifier on a real model", ("rlvr",), SMOL),
    "techniques": Page("Prompting techniques", ("techniques",), uses=("components/prompting/",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name of the model for the experiments on a real one")
    parser.add_argument("--logs", default="logs", help="folder of the runs")
    parser.add_argument(
        "--only", choices=sorted(experiment for page in RUNS.values() for experiment in page.experiments)
    )
    parser.add_argument("--pages", action="store_true", help="run nothing")
    args = parser.parse_args()
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
    (folder / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def note(page: Path) -> None:
    """Puts the note on a page whose training code is not the present one, or removes it."""
    text = page.read_text(encoding="utf-8").replace(f"{CHANGED}\n\n", "")
    if record_of(page).changed:
        heading, rest = text.split("\n\n", 1)
        text = f"{heading}\n\n{CHANGED}\n\n{rest}"
    page.write_text(text, encoding="utf-8")


def fill(*pages: Path) -> None:
    """Rewrites the tables that README.md and docs/ have of the records."""
    records = {page.stem: record_of(page) for page in PAGES.glob("*.md")}
    for page in pages:
        page.write_text(proof_tables.filled(page.read_text(encoding="utf-8"), records), encoding="utf-8")


def record_of(page: Path) -> Record:
    content = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return Record(content, changed=content["training_code"] != [code_here(RUNS[page.stem].depends_on)])


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
    made = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *TRAINS], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar.getmembers() if one.isfile()}


def rounded(value: Any) -> Any:
    """Figures to five significant digits, so that a record is small."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
