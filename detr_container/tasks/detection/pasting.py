"""Masks in the frames of their boxes, pasted into an image: Mask R-CNN's last step (He et al. 2017).

What is pasted never becomes an image of its own: of each column of a box only where the mask begins and ends leaves
the device. In COCO's codes, which go down the columns, that is the mask.

Shapes: n masks, m x m values of one, c strips of R rows and C columns, b places where masks begin or end.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from detr_container.datasets.run_lengths import RunLength, RunLengths

PIXELS = 1 << 20
"""That are pasted at once, each of which takes 20 bytes for a moment."""
THRESHOLD = 0.5
"""What is as likely belongs to the object."""
Whole = NDArray[np.int64]


class _Strips(NamedTuple):
    """Parts of boxes that together hold their masks: whole boxes, or columns of large ones. All [c], in pixels."""

    mask: Whole
    top: Whole
    left: Whole
    rows: Whole
    columns: Whole


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], limit: int = PIXELS) -> RunLengths:
    """Masks of an image, from those of boxes: bilinear, with values at the centres of cells and of pixels.

    masks: [n, m, m] probabilities, each over its whole box; boxes: [n, 4] xyxy in pixels, on the same device; size:
    (height, width) of the image; limit: how many pixels are pasted at once. Of a box without area, or out of the image,
    the mask is empty.
    """
    masks, boxes = masks.float(), boxes.float()
    strips = _strips(boxes.cpu().numpy(), size, limit)
    found = [np.zeros((0, 2), dtype=np.int64)]
    start = 0
    # Of one size as far as may be, since all are pasted as large as the largest.
    order = np.lexsort((strips.columns, strips.rows))[::-1]
    while start < len(order):
        rows, columns = int(strips.rows[order[start]]), strips.columns[order[start:]]
        areas = rows * np.maximum.accumulate(columns) * np.arange(1, len(columns) + 1)
        stop = start + max(1, int(np.searchsorted(areas, limit, side="right")))
        found.append(_changes(masks, boxes, _Strips(*(each[order[start:stop]] for each in strips)), size))
        start = stop
    return _coded(np.concatenate(found), len(masks), size)


def _strips(boxes: NDArray[np.float32], size: tuple[int, int], limit: int) -> _Strips:
    """Of each box the pixels that it touches, in as few pieces as have `limit` pixels each, but a column at least."""
    height, width = size
    # Before they become whole numbers, which infinities have none of.
    low = np.clip(np.floor(boxes[:, :2]), 0, (width, height))
    high = np.clip(np.ceil(boxes[:, 2:]), 0, (width, height))
    finite = np.isfinite(boxes).all(axis=1)
    (left, top), (right, bottom) = (np.where(finite, each.T, 0).astype(np.int64) for each in (low, high))
    there = np.flatnonzero(finite & (left < right) & (top < bottom) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
    rows = bottom[there] - top[there]
    most = np.maximum(1, limit // rows)
    pieces = -(-(right[there] - left[there]) // most)
    mask, most = np.repeat(there, pieces), np.repeat(most, pieces)
    place = np.arange(len(mask)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = left[mask] + place * most
    return _Strips(mask, top[mask], begin, np.repeat(rows, pieces), np.minimum(begin + most, right[mask]) - begin)


def _changes(masks: Tensor, boxes: Tensor, strips: _Strips, size: tuple[int, int]) -> Whole:
    """[b, 2] which mask, and where in the columns of the whole image, one after the other, it begins or ends."""
    device = masks.device
    mask, top, left, rows, columns = (torch.from_numpy(each).to(device) for each in strips)
    box = boxes[mask]
    y = top[:, None] + torch.arange(int(strips.rows.max()), device=device)
    x = left[:, None] + torch.arange(int(strips.columns.max()), device=device)
    # From pixels to -1 and 1 at the box's sides.
    grid_y = (y + 0.5 - box[:, 1:2]) / (box[:, 3:] - box[:, 1:2]) * 2 - 1
    grid_x = (x + 0.5 - box[:, :1]) / (box[:, 2:3] - box[:, :1]) * 2 - 1
    shape = (len(mask), y.shape[1], x.shape[1])
    grid = torch.stack((grid_x[:, None, :].expand(shape), grid_y[:, :, None].expand(shape)), dim=3)
    inside = F.grid_sample(masks[mask][:, None], grid, align_corners=False)[:, 0] >= THRESHOLD  # [c, R, C]
    inside &= (y < (top + rows)[:, None])[:, :, None] & (x < (left + columns)[:, None])[:, None, :]
    edges = F.pad(inside, (0, 0, 1, 1))
    strip, row, column = (edges[:, 1:] != edges[:, :-1]).nonzero().unbind(1)
    places = (left[strip] + column) * size[0] + top[strip] + row
    return torch.stack((mask[strip], places), dim=1).cpu().numpy()


def _coded(changes: Whole, count: int, size: tuple[int, int]) -> RunLengths:
    """Masks from where they begin and end, [b, 2], in any order."""
    from pycocotools import mask as coco

    pixels = size[0] * size[1]
    keys = np.sort(changes[:, 0] * (pixels + 1) + changes[:, 1])
    # What ends at the foot of a column and begins at the head of the next does neither.
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    keys = np.delete(keys, np.concatenate([twice, twice + 1]))
    owner, places = np.divmod(keys, pixels + 1)
    ends = np.searchsorted(owner, np.arange(count + 1))
    codes: list[RunLength] = []
    for first, last in pairwise(ends.tolist()):
        stops = places[first:last]
        runs = np.diff(stops if len(stops) and stops[-1] == pixels else np.append(stops, pixels), prepend=0)
        codes += coco.frPyObjects([{"size": [*size], "counts": runs}], *size)
    return RunLengths.of(codes)
