"""Box maths in float32.

Boxes are [..., 4]: `cxcywh` is centre and size, `xyxy` is top-left and bottom-right corner; any one unit throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Keeps the ratios of boxes without area defined: two identical points overlap by 0, not by 0 / 0.
EPSILON = 1e-12


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes that broadcast against each other (Rezatofighi et al. 2019).

    a, b: [..., 4] xyxy, float32. Returns [...] in [-1, 1]. For every pair of two sets, pass `a[:, None]` and `b[None]`.
    """
    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    overlap = _area((torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0))
    union = _area(a_high - a_low) + _area(b_high - b_low) - overlap
    hull = _area(torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low))
    return overlap / union.clamp(min=EPSILON) - (hull - union) / hull.clamp(min=EPSILON)


def _area(sides: Tensor) -> Tensor:
    """[..., 2] width and height to [...]; not by `prod`, in whose gradient the host waits to hear of zeros."""
    width, height = sides.unbind(dim=-1)
    return width * height
