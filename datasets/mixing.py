"""What mixup and cutmix do to a batch: one draw for all of its images, each of which is mixed with another.

The draw is here, so that it is the same wherever the batch is loaded; pixels are mixed where the model is.
Zhang et al. 2018 (mixup), Yun et al. 2019 (cutmix), as DeiT's released code has them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels; the last two are the first row and column beyond."""
NO_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True)
class Mix:
    """share: of an image's own label (and of its pixels in mixup) in the result; box: what cutmix takes over."""

    share: float = 1.0
    box: Box = NO_BOX


@dataclass(frozen=True)
class Mixing:
    """alpha of each method's Beta distribution, 0 for none; with both, each batch draws one with equal chance."""

    mixup: float = 0.0
    cutmix: float = 0.0

    def draw(self, generator: random.Random, height: int, width: int) -> Mix:
        """What is done to a batch of images of that size in pixels."""
        if not (self.mixup or self.cutmix):
            return Mix()
        if self.cutmix and (not self.mixup or generator.random() < 0.5):
            share = generator.betavariate(self.cutmix, self.cutmix)
            centre = generator.randrange(height), generator.randrange(width)
            box = cutmix_box(height, width, share, centre)
            return Mix(1 - (box[2] - box[0]) * (box[3] - box[1]) / (height * width), box)
        return Mix(generator.betavariate(self.mixup, self.mixup))


def cutmix_box(height: int, width: int, share: float, centre: tuple[int, int]) -> Box:
    """The box around `centre` (row, column) that leaves about `share` of the image; it is cut at the image's edges."""
    ratio = math.sqrt(1 - share)
    # Edges are half a side, rounded down, from the centre, so odd sides shrink by one, as published.
    down, across = int(height * ratio) // 2, int(width * ratio) // 2
    row, column = centre
    return max(row - down, 0), max(column - across, 0), min(row + down, height), min(column + across, width)
