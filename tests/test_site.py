"""The site of the documentation: made by Sphinx without a warning, whole without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    rule = re.search(r"(?m)^docs:.*\n(?:\t.*\n)*", (ROOT / "Makefile").read_text())[0]
    [options] = re.findall(r"-m sphinx (.*) site$", rule, re.MULTILINE)
    build = [sys.executable, "-m", "sphinx", *options.split(), "-d", str(folder / "cache"), str(folder / "html")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "html"


@pytest.mark.slow(minutes=3)
def test_the_site_has_a_page_for_every_markdown_file(site):
    """That nothing is left out, that links hold and that docstrings can be read: warnings are errors."""
    pages = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
    pages += [str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")]
    assert len(pages) > 15
    assert [page for page in pages if not (site / page).with_suffix(".html").exists()] == []
    assert "README.html" in (site / "index.html").read_text()


@pytest.mark.slow(minutes=1)
def test_the_site_shows_docstrings_and_is_searched(site):
    api = (site / "docs/api/components.functional.html").read_text(encoding="utf-8")
    assert "Generalized advantage estimates over one response per row." in api
    assert "A_t = d_t + gamma·lam·A_{t+1},  d_t = r_t + gamma·V_{t+1} − V_t" in api
    assert "docs/monitoring" in (site / "searchindex.js").read_text(encoding="utf-8")


@pytest.mark.slow(minutes=1)
def test_the_site_needs_no_network(site):
    loaded = re.compile(
        r'<(?:script|img|iframe)\b[^>]*\bsrc="(?:https?:)?//|<link\b[^>]*\bhref="(?:https?:)?//|@import|url\(["\']?https?:'
    )
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > 40
    assert [file.name for file in files if loaded.search(file.read_text(encoding="utf-8"))] == []
