"""Drawings as SVG that take the page's colours: legible in light and dark, on a phone, in print, without colour.

Series are told apart three times: by colour (Okabe and Ito's, darker or lighter with the page), by marker, and by the
way the line is broken. Text is text, so that it can be read aloud, searched and scaled.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .document import Figure as Drawing

SERIES = ("#0072b2", "#d55e00", "#00825f", "#b3478f", "#8a6d00", "#2a8fc4", "#5d5d5d", "#7a3e00")
"""On light paper; the page's style sheet has their lighter twins for dark. More than eight series begin again."""
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 3)))
_INK, _FAINT = "#101112", "#c0c1c2"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}
WIDTH, HEIGHT = 5.4, 3.5
"""Inches of 72 SVG pixels: a drawing fills a phone at its natural size, and two stand side by side on a desk."""


def colour(index: int) -> str:
    """The colour of a series."""
    return SERIES[index % len(SERIES)]


def look(index: int, line: bool = True) -> dict[str, Any]:
    """How a series is drawn, as keyword arguments of `plot`."""
    return {
        "color": colour(index),
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)] if line else "none",
    }


@contextmanager
def canvas(name: str, width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure with one pair of axes, in the page's style; `finish` makes a drawing of it."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def finish(figure: Figure, name: str, caption: str, alt: str, wide: bool = False) -> Drawing:
    """The drawing as SVG to be put into a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(name, caption, alt, _adapted(file.getvalue(), name, alt), wide)


def legend(figure: Figure, axes: Axes) -> None:
    """Names of the series above the drawing, where they hide nothing; the paper grows by as much as they need."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = max(1, min(len(labels), int(width * 13 / max(map(len, labels), default=1))))
    figure.set_size_inches(width, height + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9, borderaxespad=0)


def nothing(axes: Axes, words: str) -> None:
    """Say in an empty drawing why it is empty."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
    axes.set_xticks([])
    axes.set_yticks([])


def _adapted(text: str, name: str, alt: str) -> str:
    """Make of a file a part of a page: its colours and font those of the page, and its name the alternative text."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None, "matplotlib writes a viewBox"
    start = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}"'
    said = html.escape(alt)
    start += f' role="img" aria-label="{said}"><title>{said}</title>'
    body = start + body[body.index(">") + 1 :]
    # Groups are named alike in every drawing of a page, and nothing refers to them.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = body.replace(_INK, "currentColor").replace(_FAINT, f"var(--grid, {_FAINT})")
    for number, value in enumerate(SERIES):
        body = body.replace(value, f"var(--s{number}, {value})")
    return body.strip()


def listed(words: Sequence[str]) -> str:
    """Words for a sentence."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)
