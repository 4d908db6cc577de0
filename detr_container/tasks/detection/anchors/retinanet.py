"""RetinaNet whose losses do not depend on how a step's images are divided into forward passes and processes."""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch import RetinaNet
from torch import Tensor

INITIAL, MOMENTUM = 50.0, 0.9
"""Positive anchors of an image before any was seen, and the share of the old mean that stays: detectron2's, which takes
100 for the two images of a process."""


class StepRetinaNet(RetinaNet):
    """detectron2's RetinaNet, its losses divided by a running mean that moves once a step.

    There the mean moves at every forward pass, is another one on each process, and is in no checkpoint, so that neither
    accumulated gradients nor a resumed run would be the same.
    """

    per_image: Tensor
    images: int
    counted: float = 0.0
    seen: int = 0

    def begin(self, per_image: Tensor, images: int) -> None:
        """Before a forward pass in training of so many images; per_image: the running mean of positive anchors."""
        self.per_image, self.images = per_image, images

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = MOMENTUM) -> Tensor:
        del name, initial_value, momentum
        self.counted += value
        self.seen += self.images
        return self.per_image * self.images

    def take(self) -> Tensor:
        """[2] positive anchors and images since the last time, on the host."""
        taken = torch.tensor([self.counted, float(self.seen)], dtype=torch.float64)
        self.counted, self.seen = 0.0, 0
        return taken
