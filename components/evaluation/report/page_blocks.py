"""A page as a list of blocks, written as Markdown and as a single self-contained HTML file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from components.evaluation.report.card import Table
from components.evaluation.report.plot_style import DARK
from components.evaluation.report.terms import Glossary

_MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "\\`*_<>&|#~"} | {ord("\r"): None}
INDENT = "  "  # a label that starts with it belongs to the row above


class Heading(NamedTuple):
    """The title of a section."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Points(NamedTuple):
    """A list."""

    lines: list[str]


class Drawing(NamedTuple):
    """A panel of a picture: its file next to the page, the same as an <svg> element, and what it shows in words."""

    file: str
    svg: str
    alt: str


class Picture(NamedTuple):
    """Panels, and the sentences that say what to conclude from them."""

    panels: list[Drawing]
    conclusion: str


class Quotes(NamedTuple):
    """A table of prompts and answers, whose words are not explained as terms."""

    columns: list[str]
    rows: list[list[str]]
    note: str


class Terms(NamedTuple):
    """Words and what they mean."""

    entries: list[tuple[str, str]]


Block = Heading | Text | Points | Picture | Quotes | Terms | Table


class Page(NamedTuple):
    """A title and what stands below it, in order."""

    title: str
    blocks: Sequence[Block]


def explained(page: Page) -> Page:
    """The page with every term explained right below the block in which it first appears."""

    def blocks() -> Iterator[Block]:
        glossary = Glossary()
        for block in page.blocks:
            yield block
            entries = glossary.explain(_words(block))
            if entries:
                yield Terms(entries)

    return Page(page.title, list(blocks()))


def _words(block: Block) -> str:
    match block:
        case Heading(text) | Text(text):
            return text
        case Points(lines):
            return " ".join(lines)
        case Picture(panels, conclusion):
            return " ".join([*(panel.alt for panel in panels), conclusion])
        case Quotes(columns, _, note):
            return " ".join([*columns, note])
        case Table(title, columns, rows, note):
            return " ".join([title, *columns, *(row[0] for row in rows), note])
        case _:
            return ""


def markdown(page: Page) -> str:
    """The page as Markdown, with pictures referenced as files."""
    return "\n\n".join([f"# {_literal(page.title)}", *map(block_as_markdown, page.blocks)]) + "\n"


def block_as_markdown(block: Block) -> str:
    """A block as Markdown, in which text has no effect as markup."""
    match block:
        case Heading(text):
            return f"## {_literal(text)}"
        case Text(text):
            return _literal(text)
        case Points(lines):
            return "\n".join(f"- {_literal(line)}" for line in lines)
        case Picture(panels, conclusion):
            shown = "\n".join(f"![{_literal(panel.alt)}]({panel.file})" for panel in panels)
            return f"{shown}\n\n{_literal(conclusion)}"
        case Terms(entries):
            return "\n".join(f"> - **{_literal(term)}**: {_literal(meaning)}" for term, meaning in entries)
        case Quotes(columns, rows, note):
            return f"{_table(columns, rows, '---')}\n\n{_literal(note)}"
        case Table(title, columns, rows, note):
            table = f"## {_literal(title)}\n\n{_table(columns, rows, '---:')}"
            return f"{table}\n\n{_literal(note)}" if note else table


def _table(columns: list[str], rows: list[list[str]], alignment: str) -> str:
    lines = [[_cell(cell) for cell in line] for line in (columns, *rows)]
    lines.insert(1, ["---", *[alignment] * (len(columns) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return ("&emsp;" if text.startswith(INDENT) else "") + _literal(text.removeprefix(INDENT))


def _literal(text: str) -> str:
    """Text that Markdown renders exactly as it is, on one line."""
    shown = text.translate(_MARKDOWN).replace("](", "]&#40;").replace("][", "]&#91;")
    return shown.replace("\n", "<br>")


def html(page: Page) -> str:
    """The page as HTML with styles and pictures inlined: no other files, no scripts, no network access."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    blocks = [(type(block).__name__, block) for block in page.blocks]
    return environment.get_template("page.html").render(page=page, blocks=blocks, dark=DARK, indent=INDENT, svg=Markup)
