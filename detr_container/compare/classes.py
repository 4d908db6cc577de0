"""Which classes gain and lose between two arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import drawings
from .compared import R
from .document import Column, Section, Table, Value, span
from .intervals import holm, of_difference
from .ranking import NO_PAIR, Pair, limited

MOST_CLASSES = 5


def classes(
    pairs: Sequence[Pair[R]],
    names: Sequence[str],
    counts: NDArray[np.int64],
    unit: str,
    title: str,
    anchor: str = "classes",
    heading: str = "By class",
) -> Section:
    """For each pair under one head, the classes that gain and lose most.

    names, counts: of each class, its name and how many of what (`unit`) the validation set has; title: of the metric;
    anchor: of the section, and what its tables are named after.
    """
    within = [pair for pair in pairs if pair.a.head == pair.b.head] or list(pairs)
    tables = list(_tables(within, names, counts, unit, anchor))
    figures = [
        drawings.class_differences(table, pair, title) for table, pair in zip(tables, within, strict=True) if table.rows
    ]
    text = [
        f"{title[:1].upper()}{title[1:]} by class with 95 % intervals of the difference. Among many classes some "
        "differ by chance alone; the last column names those that do not, considering all classes of the pair (Holm)."
    ]
    return Section(anchor, heading, text if tables else [NO_PAIR], tables=tables, figures=figures)


def _tables(
    pairs: Sequence[Pair[R]], names: Sequence[str], counts: NDArray[np.int64], unit: str, anchor: str
) -> Iterator[Table]:
    """For each pair: the classes that gain and those that lose most."""
    present = np.flatnonzero(counts).tolist()
    for number, pair in enumerate(pairs, start=1):
        found = {k: of_difference(pair.a.class_sample(k), pair.b.class_sample(k)) for k in present}
        real = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
        order = sorted(present, key=lambda k: -found[k].value)
        shown = order if len(order) <= 2 * MOST_CLASSES else [*order[:MOST_CLASSES], *order[-MOST_CLASSES:]]
        columns = [
            Column("class"),
            Column(unit, "d"),
            *map(Column, pair.sides),
            Column("difference", signed=True),
            Column("real among all classes"),
        ]
        rows: list[list[Value]] = []
        for k in shown:
            means = [100 * arm.class_sample(k).mean for arm in (pair.a, pair.b)]
            rows.append([names[k], int(counts[k]), *means, span(found[k]), real[k]])
        caption = f"{pair.name}: {'all' if shown is order else 'the most gaining and losing of'} {len(order)} classes"
        caption += limited([pair])
        yield Table(f"{anchor}-{number}", caption, columns, rows)
