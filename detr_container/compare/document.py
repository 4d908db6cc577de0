"""A report's content apart from its form: sections of sentences, tables and figures, and their plain-text forms."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .intervals import Interval, Sample


@dataclass(frozen=True)
class Spread:
    """A metric over seeds: its mean, the sample standard deviation (None of one seed), and of how many."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Range:
    """A metric with its interval."""

    value: float
    low: float
    high: float


UNKNOWN = "\N{EN DASH}"
Value = str | float | int | bool | Spread | Range | None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


@dataclass(frozen=True)
class Column:
    """One column. form: how its numbers are written; signed: with their sign; published: not of these runs.

    least: what is below is written as such ("<0.001"), since it is not nothing.
    """

    title: str
    form: str = ".1f"
    signed: bool = False
    published: bool = False
    least: float = 0.0

    def text(self, value: Value) -> str:
        """A value as a reader sees it; what is not known is a dash."""
        central = value.mean if isinstance(value, Spread) else value.value if isinstance(value, Range) else value
        if value is None or _is_nan(central):
            return UNKNOWN
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str):
            return value
        if isinstance(value, Spread):
            if 0 <= value.mean < self.least:
                return self._number(value.mean)
            deviation = "" if value.deviation is None else f" ± {value.deviation:{self.form}}"
            return self._number(value.mean) + deviation
        if isinstance(value, Range):
            if math.isnan(value.low):
                return f"{self._number(value.value)} [?]"
            return f"{self._number(value.value)} [{self._number(value.low)}, {self._number(value.high)}]"
        return self._number(value)

    def _number(self, value: float) -> str:
        if 0 <= value < self.least:
            return f"<{self.least:g}"
        return format(value, ("+" if self.signed else "") + self.form).replace("-", "\N{MINUS SIGN}")

    @property
    def key(self) -> str:
        """Its name where there are no headings: what others published is never taken for ours."""
        return f"published {self.title}" if self.published and self.title != "source" else self.title

    def plain(self, value: Value) -> dict[str, Any]:
        """A value as data: one or more entries by column name, numbers not rounded; None is what is not known."""
        if isinstance(value, Spread):
            parts: dict[str, Any] = {"": value.mean, " sd": value.deviation, " seeds": value.seeds}
        elif isinstance(value, Range):
            parts = {"": value.value, " low": value.low, " high": value.high}
        else:
            parts = {"": value}
        return {self.key + part: None if _is_nan(entry) else entry for part, entry in parts.items()}


@dataclass(frozen=True)
class Table:
    """name: its file's; rows: as many values each as there are columns, the first of which names the row."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]

    def as_data(self) -> list[dict[str, Any]]:
        """Rows as data."""
        found = []
        for row in self.rows:
            entries: dict[str, Any] = {}
            for column, value in zip(self.columns, row, strict=True):
                entries |= column.plain(value)
            found.append(entries)
        return found

    def texts(self) -> list[list[str]]:
        """Rows as a reader sees them."""
        return [[column.text(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def csv(self) -> str:
        """Comma-separated values, numbers not rounded."""
        rows = self.as_data()
        names = list(dict.fromkeys(name for row in rows for name in row)) or [c.key for c in self.columns]
        file = io.StringIO()
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def markdown(self) -> str:
        """A Markdown table under its caption."""
        heads = [column.title + (" (published)" if column.published else "") for column in self.columns]
        marks = [":---", *["---:"] * (len(heads) - 1)]
        lines = [heads, marks, *self.texts()]
        escaped = [[_marked_down(cell).replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join([f"*{_marked_down(self.caption)}*", "", *(f"| {' | '.join(line)} |" for line in escaped), ""])


@dataclass(frozen=True)
class Figure:
    """A drawing. content: SVG text, or the bytes of a JPEG; alt: what it shows, for who cannot see it.

    panels: the parts of a row of images, each with its title, to be set as the reader's screen allows.
    """

    name: str
    caption: str
    alt: str
    content: str | bytes
    wide: bool = False
    panels: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True)
class Section:
    """Sentences first, then warnings, tables and figures."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    code: str = ""


@dataclass(frozen=True)
class Document:
    """A whole report. data: metrics that no table holds, for report.json."""

    title: str
    summary: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    data: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """All tables in order."""
        return [table for section in self.sections for table in section.tables]

    def figures(self) -> list[Figure]:
        """All figures in order."""
        return [figure for section in self.sections for figure in section.figures]

    def markdown(self) -> str:
        """The report as Markdown; figures are links to files in `figures/`."""
        parts = [f"# {_marked_down(self.title)}", "", *(f"{_marked_down(line)}\n" for line in self.summary)]
        parts += [f"- **Warning:** {_marked_down(warning)}" for warning in self.warnings]
        for section in self.sections:
            parts += ["", f"## {section.title}", ""]
            parts += [f"{_marked_down(line)}\n" for line in section.text]
            parts += [f"- **Warning:** {_marked_down(warning)}" for warning in section.warnings]
            parts += [table.markdown() for table in section.tables]
            parts += [f"![{_marked_down(figure.alt)}](figures/{file_name(figure)})\n" for figure in section.figures]
            if section.code:
                parts += ["```sh", section.code, "```"]
        return "\n".join(parts) + "\n"

    def as_data(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "title": self.title,
            "summary": list(self.summary),
            "warnings": list(self.warnings),
            "sections": [
                {
                    "title": section.title,
                    "text": list(section.text),
                    "warnings": list(section.warnings),
                    "tables": {table.name: table.as_data() for table in section.tables},
                    "figures": {figure.name: figure.alt for figure in section.figures},
                    "code": section.code,
                }
                for section in self.sections
            ],
            **self.data,
        }


def _marked_down(text: str) -> str:
    """Text for Markdown, in which names of folders and classes must not become tags or end a line."""
    return " ".join(text.split()).replace("<", "&lt;")


def file_name(figure: Figure) -> str:
    """The name of a figure's own file."""
    return figure.name + (".svg" if isinstance(figure.content, str) else ".jpg")


def spread(sample: Sample, scale: float = 100.0) -> Spread:
    """A sample as tables show it: AP in per cent."""
    deviation = sample.deviation
    return Spread(scale * sample.mean, None if deviation is None else scale * deviation, len(sample.plain))


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Of those values over seeds that are known; None of none."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    return Spread(float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None, len(known))


def span(interval: Interval, scale: float = 100.0) -> Range:
    """An interval as tables show it: AP in per cent."""
    return Range(scale * interval.value, scale * interval.low, scale * interval.high)
