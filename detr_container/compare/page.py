"""The report as one HTML page that needs no network, with the same content as Markdown, CSV and JSON beside it."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from detr_container.base.files import atomic_write, write_json

from .document import Document, Table, file_name
from .svg import standalone

PAGE = "index.html"
LONG = 16
"""Letters of a name that may be broken."""


def html(document: Document) -> str:
    """The page. Everything that comes from runs (names of folders and classes, messages) is escaped."""
    environment = Environment(
        loader=PackageLoader("detr_container.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "prose": _prose}
    return environment.get_template("page.html").render(document=document, inline=_inline, words=_words)


def write(document: Document, folder: Path) -> Path:
    """Write all forms into a folder; returns the page's path."""
    for table in document.tables():
        _text(folder / "tables" / f"{table.name}.csv", table.csv())
    for figure in document.figures():
        content = standalone(figure.content).encode() if isinstance(figure.content, str) else figure.content
        _bytes(folder / "figures" / file_name(figure), content)
    _text(folder / "report.md", document.markdown())
    write_json(folder / "report.json", document.as_data())
    # Last, so that who finds the page finds the rest.
    return _text(folder / PAGE, html(document))


def _text(path: Path, text: str) -> Path:
    return _bytes(path, text.encode())


def _bytes(path: Path, content: bytes) -> Path:
    return atomic_write(path, lambda file: file.write(content), len(content))


def _inline(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def _breakable(text: str) -> Markup:
    """Text whose long names may be broken where they have joints, rather than anywhere, and "top-1" nowhere."""
    words = re.split(rf"(\S{{{LONG},}}|\b[^\W\d_]{{1,6}}-\d{{1,2}}\b)", text)
    return Markup("").join(_word(word) if place % 2 else escape(word) for place, word in enumerate(words))


def _word(word: str) -> Markup:
    if len(word) < LONG:
        return Markup('<span class="whole">{}</span>').format(word)
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_/=,])(?=\w)", word)))


def _prose(text: str) -> Markup:
    """A sentence, with what stands between backticks as code."""
    parts = text.split("`")
    if not len(parts) % 2:
        return _breakable(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if place % 2 else _breakable(part) for place, part in enumerate(parts))


def _words(table: Table) -> set[int]:
    """The columns that hold words, which are set from the left."""
    columns = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    return {
        place
        for place, column in enumerate(columns)
        if any(value is not None for value in column) and all(isinstance(value, str | bool | None) for value in column)
    }
