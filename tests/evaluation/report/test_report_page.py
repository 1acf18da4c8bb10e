"""The report as a single HTML file: self-contained, accessible, with the same words as in Markdown."""

import html
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from components.evaluation.report import output, page_blocks, pictures, plots, report_page
from components.evaluation.report.page_blocks import Page, Picture, Points, Quotes, Terms
from components.evaluation.report.page_blocks import Text as Paragraph
from components.evaluation.report.plot_style import DARK, INK, PAPER, QUIET

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Elements(HTMLParser):
    """(tag, attributes, tags around it) of every element; `words`: all text outside of style and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.around, self.words = [], [], []
        self.feed(text)
        assert not self.around, f"never closed: {self.around}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), tuple(self.around)))
        if tag not in VOID:
            self.around.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes), tuple(self.around)))

    def handle_endtag(self, tag):
        assert self.around.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg", "title"} & set(self.around):
            self.words.append(data)

    def of(self, tag):
        return [(attributes, around) for name, attributes, around in self.found if name == tag]


@pytest.fixture(scope="module")
def written(full_results, tmp_path_factory):
    """A page with every kind of block, as HTML."""
    folder = tmp_path_factory.mktemp("report")
    output.write(full_results, folder, console=Console(quiet=True))
    return (folder / "report.html").read_text()


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are not drawn."""
    monkeypatch.setattr(pictures, "save", lambda panel, file: "<svg></svg>")


def test_the_page_needs_no_other_file_and_no_network(written):
    elements = Elements(written)
    assert {tag for tag, *_ in elements.found}.isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    for _, attributes, _ in elements.found:
        for name in ("src", "href", "xlink:href", "srcset"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in written and all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", written))
    [policy] = [a["content"] for a, _ in elements.of("meta") if "Content-Security-Policy" in a.values()]
    assert "default-src 'none'" in policy
    assert "<script>" not in written, "what a model says is text"


def test_every_id_is_unique_and_every_reference_has_its_target(written):
    ids = re.findall(r' id="([^"]+)"', written)
    assert len(ids) == len(set(ids)) > 10
    targets = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', written))
    assert targets and targets <= set(ids)


def test_tables_have_headers_pictures_have_alt_text_and_the_page_has_a_language(written):
    elements = Elements(written)
    assert elements.of("html")[0][0]["lang"] == "en" and elements.of("title")
    for attributes, around in elements.of("th"):
        assert attributes["scope"] == ("col" if "thead" in around else "row")
    rows = [around for _, around in elements.of("tr") if "tbody" in around]
    assert len(rows) == len([a for a, _ in elements.of("th") if a["scope"] == "row"])
    pictures = [a for a, _ in elements.of("div") if a.get("role") == "img"]
    assert len(pictures) == len(elements.of("svg")) > 7
    assert all(len(a["aria-label"]) > 20 and re.search(r"\d", a["aria-label"]) for a in pictures)
    regions = [a for a, _ in elements.of("div") if a.get("role") == "region"]
    assert len(regions) == len(elements.of("table")) and all(a["aria-label"] and a["tabindex"] == "0" for a in regions)


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_text_has_enough_contrast_in_light_and_dark_mode(written):
    """WCAG 2.1, 1.4.3: at least 4.5 to 1."""
    light, dark = (
        dict(re.findall(r"--(ink|quiet|paper|soft): (#\w{6})", part)) for part in written.split("@media")[:2]
    )
    for scheme in (light, dark):
        for text in ("ink", "quiet"):
            for ground in ("paper", "soft"):
                assert contrast(scheme[text], scheme[ground]) >= 4.5
    assert light["paper"] == PAPER and dark["paper"] == DARK[PAPER]
    for text in (INK, QUIET):
        assert contrast(text, PAPER) >= 4.5 and contrast(DARK[text], DARK[PAPER]) >= 4.5


def test_pictures_follow_the_pages_color_scheme_and_have_no_background(written):
    pictures = "".join(re.findall(r"<svg.*?</svg>", written, re.DOTALL))
    for color in DARK:
        assert color not in pictures and f"--c{color[1:]}: {color};" in written
        assert f"--c{color[1:]}: {DARK[color]};" in written
    assert f"var(--c{INK[1:]})" in pictures and "DejaVu" not in pictures


def test_markdown_and_html_say_the_same(full, tmp_path, undrawn):
    page = report_page.page(full, {}, tmp_path)
    inside = " ".join("".join(Elements(page_blocks.html(page)).words).split())
    beside = html.unescape(page_blocks.markdown(page).replace("<br>", "\n"))
    beside = " ".join(re.sub(r"[|>*]|!\[.*?\]\(.*?\)", " ", beside).split())
    for block in page.blocks:
        match block:
            case Points(lines):
                texts = lines
            case Terms(entries):
                texts = [meaning for _, meaning in entries]
            case Picture(_, conclusion):
                texts = [conclusion]
            case Paragraph(text):
                texts = [text]
            case Quotes(_, _, note):
                texts = [note]
            case _:
                texts = []
        for text in texts:
            flat = " ".join(re.sub(r"[|>*]", " ", text).split())
            assert flat in beside
            assert " ".join(text.split()) in inside


def test_there_is_a_sentence_under_each_picture(full, tmp_path, undrawn):
    page = report_page.page(full, {}, tmp_path)
    shown = [block for block in page.blocks if isinstance(block, Picture)]
    assert len(shown) == len(plots.PICTURES) - 1  # no curves were given
    assert all(len(block.conclusion) > 40 and block.conclusion.endswith(".") for block in shown)


def test_a_term_is_explained_once_right_below_its_first_appearance():
    blocks = [Paragraph("The KL is small."), Paragraph("A loss, and KL again."), Quotes(["prompt"], [["a margin"]], "")]
    [first, kl, second, loss, quotes] = page_blocks.explained(Page("x", blocks)).blocks
    assert [term for term, _ in kl.entries] == ["KL", "sft", "base"], "what explains it is explained too"
    assert (first, second, quotes) == tuple(blocks) and [term for term, _ in loss.entries] == ["loss"]


def test_quoted_text_is_neither_a_term_nor_markup_in_markdown():
    wicked = "[x](javascript:y) `a` | **b** <i>\nKL"
    text = page_blocks.markdown(Page("a *b*", [Quotes(["prompt", "sft"], [[wicked, wicked]], "n")]))
    assert "](" not in text and "`" not in text and "**" not in text and "<i>" not in text
    row = next(line for line in text.splitlines() if "javascript" in line)
    assert row.count("|") == 3 and "<br>" in row
    assert "](" in html.unescape(text) and "# a &#42;b&#42;" in text


def test_a_report_without_its_page_is_not_whole(tmp_path):
    for name in ("report.json", "report.md"):
        (tmp_path / name).write_text("")
        assert not output.is_whole(tmp_path)
    (tmp_path / "report.html").write_text("")
    assert output.is_whole(tmp_path)
