"""Repeated augmentation: an epoch shows each of its images several times, and only a share of all images.

Hoffer et al. 2020 ("Augment your batch"), as DeiT (Touvron et al. 2021) samples it.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE = 256
"""Images: an epoch is cut to a multiple of this, as published, where there are so many."""


def shown(length: int, repeats: int) -> int:
    """How many views an epoch shows of `length` images, each `repeats` times."""
    return length if repeats == 1 or length < WHOLE else length // WHOLE * WHOLE


def repeated(order: Tensor, repeats: int) -> Tensor:
    """[shown] what an epoch shows: of each image as many views side by side.

    order: [N] a permutation of the images. Item view * N + index is one view of the image at `index`, so that each view
    draws what is random in it for itself.
    """
    length = len(order)
    views = order[:, None] + length * torch.arange(repeats)
    return views.flatten()[: shown(length, repeats)]
