"""How Sphinx makes the site (`make docs`): the pages of the repository as they stand, and the API from docstrings.

The source folder is the root of the repository, so README is the first page, and a relative link leads to the same
place on the site as where the files are browsed.
"""

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from stage_tables import ALIGNED  # noqa: E402

API = ROOT / "docs" / "api"  # written here, ignored by git
LIMITED = re.compile(r"(?:~?typing\.)?Annotated\[((?:[^][,]|\[[^][]*\])+), (?:[^][()]|\((?:[^()]|\([^()]*\))*\))*\]")

PAGES = {  # the menu, in reading order
    "Start": ["docs/start", "docs/concepts", "docs/faq", "docs/glossary"],
    "Guides": [
        *("docs/data", "docs/models", "docs/rewards", "docs/techniques", "docs/serving", "docs/planning"),
        *("docs/monitoring", "docs/faults", "docs/distributed", "docs/recipes", "docs/extending"),
    ],
    "Stages": [
        "docs/stages/README",
        *("docs/stages/tokenizer", "docs/stages/pretrain", "docs/stages/sft", "docs/stages/rm", "docs/stages/ppo"),
        *("docs/stages/grpo", "docs/stages/rloo", "docs/stages/rejection", "docs/stages/dpo", "docs/stages/kto"),
        *("docs/stages/simpo", "docs/stages/orpo", "docs/stages/distill", "docs/stages/compare", "docs/stages/eval"),
    ],
    "Results": [
        "docs/results",
        *(f"docs/results/{page.stem}" for page in sorted((ROOT / "docs/results").glob("*.md"))),  # of make proof
        *("docs/negative_results", "benchmarks/README"),
    ],
    "Project": ["docs/design", "CONTRIBUTING", "CHANGELOG", "docs/api/index"],
}

project = html_title = "Gradus"
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "docs/**.md", "docs/**.rst"]
exclude_patterns = [".*", "logs", "site"]
myst_heading_anchors = 4
highlight_language = "none"

html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_extra_path = ["_static/index.html"]  # leads to the first page
html_search_scorer = str(ROOT / "docs/_static/search_order.js")
html_show_sourcelink = False
html_show_copyright = False

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of Lightning and torch
add_module_names = False


def write_api() -> None:
    """Writes a page for each folder of components/, which lists its modules, and an index of the pages."""
    API.mkdir(exist_ok=True)
    files = [file for file in (ROOT / "components").rglob("*.py") if file.name != "__init__.py"]
    names = []
    for folder, modules in groupby(sorted(files, key=lambda file: (file.parent, file.name)), lambda file: file.parent):
        name = ".".join(folder.relative_to(ROOT).parts)
        names.append(name)
        parts = [heading(name, "=")]
        for module in modules:
            parts += [heading(module.stem, "-"), f".. automodule:: {name}.{module.stem}\n"]
        write(API / f"{name}.rst", "\n".join(parts))
    for stale in {file.stem for file in API.glob("components*.rst")} - set(names):
        (API / f"{stale}.rst").unlink()
    listed = "\n".join(f"   {name}" for name in names)
    write(API / "index.rst", f"{heading('API', '=')}\n.. toctree::\n\n{listed}\n")


def write(page: Path, text: str) -> None:
    """Leaves a page as it is that has this text, so that Sphinx reads only what has changed."""
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def heading(text: str, underline: str) -> str:
    return f"{text}\n{underline * len(text)}\n"


def add_menu(app: Any, page: str, source: list[str]) -> None:
    """Appends the menu to the first page, where it is invisible."""
    if page == root_doc:
        for caption, pages in PAGES.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def as_text(app: Any, kind: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: sentences become paragraphs; columns and equations are kept as they are aligned."""
    result: list[str] = []
    text = "\n".join(lines).replace(".  Source", ". Source")
    for aligned, run in groupby(text.split("\n"), key=lambda line: bool(ALIGNED.search(line)) if line else None):
        if aligned:
            result += ["::", "", *(f"    {line}" for line in run), ""]
        elif aligned is not None:
            result += [*(escaped(line) for line in run), ""]
    lines[:] = result


def escaped(line: str) -> str:
    """Plain text as reStructuredText, in which `code` is code."""
    parts = line.split("`")
    return "``".join(part if i % 2 else re.sub(r"([\\*|_])", r"\\\1", part) for i, part in enumerate(parts))


def plain_types(
    app: Any, kind: str, name: str, target: Any, options: Any, given: str | None, returned: str | None
) -> Any:
    """A signature whose numbers with limits, such as Annotated[float, Gt(0)], are shown as numbers."""
    return given and LIMITED.sub(r"\1", given), returned


def skips(app: Any, kind: str, name: str, target: Any, skip: bool, options: Any) -> bool | None:
    """A named tuple's fields have no docstring of their own."""
    return True if type(target).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    write_api()
    app.connect("env-get-outdated", lambda *_: [root_doc])  # its menu can have changed
    app.connect("source-read", add_menu)
    app.connect("autodoc-process-docstring", as_text)
    app.connect("autodoc-process-signature", plain_types)
    app.connect("autodoc-skip-member", skips)
