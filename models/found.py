"""What a detector without queries has found in one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """Detections of one image, best first.

    scores: [n] in [0, 1]; labels: [n] int64; boxes: [n, 4] xyxy in [0, 1] of the unpadded image; masks: [n, m, m]
    probabilities within each box, or None.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
