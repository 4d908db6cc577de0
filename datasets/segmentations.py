"""Segmentations of annotation files: checked, and kept as a few arrays however many objects there are.

The polygons of COCO's train2017 have about 40 million numbers: a third of a gigabyte as arrays, which loader processes
share, and four times as much as Python's objects, of which each would get its own. Numbers have 64 bits, since
pycocotools rounds them: what 32 bits leave of 0.7 falls on the other side.

Sizes: A objects, N polygons, P points.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Findings, Record, Severity, integer_column, show
from .run_length_codes import sound
from .run_lengths import RunLength, RunLengths

KIND = "segmentation"
"""The kind of problems that are found here."""
LARGEST_IMAGE = 2**31 - 1
"""Pixels: pycocotools counts no further."""
NAMED = 5
"""Objects without a segmentation that a message names."""


class Outline(NamedTuple):
    """The polygons of one object as they are parsed: x and y in turn, and how many numbers each polygon has."""

    numbers: array[float]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Segmentations:
    """What outlines each of A objects: polygons, or a run-length code, or nothing.

    points: [P, 2] float64 (x, y) in pixels of the file; point_starts: [N + 1], polygon k has the points
    point_starts[k]:point_starts[k + 1]; polygon_starts: [A + 1], likewise of objects; code_rows: [A], which of the
    codes is the object's, or -1.
    """

    points: NDArray[np.float64]
    point_starts: NDArray[np.int64]
    polygon_starts: NDArray[np.int64]
    codes: RunLengths
    code_rows: NDArray[np.int64]

    @classmethod
    def read(
        cls,
        values: Sequence[Any],
        ids: NDArray[np.int64],
        sizes: NDArray[np.int64],
        crowd: NDArray[np.bool_],
        empty: NDArray[np.bool_],
        findings: Findings,
    ) -> Segmentations:
        """Those of objects [A]; an error for each that cannot be used, and one for all that are missing.

        values: as the file has them, or as `pack` leaves them; sizes: [A, 2] (height, width) of their images; crowd and
        empty, whose boxes have no area: these need none, since nothing is learnt from them.
        """
        found, faults = cls.checked(values, sizes)
        for row, fault in sorted(faults.items()):
            severity: Severity = "warning" if empty[row] else "error"
            text = f"annotation {ids[row]}: segmentation {_shown(values[row])} {fault} (only Mask R-CNN needs it)"
            findings.add(severity, KIND, text)
        absent = ~found.present
        absent[list(faults)] = False
        missing = ids[absent & ~crowd & ~empty].tolist()
        if missing:
            some = ", ".join(map(str, missing[:NAMED])) + ", ..." * (len(missing) > NAMED)
            of = int(np.sum(~crowd & ~empty))
            text = (
                f"{len(missing)} of {of} object{'s' * (of != 1)} without a segmentation (annotation {some}): only Mask "
                "R-CNN needs them; add polygons or run-length codes, or train another head"
            )
            findings.add("error", KIND, text)
        return found

    @classmethod
    def checked(cls, values: Sequence[Any], sizes: NDArray[np.int64]) -> tuple[Segmentations, dict[int, str]]:
        """Those of objects in images of these sizes, [A, 2] (height, width), and why some cannot be used, by row.

        What cannot be used is left out.
        """
        packed = [_packed(value) for value in values]
        faults = _faults_of_form(packed, sizes)
        usable = [None if row in faults else value for row, value in enumerate(packed)]
        found = cls._of(usable, sizes)
        more = found._faults_of_values(sizes)
        if more:
            usable = [None if row in more else value for row, value in enumerate(usable)]
            found = cls._of(usable, sizes)
        return found, faults | more

    @classmethod
    def _of(cls, values: Sequence[Any], sizes: NDArray[np.int64]) -> Segmentations:
        """Those of values without faults of form."""
        outlines = [value for value in values if type(value) is Outline]
        numbers = np.frombuffer(b"".join(outline.numbers for outline in outlines), dtype=np.float64)
        lengths = np.array([*chain.from_iterable(outline.lengths for outline in outlines)], dtype=np.int64)
        polygons = np.array([len(value.lengths) if type(value) is Outline else 0 for value in values], dtype=np.int64)
        coded = np.array([type(value) is dict and bool(value) for value in values], dtype=bool)
        codes = [_code(values[row], *sizes[row].tolist()) for row in np.flatnonzero(coded).tolist()]
        rows = np.where(coded, np.cumsum(coded) - 1, -1)
        return cls(numbers.reshape(-1, 2), _starts(lengths // 2), _starts(polygons), RunLengths.of(codes), rows)

    def _faults_of_values(self, sizes: NDArray[np.int64]) -> dict[int, str]:
        """What is wrong with numbers and codes. sizes: [A, 2] (height, width)."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.polygon_starts))
        faults = {}
        if len(owner):
            low, high = (each.reduceat(self.points, self.point_starts[:-1]) for each in (np.minimum, np.maximum))
            finite = np.isfinite(low).all(axis=1) & np.isfinite(high).all(axis=1)
            reach = sizes[owner, ::-1]
            # Far outside, pycocotools takes memory for every pixel on the way.
            far = finite & ((low < -reach) | (high > 2 * reach)).any(axis=1)
            for polygon in np.flatnonzero(far):
                height, width = sizes[owner[polygon]]
                faults[int(owner[polygon])] = (
                    f"has a polygon that reaches from ({low[polygon, 0]:g}, {low[polygon, 1]:g}) to "
                    f"({high[polygon, 0]:g}, {high[polygon, 1]:g}), far outside its image of {width} x {height} pixels"
                )
            faults |= dict.fromkeys(owner[~finite].tolist(), "has a number that is not finite")
        broken = np.append(~sound(self.codes), False)[self.code_rows]
        for row in np.flatnonzero(broken):
            faults[int(row)] = f"is no run-length code of {sizes[row, 1]} x {sizes[row, 0]} pixels: it is damaged"
        return faults

    @property
    def present(self) -> NDArray[np.bool_]:
        """[A] which objects have any."""
        present: NDArray[np.bool_] = (np.diff(self.polygon_starts) > 0) | (self.code_rows >= 0)
        return present

    def __len__(self) -> int:
        return len(self.code_rows)

    def __iter__(self) -> Iterator[list[list[float]] | RunLength | None]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> list[list[float]] | RunLength | None:
        """One object's as pycocotools takes it."""
        polygons = self.polygons(row)
        return [polygon.ravel().tolist() for polygon in polygons] if polygons else self.code(row)

    def polygons(self, row: int) -> list[NDArray[np.float64]]:
        """The polygons of one object, each [points, 2]; none where it has a code or nothing."""
        first, last = self.polygon_starts[row], self.polygon_starts[row + 1]
        return np.split(self.points, self.point_starts[first : last + 1])[1:-1] if last > first else []

    def code(self, row: int) -> RunLength | None:
        """The run-length code of one object, if that is what it has."""
        place = int(self.code_rows[row])
        return None if place < 0 else self.codes[place]


