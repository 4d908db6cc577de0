"""The objects of an annotation file as checked columns: what no image can have, and what looks like another convention.

Sizes: I images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import Findings, Record, Severity, box_column, integer_column, number_column, positions, show, unique_ids

LARGEST_AREA, FARTHEST = 1e10, 1e9
"""Pixels: COCO's evaluators leave out objects with a larger area without a word, and no image reaches so far."""
FEW = 4
"""Boxes that it takes to see that they are of another convention."""
DOUBTS = ("boxes-within-a-pixel", "boxes-as-corners")
"""Kinds of warnings that boxes as a whole are of another convention than COCO's."""


@dataclass
class Objects:
    """Every annotation record of a file as columns; `good` says which could be read at all."""

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    good: NDArray[np.bool_]

    @classmethod
    def read(cls, records: list[Record], findings: Findings) -> Objects:
        """Columns of the records; what cannot be read is a problem."""
        ids, good = unique_ids(records, "annotation", findings)

        def refuse(bad: NDArray[np.bool_], key: str, rule: str) -> None:
            for row in np.flatnonzero(good & bad):
                value = show(records[row].get(key))
                findings.add("error", key, f"annotation {ids[row]}: {key} {value} {rule}")
            good[bad] = False

        image_ids, ok = integer_column([record.get("image_id") for record in records], {int})
        refuse(~ok, "image_id", "is not a whole number")
        category_ids, ok = integer_column([record.get("category_id") for record in records], {int})
        refuse(~ok, "category_id", "is not a whole number")
        crowd, ok = integer_column([record.get("iscrowd", 0) for record in records], {int, bool})
        refuse(~ok | (crowd < 0) | (crowd > 1), "iscrowd", "is neither 0 nor 1")
        boxes, ok = box_column([record.get("bbox") for record in records])
        refuse(~ok, "bbox", "is not a list of four finite numbers (left, top, width, height)")
        refuse(np.any(boxes[:, 2:] < 0, axis=1), "bbox", "has a negative width or height")
        refuse(np.any(np.abs(boxes) > FARTHEST, axis=1), "bbox", f"is not within {FARTHEST:g} pixels")
        given = [record.get("area") for record in records]
        with np.errstate(over="ignore"):
            computed = boxes[:, 2] * boxes[:, 3]
        absent = np.array([value is None for value in given], dtype=bool)
        stated, ok = number_column([0.0 if value is None else value for value in given])
        refuse(~ok | ~np.isfinite(stated) | (stated < 0), "area", "is not a finite number of 0 or above")
        areas = np.where(absent, computed, stated)
        refuse(areas > LARGEST_AREA, "area", f"(or width x height) is more than {LARGEST_AREA:g} pixels")
        return cls(ids, image_ids, category_ids, boxes, crowd == 1, areas, good)

    def check(
        self, images: NDArray[np.int64], sizes: NDArray[np.int64], categories: NDArray[np.int64], findings: Findings
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows without an error, and every row's image index and label (any, where it has an error).

        images: ids [I], rising; sizes: [I, 2] (height, width), 0 where unknown; categories: ids, rising.
        """
        good = self.good.copy()
        image, known = positions(self.image_ids, images)
        for row in np.flatnonzero(good & ~known):
            findings.add("error", "unknown-image", f"annotation {self.ids[row]}: no usable image {self.image_ids[row]}")
        good &= known
        label, known = positions(self.category_ids, categories)
        for row in np.flatnonzero(good & ~known):
            findings.add(
                "error", "unknown-category", f"annotation {self.ids[row]}: no usable category {self.category_ids[row]}"
            )
        good &= known
        rows = np.flatnonzero(good)
        sized = np.asarray(sizes[image[rows], 0] > 0, dtype=bool)
        outside = np.zeros(len(rows), dtype=bool)
        outside[sized] = self._check_boxes(rows[sized], sizes[image[rows[sized]]], findings)
        return rows[~outside], image, label

    def _check_boxes(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], findings: Findings) -> NDArray[np.bool_]:
        """Find which of these rows lie wholly outside their image; sizes: its (height, width) for every row."""
        left, top, width, height = self.boxes[rows].T
        right, bottom = left + width, top + height
        image_height, image_width = sizes.T
        empty = (width == 0) | (height == 0)
        outside = ~empty & ((right <= 0) | (bottom <= 0) | (left >= image_width) | (top >= image_height))
        beyond = np.max([-left, -top, right - image_width, bottom - image_height], axis=0, initial=0.0) > 1
        cases: tuple[tuple[Severity, str, NDArray[np.bool_], str], ...] = (
            ("error", "outside", outside, "lies wholly outside the image"),
            ("warning", "beyond-edge", beyond & ~outside & ~empty, "reaches beyond the image and is cut off there"),
            ("warning", "empty-box", empty, "has no area and is left out of training"),
        )
        for severity, kind, mask, rule in cases:
            for index in np.flatnonzero(mask):
                row = rows[index]
                box = ", ".join(f"{side:g}" for side in self.boxes[row])
                findings.add(
                    severity,
                    kind,
                    f"annotation {self.ids[row]} (image {self.image_ids[row]}, {sizes[index, 1]} x {sizes[index, 0]} "
                    f"pixels): bbox [{box}] {rule}",
                )
        self._check_plausible(rows[~empty], sizes[~empty], findings)
        return outside

    def _check_plausible(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], findings: Findings) -> None:
        """Look whether the boxes as a whole are of another convention than COCO's."""
        if not len(rows):
            return
        boxes = self.boxes[rows]
        if np.all(boxes <= 1) and len(rows) >= FEW:
            findings.add(
                "warning",
                DOUBTS[0],
                f"all {len(rows)} boxes lie within one pixel, first annotation {self.ids[rows[0]]}: are they shares of "
                "the image's width and height? COCO's are in pixels",
            )
            return
        ends = boxes[:, :2] + boxes[:, 2:]
        beyond = np.any(ends > sizes[:, ::-1] + 1, axis=1)
        ordered = np.all(boxes[:, 2:] > boxes[:, :2], axis=1) & np.all(boxes[:, 2:] <= sizes[:, ::-1] + 1, axis=1)
        # Corners are always in order and inside the image; read as sides, they reach beyond it as a rule.
        if len(rows) >= FEW and ordered.all() and beyond.mean() > 0.3:
            findings.add(
                "warning",
                DOUBTS[1],
                f"{int(beyond.sum())} of {len(rows)} boxes reach beyond their image, and all would lie inside as "
                "(left, top, right, bottom): COCO's are (left, top, width, height)",
            )
