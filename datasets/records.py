"""Records of a JSON file as checked columns: lists of objects in, NumPy arrays and problems out.

NumPy checks a column of numbers at once; only a column that fails is checked value by value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning", "note"]
Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set; the message names the file and the record."""

    severity: Severity
    kind: str
    message: str


@dataclass
class Findings:
    """The problems of one file, as they are found."""

    file: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, kind: str, message: str) -> None:
        """Note a problem; the file's name is put before the message."""
        self.problems.append(Problem(severity, kind, f"{self.file}: {message}"))


def section(raw: dict[Any, Any], key: str, findings: Findings) -> list[Record]:
    """Return the objects of one list of the file; what is not an object is a problem and left out."""
    if key not in raw:
        remedy = " (COCO's image_info files have none: use an instances file)" if key == "annotations" else ""
        findings.add("error", "section", f"'{key}' is missing; it must be a list of records{remedy}")
        return []
    records = raw[key]
    if not isinstance(records, list):
        findings.add("error", "section", f"'{key}' is a {type(records).__name__}; it must be a list of records")
        return []
    if not records and key != "annotations":
        findings.add("error", "section", f"'{key}' is empty; at least one record is needed")
    if set(map(type, records)) <= {dict}:
        return records
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            findings.add("error", "record", f"'{key}' record {index} is {show(record)}; it must be an object")
    return [record for record in records if isinstance(record, dict)]


def show(value: object) -> str:
    """Quote a value of the file in a message, cut to a length that can be read."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def integer_column(values: list[Any], kinds: set[type]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the values as int64, and which of them are whole numbers of one of these types; the others read 0."""
    if set(map(type, values)) <= kinds:
        try:
            return np.array(values, dtype=np.int64), np.ones(len(values), dtype=bool)
        except OverflowError:
            pass
    good = np.array([type(value) in kinds and -(2**63) <= value < 2**63 for value in values], dtype=bool)
    return np.array([value if ok else 0 for value, ok in zip(values, good, strict=True)], dtype=np.int64), good


def number_column(values: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the values as float64, and which of them are numbers (finite or not); the others read NaN."""
    if set(map(type, values)) <= {int, float}:
        try:
            return np.array(values, dtype=np.float64), np.ones(len(values), dtype=bool)
        except OverflowError:
            pass
    good = np.array([type(v) is float or (type(v) is int and abs(v) < 2**1023) for v in values], dtype=bool)
    read = [float(v) if ok else np.nan for v, ok in zip(values, good, strict=True)]
    return np.array(read, dtype=np.float64), good


def unique_ids(records: list[Record], kind: str, findings: Findings) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read every record's id, and whether it is a whole number that no earlier record has."""
    values = [record.get("id") for record in records]
    ids, good = integer_column(values, {int})
    for index in np.flatnonzero(~good):
        findings.add("error", f"{kind}-id", f"{kind} record {index}: id {show(values[index])} is not a whole number")
    rows = np.flatnonzero(good)
    first = np.zeros(len(ids), dtype=bool)
    first[rows[np.unique(ids[rows], return_index=True)[1]]] = True
    for index in np.flatnonzero(good & ~first):
        findings.add(
            "error", f"duplicate-{kind}-id", f"{kind} {ids[index]}: this id appears more than once (record {index})"
        )
    return ids, first


def box_column(values: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return boxes as [A, 4], and which of them are four finite numbers; the others read 0."""
    shaped = [type(value) is list and len(value) == 4 for value in values]
    flat = chain.from_iterable(
        value if ok else (None, None, None, None) for value, ok in zip(values, shaped, strict=True)
    )
    boxes = number_column(list(flat))[0].reshape(-1, 4)
    good = np.asarray(np.isfinite(boxes).all(axis=1))
    return np.where(good[:, None], boxes, 0.0), good


def positions(ids: NDArray[np.int64], known: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find where each id stands in the sorted known ids, and whether it stands there at all."""
    if not len(known):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1).astype(np.int64)
    return place, known[place] == ids