def pack(record: Record) -> Record:
    """Put the polygons of a record that is being parsed into an array; what is none stays as it is."""
    if "segmentation" in record:
        record["segmentation"] = _packed(record["segmentation"])
    return record


def _packed(value: Any) -> Any:
    if type(value) is list and value:
        try:
            return Outline(array("d", chain.from_iterable(value)), tuple(map(len, value)))
        except (TypeError, OverflowError):
            return value
    return value


def _faults_of_form(values: Sequence[Any], sizes: NDArray[np.int64]) -> dict[int, str]:
    """What is wrong with each before its numbers are looked at, by row."""
    faults = {}
    large = sizes.astype(np.float64).prod(axis=1) > LARGEST_IMAGE
    for row, value in enumerate(values):
        if type(value) is Outline:
            fault = _fault_of_lengths(value.lengths)
        elif value is None or value in ([], {}):
            continue
        elif type(value) is dict:
            height, width = sizes[row].tolist()
            fault = _fault_of_code(value, height, width)
        else:
            fault = "is neither a list of polygons, each a list of numbers, nor a run-length code"
        if fault or large[row]:
            faults[row] = fault or f"is in an image of more than {LARGEST_IMAGE:,} pixels"
    return faults


def _fault_of_lengths(lengths: tuple[int, ...]) -> str:
    for length in lengths:
        if length < 6 or length % 2:
            return f"has a polygon of {length} numbers; it takes 6 or more, x and y in turn"
    return ""


def _fault_of_code(code: Record, height: int, width: int) -> str:
    """What is wrong with a run-length code of an image of this size, but for the text of a compressed one."""
    size, counts = code.get("size"), code.get("counts")
    if size != [height, width]:
        return f"has the size {show(size)}; its image has [{height}, {width}] (height, width)"
    if isinstance(counts, str | bytes):
        return "" if counts.isascii() else f"is no run-length code of {width} x {height} pixels: it is damaged"
    if not isinstance(counts, list):
        return f"has counts {show(counts)}; they are a list of whole numbers, or a text"
    runs, good = integer_column(counts, {int})
    if not good.all() or (runs < 0).any():
        return "has counts that are not whole numbers of 0 or above"
    # As floats they cannot overflow.
    if (total := runs.sum(dtype=np.float64)) != height * width:
        return f"has counts that add up to {total:.0f} pixels; its image has {width} x {height} = {width * height}"
    return ""


def _code(value: Record, height: int, width: int) -> RunLength:
    from pycocotools import mask

    counts = value["counts"]
    if isinstance(counts, list):
        compressed: RunLength = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return compressed
    return RunLength(size=[height, width], counts=counts.encode() if isinstance(counts, str) else counts)


def _shown(value: Any) -> str:
    if type(value) is not Outline:
        return show(value)
    ends = np.cumsum(value.lengths).tolist()
    return show([value.numbers[end - length : end].tolist() for end, length in zip(ends, value.lengths, strict=True)])


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
