"""The report as one HTML page that needs no network, with the same content as Markdown, CSV and JSON beside it."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from detr_container.files import atomic_write, write_json

from .document import Document, Table, file_name

PAGE = "index.html"


def html(document: Document) -> str:
    """The page. Everything that comes from runs (names of folders and classes, messages) is escaped."""
    environment = Environment(
        loader=PackageLoader("detr_container.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(document=document, inline=_inline, words=_words)


def write(document: Document, folder: Path) -> Path:
    """Write all forms into a folder; returns the page's path."""
    for table in document.tables():
        _text(folder / "tables" / f"{table.name}.csv", table.csv())
    for figure in document.figures():
        content = figure.content.encode() if isinstance(figure.content, str) else figure.content
        _bytes(folder / "figures" / file_name(figure), content)
    _text(folder / "report.md", document.markdown())
    write_json(folder / "report.json", document.as_data())
    # Last, so that who finds the page finds the rest.
    return _text(folder / PAGE, html(document))


def _text(path: Path, text: str) -> Path:
    return _bytes(path, text.encode())


def _bytes(path: Path, content: bytes) -> Path:
    return atomic_write(path, lambda file: file.write(content), len(content))


def _inline(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def _words(table: Table) -> set[int]:
    """The columns that hold words, which are set from the left."""
    columns = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    return {
        place
        for place, column in enumerate(columns)
        if any(column) and all(isinstance(value, str | bool | None) for value in column)
    }
