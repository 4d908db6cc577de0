"""Masks of objects as training batches have them, in the form in which detectron2's heads ask for them."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from detr_container.models.mask_targets import mask_targets


class RasterMasks:
    """In the place of detectron2's PolygonMasks or BitMasks, at a fixed size for each object.

    masks: [n, M, M] bool, each in the frame of its box; boxes: [n, 4] xyxy in pixels. Rows that are chosen are not
    copied, since detectron2 chooses each object's row for hundreds of proposals.
    """

    def __init__(self, masks: Tensor, boxes: Tensor, rows: Tensor | None = None) -> None:
        self.masks, self.boxes = masks, boxes
        self.rows = torch.arange(len(masks), device=masks.device) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Tensor | slice) -> RasterMasks:
        """Those of these rows."""
        return RasterMasks(self.masks, self.boxes, self.rows[item])

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(self.masks.to(device), self.boxes.to(device), self.rows.to(device))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.masks.device

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """What of each mask lies within its box [n, 4], xyxy in pixels: [n, mask_size, mask_size] bool."""
        return mask_targets(self.masks[self.rows], self.boxes[self.rows], boxes, mask_size)
