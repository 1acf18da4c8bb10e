"""Pictures as panels, so narrow that a phone shows them legibly and a page can stack them."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from components.evaluation.report.plot_style import DARK

WIDTH, DPI = 4.2, 144  # inches of a panel: nearly what a phone is wide, in CSS pixels
_UNUSED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")
_FONTS = re.compile(r"(font-family: |font: (?:\w+ )*[\d.]+px )[^;\"]*")  # from 3.10 on, and before
_REFERENCE = re.compile(r"(url\(|href=\")#([\w.-]+)")


class Panel(NamedTuple):
    """A part of a picture. draw: draws it into an empty figure of WIDTH × height inches; alt: what it shows, in words,
    with the figures."""

    draw: Callable[[Figure], None]
    alt: str
    height: float


def save(panel: Panel, file: Path) -> str:
    """Writes a panel as a PNG, and returns it as an <svg> element for a page of HTML.

    The element has no background and its text is text, in the page's font. Colors that plot_style.DARK replaces are
    CSS variables (--c and the hex digits). Its ids begin with the file's stem, for a page holds several.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": file.stem}):
        figure = Figure(figsize=(WIDTH, panel.height))
        panel.draw(figure)
        ConstrainedLayoutEngine().execute(figure)  # once: as the figure's own it would run at every drawing, four times
        figure.savefig(file, dpi=DPI, facecolor="white", metadata={"Software": None})
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), file.stem)


def _inline(svg: str, name: str) -> str:
    svg = _UNUSED.sub("", svg).strip()
    svg = _COLOUR.sub(lambda found: f"var(--c{found[0][1:]})" if found[0] in DARK else found[0], svg)
    svg = _FONTS.sub(r"\1var(--font)", svg)
    used = {found[2] for found in _REFERENCE.finditer(svg)}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return _REFERENCE.sub(rf"\1#{name}-\2", svg)
