"""Drawings as SVG that take the page's colours: legible in light and dark, on a phone, in print, without colour.

Series are distinguished three times: by colour, by marker, and by the way the line is broken (or the bar hatched).
Text is text, so that it can be searched and scaled: a drawing is laid out with letters that a phone can show, and where
it is shown larger the page sets them smaller, in the same places.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .document import Figure as Drawing

SERIES = ("#0348c1", "#e06407", "#009558", "#c66ea9", "#4c3d0c", "#097ef0", "#5b5b5b", "#cc3000")
"""On light paper; the page's style sheet has their twins for dark. More than eight series begin again.

Hues near those of Okabe and Ito (2008), moved until they stay apart in all of Machado's simulations (2009).
"""
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 3)))
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++", "||||")
INK, PAPER, _FAINT = "#101112", "#fcfdfe", "#c0c1c2"
"""Stand for the colours of the page's text and ground in a drawing."""
LETTERS = 12
"""Pixels of all text, at the drawing's natural size."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # A name with two dollar signs is a name.
    "text.parse_math": False,
    "font.size": LETTERS,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": LETTERS,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": LETTERS,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "hatch.linewidth": 0.8,
}
WIDTH, HEIGHT = 4.5, 3.1
"""Inches of 72 SVG pixels: a drawing fills a phone at its natural size, and two stand side by side on a desk."""
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_LINE = 1.2 * LETTERS / 72
"""Inches of a line of text."""
_LETTER = 0.57 * LETTERS / 72
"""Inches of a letter, as DejaVu Sans, the widest of the page's fonts, has them on average."""

BESIDE = 16
"""Letters of the longest name that stands beside what it names."""


def colour(index: int) -> str:
    """The colour of a series."""
    return SERIES[index % len(SERIES)]


def series_style(index: int, line: bool = True, filled: bool = True) -> dict[str, Any]:
    """How a series is drawn, as keyword arguments of `plot`; filled: its markers."""
    return {
        "color": colour(index),
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": colour(index) if filled else PAPER,
        "linestyle": DASHES[index % len(DASHES)] if line else "none",
    }


def hatch(index: int) -> dict[str, Any]:
    """How the bars of a series are drawn, as keyword arguments of `barh`."""
    pattern = HATCHES[index % len(HATCHES)]
    return {"facecolor": PAPER if pattern else colour(index), "edgecolor": colour(index), "hatch": pattern}


@contextmanager
def canvas(name: str, width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure with one pair of axes, in the page's style; `finish` makes a drawing of it."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def finish(figure: Figure, name: str, caption: str, alt: str) -> Drawing:
    """The drawing as SVG to be put into a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's fonts show the text; matplotlib's own need not have its letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(name, caption, alt, _adapted(file.getvalue(), name, alt))


def legend(figure: Figure, axes: Axes) -> None:
    """Names of the series above the drawing, where they hide nothing; the paper grows by as much as they need."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    lines = [wrapped(label, width - 0.5) for label in labels]
    widest = max((len(part) for line in lines for part in line.split("\n")), default=1)
    columns = max(1, min(len(lines), int(width / (0.55 + _LETTER * widest))))
    rows = -(-len(lines) // columns)
    # Columns are filled one after the other, so that a row is as high as the highest of every `rows`-th.
    count = sum(max(line.count("\n") + 1 for line in lines[row::rows]) for row in range(rows))
    figure.set_size_inches(width, height + count * _LINE + 0.06 * rows)
    figure.legend(
        handles, lines, loc="outside upper left", ncols=columns, borderaxespad=0, handlelength=2.2, columnspacing=1.2
    )


def wrapped(text: str, width: float) -> str:
    """Text in lines of so many inches."""
    most, lines = max(8, int(width / _LETTER)), [""]
    # Long names are broken where they have joints, and anywhere only when they have none.
    for word in re.findall(r"\s*[^\s_/=,]*[_/=,]?", text):
        if len(lines[-1] + word) > most and lines[-1]:
            lines.append("")
        lines[-1] += word if lines[-1] else word.lstrip()
        while len(lines[-1]) > most:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return "\n".join(lines)


def horizontal_intervals(axes: Axes, rows: Sequence[tuple[str, float, float, float, bool]]) -> float:
    """Values with their intervals, one below the other, each beside its name; returns inches of height.

    rows: name, value, its interval (NaN where there is none) and whether to fill its mark. Names that leave no room for
    the intervals beside them are written above, each on a strip that no line crosses.
    """
    beside = all(len(row[0]) <= BESIDE for row in rows)
    top, places = 0.0, []
    for name, value, low, high, filled in rows:
        if not beside:
            text = wrapped(name, WIDTH - 0.15)
            height = _LINE * (text.count("\n") + 1)
            top -= height
            across = axes.get_yaxis_transform()
            strip = Rectangle((0, top), 1, height, transform=across, facecolor=PAPER, edgecolor="none", zorder=2.5)
            axes.add_patch(strip)
            axes.text(0, top, text, transform=across, va="bottom", zorder=2.6)
        places.append(top - (0.14 if beside else 0.1))
        if not math.isnan(low):
            axes.plot([low, high], 2 * places[-1:], color=colour(0), linewidth=2, marker="|", markersize=7)
        axes.plot([value], places[-1:], **series_style(0, line=False, filled=filled), markersize=7, zorder=3)
        top -= 0.28
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_ylim(top, 0)
    axes.set_yticks(*((places, [row[0] for row in rows]) if beside else ([],)))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return -top


def empty(axes: Axes, words: str) -> None:
    """Say in an empty drawing why it is empty."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
    axes.set_xticks([])
    axes.set_yticks([])


def _adapted(text: str, name: str, alt: str) -> str:
    """Make of a file a part of a page: its colours and font those of the page, and its name the alternative text."""
    body = text[text.index("<svg") :]
    # Comments hold the drawing's texts once more.
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None, "matplotlib writes a viewBox"
    width, height = box[1].split()[2:]
    start = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    start += f'viewBox="{box[1]}" width="{width}" height="{height}" font-family="{_FONTS}"'
    label = html.escape(alt)
    start += f' role="img" aria-label="{label}"><title>{label}</title>'
    body = start + body[body.index(">") + 1 :]
    # Groups are named alike in every drawing of a page, and nothing refers to them.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    # A hatch's ground and strokes are attributes.
    body = re.sub(r'\b(fill|stroke)="(#\w+)"', r'style="\1: \2"', body)
    return re.sub(r'style="[^"]*"', lambda found: _style(found[0]), body).strip()


def _style(text: str) -> str:
    """A style attribute with the page's font, its size of letters and its colours."""
    # One declaration or two, as matplotlib's version has it.
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font-size: ([\d.]+px)", r"font-size: var(--letters, \1)", text)
    for stand_in, what in ((INK, "ink"), (PAPER, "paper"), (_FAINT, "grid")):
        text = text.replace(stand_in, f"var(--{what}, {stand_in})")
    for number, value in enumerate(SERIES):
        text = text.replace(value, f"var(--s{number}, {value})")
    return text


def standalone(svg: str) -> str:
    """A drawing as a file of its own, on white: not every program that shows SVG knows a style sheet's variables."""
    plain = re.sub(r"var\(--[\w-]+, ([^()]*)\)", r"\1", svg)
    return plain.replace("<svg ", '<svg style="background: #fff" ', 1)


def listed(words: Sequence[str]) -> str:
    """Words for a sentence."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)
