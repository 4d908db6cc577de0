"""Detections of many images as columns: what an evaluation makes, gathers, keeps on disk, scores and draws.

Names of sizes: I images, n detections, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detr_container.datasets.run_length_codes import first_fault
from detr_container.datasets.run_lengths import RunLengths
from detr_container.engine.columns import REMEDY, read_columns, write_columns

NAME = "detections.npz"
_COLUMNS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "image_ids": (np.dtype(np.int64), ()),
    "counts": (np.dtype(np.int64), ()),
    "category_ids": (np.dtype(np.int64), ()),
    "scores": (np.dtype(np.float32), ()),
    "labels": (np.dtype(np.int64), ()),
    "boxes": (np.dtype(np.float32), (4,)),
}
"""Of a file: the type of each column and the shape of an entry."""
_MASKS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "mask_sizes": (np.dtype(np.int64), (2,)),
    "mask_lengths": (np.dtype(np.int64), ()),
    "mask_code": (np.dtype(np.uint8), ()),
}
"""Those of masks, where there are any: see `RunLengths`."""


class Columns(NamedTuple):
    """A row per detection, as COCO has them.

    images: [n] and categories: [n] by id; boxes: [n, 4] x, y, width, height in pixels; scores: [n]; masks:
    [n], None where there are none.
    """

    images: NDArray[Any]
    categories: NDArray[Any]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    masks: RunLengths | None = None


@dataclass(frozen=True)
class Detections:
    """Of image image_ids[i] the rows starts[i]:starts[i + 1], best first.

    image_ids: [I]; starts: [I + 1]; scores: [n]; labels: [n], which index category_ids: [K], the classes' ids in an
    annotation file; boxes: [n, 4] x1, y1, x2, y2 in pixels of the image on disk; masks: [n] in the same pixels, None
    where the model finds boxes alone.
    """

    image_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    category_ids: NDArray[np.int64]
    masks: RunLengths | None = None

    @classmethod
    def joined(cls, parts: Sequence[Detections], category_ids: Sequence[int]) -> Self:
        """All parts' together, by rising image ids; of an image that stands in several of them, the first one's.

        Raises ValueError where some parts' detections have masks and others' have none.
        """
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *(part.image_ids for part in parts)])
        counts = np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(part.starts) for part in parts)])
        ids, first = np.unique(ids, return_index=True)
        began, counts = starts_of(counts)[:-1][first], counts[first]
        starts = starts_of(counts)
        rows = np.repeat(began - starts[:-1], counts) + np.arange(starts[-1])
        masks = _joined([part.masks for part in parts if part.masks is not None or len(part.scores)])
        return cls(
            ids,
            starts,
            np.concatenate([np.zeros(0, dtype=np.float32), *(part.scores for part in parts)])[rows],
            np.concatenate([np.zeros(0, dtype=np.int64), *(part.labels for part in parts)])[rows],
            np.concatenate([np.zeros((0, 4), dtype=np.float32), *(part.boxes for part in parts)])[rows],
            np.array(category_ids, dtype=np.int64),
            None if masks is None else masks.take(rows),
        )

    def rows_of(self, image_id: int) -> slice:
        """Where an image's detections stand; nowhere, if it has none. Image ids must rise, as `joined` has them."""
        place = int(np.searchsorted(self.image_ids, image_id))
        if place == len(self.image_ids) or self.image_ids[place] != image_id:
            return slice(0, 0)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def columns(self) -> Columns:
        """The same a row per detection, by ids, in float64."""
        corners = self.boxes.astype(np.float64)
        return Columns(
            np.repeat(self.image_ids, np.diff(self.starts)),
            self.category_ids[self.labels],
            np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            self.scores.astype(np.float64),
            self.masks,
        )

    def write(self, path: Path) -> None:
        """Write the columns as a compressed .npz, whole or not at all; the same detections give the same bytes."""
        more: list[NDArray[Any]] = []
        if self.masks is not None:
            more = [self.masks.sizes, self.masks.lengths, self.masks.code]
        write_columns(
            path,
            image_ids=self.image_ids,
            counts=np.diff(self.starts),
            category_ids=self.category_ids,
            scores=self.scores,
            labels=self.labels,
            boxes=self.boxes,
            **dict(zip(_MASKS, more, strict=False)),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote. Raises ValueError for anything else, OSError for what the system refuses."""
        columns = read_columns(path, _COLUMNS, "detections", _MASKS)
        parts = [columns.pop(name) for name in _MASKS if name in columns]
        masks = RunLengths(*parts) if parts else None
        if wrong := _mistake(columns, masks):
            raise ValueError(f"{path} is no file of detections: {wrong}. {REMEDY}")
        starts = starts_of(columns.pop("counts"))
        return cls(starts=starts, masks=masks, **columns)


def starts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[I + 1] where each image's rows start, from how many it has: [I]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def _joined(masks: Sequence[RunLengths | None]) -> RunLengths | None:
    there = [each for each in masks if each is not None]
    if there and len(there) < len(masks):
        raise ValueError(
            f"detections with masks and without, {len(there)} and {len(masks) - len(there)} parts of them: join those "
            "of one model"
        )
    return RunLengths.joined(there) if there else None


def _mistake(columns: dict[str, NDArray[Any]], masks: RunLengths | None) -> str:
    """What does not fit together; empty when all does."""
    rows, labels, counts, ids = len(columns["scores"]), columns["labels"], columns["counts"], columns["image_ids"]
    if len(labels) != rows or len(columns["boxes"]) != rows or len(counts) != len(ids):
        return "its columns are not of the same length"
    # Each by itself first, since sums of arbitrary numbers may come out right.
    if (len(counts) and not 0 <= counts.min() <= counts.max() <= rows) or counts.sum() != rows:
        return f"its counts do not add up to {rows} detections"
    if rows and (labels.min() < 0 or labels.max() >= len(columns["category_ids"])):
        return f"labels are not those of {len(columns['category_ids'])} classes"
    if (np.diff(ids) <= 0).any():
        return "image ids do not rise"
    if masks is None:
        return ""
    if len(masks) != rows:
        return "its columns are not of the same length"
    return first_fault(masks) or other_sizes(np.repeat(ids, counts), masks.sizes)


def other_sizes(images: NDArray[Any], sizes: NDArray[np.int64]) -> str:
    """Which image has masks of different sizes, if one has. images: [n] by id; sizes: [n, 2]."""
    order = np.argsort(images, kind="stable")
    images, sizes = images[order], sizes[order]
    apart = (images[1:] == images[:-1]) & (sizes[1:] != sizes[:-1]).any(axis=1)
    if not apart.any():
        return ""
    place = int(np.flatnonzero(apart)[0])
    one, other = (" x ".join(map(str, size)) for size in sizes[place : place + 2].tolist())
    return f"image {images[place]} has masks of {one} and of {other} pixels"
