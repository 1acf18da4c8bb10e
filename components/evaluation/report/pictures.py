"""Pictures as panels, narrow enough to be legible on a phone and to stack on a page."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from components.evaluation.report.plot_style import DARK

WIDTH, DPI = 4.2, 144  # inches per panel: about the width of a phone, in CSS pixels
_UNUSED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_COLOR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")
_FONTS = re.compile(r"(font-family: |font: (?:\w+ )*[\d.]+px )[^;\"]*")  # from 3.10 on, and before
_REFERENCE = re.compile(r"(url\(|href=\")#([\w.-]+)")


class Panel(NamedTuple):
    """A part of a picture. draw: draws it into an empty figure of WIDTH × height inches; alt: what it shows, in words
    and numbers."""

    draw: Callable[[Figure], None]
    alt: str
    height: float


def save(panel: Panel, file: Path) -> str:
    """Writes a panel as a PNG and returns it as an <svg> element for an HTML page.

    The element has no background, and its text stays text, in the page's font. Colors that plot_style.DARK replaces
    are CSS variables (--c and the hex digits). Its ids start with the file's stem, since a page has several panels.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": file.stem}):
        figure = Figure(figsize=(WIDTH, panel.height))
        panel.draw(figure)
        ConstrainedLayoutEngine().execute(figure)  # once; as the figure's engine it would run four times
        figure.savefig(file, dpi=DPI, facecolor="white", metadata={"Software": None})
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), file.stem)


def _inline(svg: str, name: str) -> str:
    svg = _UNUSED.sub("", svg).strip()
    svg = _COLOR.sub(lambda match: f"var(--c{match[0][1:]})" if match[0] in DARK else match[0], svg)
    svg = _FONTS.sub(r"\1var(--font)", svg)
    used = {match[2] for match in _REFERENCE.finditer(svg)}
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    return _REFERENCE.sub(rf"\1#{name}-\2", svg)
