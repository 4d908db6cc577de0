"""Masks of annotated objects: as COCO's run-length codes for scoring, and as small rasters for training.

Polygons have continuous coordinates, in which the centre of a pixel lies at its half, as those of boxes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .annotations import Annotations
from .records import show
from .run_lengths import RunLength, RunLengths
from .segmentations import Segmentations
from .transforms import Plan, Size, scale_and_shift

SIDE = 112
"""Cells of a raster's side: four for each of Mask R-CNN's target (He et al. 2017), whose boxes are not the object's."""
Point = NDArray[np.float64]
"""[2] (x, y)"""


def run_length(segmentation: object, size: Size) -> RunLength:
    """A segmentation of COCO's format as a mask of an image of `size`: what pycocotools makes of it, bit for bit.

    segmentation: a list of polygons, or a run-length code, compressed or not. Raises ValueError where it is neither.
    """
    found, faults = Segmentations.checked([segmentation], np.array([size], dtype=np.int64))
    if faults or not found.present[0]:
        reason = faults.get(0, "is empty; give polygons, or a run-length code")
        raise ValueError(f"segmentation {show(segmentation)} {reason}")
    return _run_length(found, 0, size)


def run_lengths(annotations: Annotations) -> RunLengths:
    """The masks of all objects [A], as `run_length`; of those without a segmentation (crowds may be) an empty one.

    annotations: read with their segmentations.
    """
    found = annotations.segmentations
    if found is None:
        raise ValueError(f"{annotations.path} was read without segmentations: read it with segmentations=True")
    sizes = np.repeat(annotations.sizes, np.diff(annotations.starts), axis=0).tolist()
    return RunLengths.of([_run_length(found, row, (height, width)) for row, (height, width) in enumerate(sizes)])


def _run_length(segmentations: Segmentations, row: int, size: Size) -> RunLength:
    from pycocotools import mask

    if code := segmentations.code(row):
        return code
    polygons = [polygon.ravel() for polygon in segmentations.polygons(row)]
    if not polygons:
        nothing: RunLength = mask.frPyObjects({"size": [*size], "counts": [size[0] * size[1]]}, *size)
        return nothing
    joined: RunLength = mask.merge(mask.frPyObjects(polygons, *size))
    return joined


def rasters(
    segmentations: Segmentations, rows: NDArray[np.int64], plan: Plan, size: Size, boxes: NDArray[np.float64]
) -> Tensor:
    """The masks of n objects of an image of `size` after `plan`, each in the frame of its own box.

    rows: [n] which objects; boxes: [n, 4] float64 xyxy in pixels of the image that comes out, with area. Returns
    [n, SIDE, SIDE] bool: whether the centre of each cell of the box is in the object. What is outside of the box is not
    in it.
    """
    scale, shift = scale_and_shift(plan, size)
    low, high = boxes[:, :2], boxes[:, 2:]
    cells = SIDE / (high - low)
    # From pixels of the file to cells of the raster, for each object.
    scales, shifts = scale * cells, (shift - low) * cells
    masks = np.zeros((len(rows), SIDE, SIDE), dtype=bool)
    for raster, row, each_scale, each_shift in zip(masks, rows, scales, shifts, strict=True):
        if code := segmentations.code(row):
            raster[:] = _sampled(code, each_scale, each_shift)
        else:
            raster[:] = _filled([polygon * each_scale + each_shift for polygon in segmentations.polygons(row)])
    return torch.from_numpy(masks)


def _filled(polygons: list[NDArray[np.float64]]) -> NDArray[np.bool_]:
    """[SIDE, SIDE] whether the centre of each cell is in any polygon; polygons: [points, 2] (x, y) in cells."""
    from pycocotools import mask

    near = [polygon if _is_near(polygon) else _cut(polygon) for polygon in polygons]
    corners = [polygon.ravel() for polygon in near if len(polygon)]
    if not corners:
        return np.zeros((SIDE, SIDE), dtype=bool)
    filled: NDArray[np.bool_] = mask.decode(mask.merge(mask.frPyObjects(corners, SIDE, SIDE))).view(bool)
    return filled


def _sampled(code: RunLength, scale: Point, shift: Point) -> NDArray[np.bool_]:
    """[SIDE, SIDE] the pixel of a mask in which the centre of each cell lies, which is at scale x pixel + shift.

    The nearest pixel and not the share of an area, because so polygons are filled, too: an object has one raster,
    whichever way it is annotated.
    """
    from pycocotools import mask

    centres = np.arange(SIDE) + 0.5
    columns, rows = (
        np.floor((centres - shift[axis]) / scale[axis]).astype(np.int64).clip(0, code["size"][1 - axis] - 1)
        for axis in (0, 1)
    )
    sampled: NDArray[np.bool_] = mask.decode(code)[np.ix_(rows, columns)].view(bool)
    return sampled


def _is_near(polygon: NDArray[np.float64]) -> bool:
    return bool(polygon.min() >= -SIDE and polygon.max() <= 2 * SIDE)


def _cut(polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of a polygon is near the raster: pycocotools takes time and memory for every cell that one passes.

    Of an object whose box is a sliver after a crop these are millions. Sutherland and Hodgman (1974); the edges that
    come to lie on each other there are outside of the raster.
    """
    for axis in (0, 1):
        for bound, sign in ((-SIDE, 1), (2 * SIDE, -1)):
            distance = sign * (polygon[:, axis] - bound)
            after = np.roll(distance, -1)
            inside = distance >= 0
            crosses = inside != (after >= 0)
            share = distance / np.where(crosses, distance - after, 1)
            crossings = polygon + share[:, None] * (np.roll(polygon, -1, axis=0) - polygon)
            polygon = np.stack([polygon, crossings], axis=1)[np.stack([inside, crosses], axis=1)]
            if not len(polygon):
                return polygon
    return polygon
