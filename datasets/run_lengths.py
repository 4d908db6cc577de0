"""Masks as COCO keeps them: compressed run-length codes, a row for each, in two arrays however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray


class RunLength(TypedDict):
    """One mask as pycocotools takes it: size is [height, width], counts its compressed code."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class RunLengths:
    """Masks of n objects or detections. sizes: [n, 2] (height, width) in pixels; lengths: [n] bytes; code: all of them.

    code: uint8, one code after the other, in order.
    """

    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    code: NDArray[np.uint8]

    @classmethod
    def of(cls, masks: Sequence[RunLength]) -> Self:
        """The same of pycocotools' objects."""
        codes = [mask["counts"] for mask in masks]
        return cls(
            np.array([mask["size"] for mask in masks], dtype=np.int64).reshape(-1, 2),
            np.array([len(code) for code in codes], dtype=np.int64),
            np.frombuffer(b"".join(codes), dtype=np.uint8),
        )

    @classmethod
    def joined(cls, parts: Sequence[RunLengths]) -> Self:
        """All parts', one after the other."""
        return cls(
            np.concatenate([np.zeros((0, 2), dtype=np.int64), *(part.sizes for part in parts)]),
            np.concatenate([np.zeros(0, dtype=np.int64), *(part.lengths for part in parts)]),
            np.concatenate([np.zeros(0, dtype=np.uint8), *(part.code for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[RunLength]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> RunLength:
        """One mask."""
        end = int(self._ends[row])
        code = self.code[end - int(self.lengths[row]) : end]
        return RunLength(size=self.sizes[row].tolist(), counts=code.tobytes())

    def take(self, rows: NDArray[Any]) -> RunLengths:
        """Those of these rows (places, or which), in this order."""
        chosen = np.arange(len(self))[rows]
        lengths = self.lengths[chosen]
        starts = (self._ends - self.lengths)[chosen]
        # Where each byte of the new code stands in this one.
        new = np.cumsum(lengths) - lengths
        places = np.repeat(starts - new, lengths) + np.arange(int(lengths.sum()))
        return RunLengths(self.sizes[chosen], lengths, self.code[places])

    def areas(self) -> NDArray[np.float64]:
        """[n] pixels."""
        from pycocotools import mask

        # It fails on more than 255 at once.
        pieces = range(0, len(self), 255)
        areas = [mask.area([self[row] for row in range(start, min(start + 255, len(self)))]) for start in pieces]
        return np.concatenate([np.zeros(0), *areas])

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        ends: NDArray[np.int64] = np.cumsum(self.lengths)
        return ends
