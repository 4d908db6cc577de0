"""Segmentations of tests: polygons, run-length codes, and the data set of shapes with its own."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detr_container.datasets.annotations import Annotations, read_annotations
from detr_container.datasets.masks import run_length
from detr_container.datasets.segmentations import Segmentations
from detr_container.datasets.transforms import Size

Pixels = NDArray[np.bool_]


def read(root: Path, split: str = "train") -> Annotations:
    return read_annotations(
        root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017", segmentations=True
    )


def of(*values: Any, size: Size = (300, 400)) -> Segmentations:
    found, faults = Segmentations.checked(values, np.full((len(values), 2), size))
    assert faults == {}
    return found


def blob(generator: np.random.Generator, centre: tuple[float, float], radius: float, corners: int = 12) -> list[float]:
    """A polygon of no particular shape around a point, nowhere thinner than a pixel."""
    angles = (np.arange(corners) + generator.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    radii = radius * generator.uniform(0.7, 1.0, corners)
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1) + centre
    return [round(float(value), 2) for value in points.ravel()]


def tight(pixels: Pixels) -> list[float]:
    """The box around pixels, xyxy."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def pixels_of(segmentation: Any, size: Size = (300, 400)) -> Pixels:
    decoded: Pixels = coco_mask.decode(run_length(segmentation, size)).astype(bool)
    return decoded


def uncompressed(pixels: Pixels) -> dict[str, Any]:
    """COCO's format, by a loop."""
    counts, last = [0], False
    for value in pixels.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": list(pixels.shape), "counts": counts}
