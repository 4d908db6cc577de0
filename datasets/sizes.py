"""What sizes images come out of augmentation with, for whole data sets at once; no image is opened.

Sides are arrays of pixels: heights and widths [I] of I images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .transforms import LARGEST_ASPECT, Augmentation

Sides = NDArray[np.int64]
Uniform = Callable[[], NDArray[np.float64]]
"""Draws a number in [0, 1) for each image."""
SHIFT = 1 << 24


def resized(heights: Sides, widths: Sides, shorter: int | Sides, max_size: int | Sides) -> tuple[Sides, Sides]:
    """`transforms.shortest_size` of arrays."""
    short, long = np.minimum(heights, widths), np.maximum(heights, widths)
    limited = np.maximum(1, np.rint(max_size * short / long)).astype(np.int64)
    small = np.where(long / short * shorter > max_size, limited, shorter)
    large = (small * long / short).astype(np.int64)
    return np.where(heights <= widths, small, large), np.where(widths <= heights, small, large)


def drawn(heights: Sides, widths: Sides, augmentation: Augmentation, uniform: Uniform) -> tuple[Sides, Sides]:
    """Sizes that come out, as `Augmentation.draw` draws them, from random numbers of one's own."""
    if augmentation.augment == "detr":
        cropped = uniform() < 0.5
        shorter = _choice(augmentation.crop_resize, uniform)
        before = resized(heights, widths, shorter, LARGEST_ASPECT * shorter)
        least, largest = augmentation.crop_range
        sides = []
        for side in before:
            low, high = np.minimum(least, side), np.minimum(largest, side)
            sides.append(low + (uniform() * (high - low + 1)).astype(np.int64))
        heights, widths = np.where(cropped, sides[0], heights), np.where(cropped, sides[1], widths)
    scale = _choice(augmentation.scales, uniform)
    return (scale, scale) if augmentation.resize == "square" else resized(heights, widths, scale, augmentation.max_size)


def _choice(values: tuple[int, ...], uniform: Uniform) -> Sides:
    return np.array(values)[(uniform() * len(values)).astype(np.int64)]


def reach(sizes: Sides, augmentation: Augmentation, multiple: int = 1) -> tuple[Sides, Sides, Sides]:
    """The most that can come out of images of these sizes, [I, 2]: heights, widths, and sizes after padding, [I] each.

    The last is one number, so that it can be compared: the area times `SHIFT`, plus the height.
    """
    heights, widths = sizes.T
    found = [_most(heights, widths, augmentation, multiple)]
    if augmentation.augment == "detr":
        before = [resized(heights, widths, scale, LARGEST_ASPECT * scale) for scale in set(augmentation.crop_resize)]
        least, largest = augmentation.crop_range
        side = min(largest, max(int(max(high.max(), broad.max())) for high, broad in before))
        # Every crop of up to this side; then, along both sides, the best of all crops that the same image can have.
        lengths = np.arange(1, side + 1)
        crop_heights, crop_widths = np.meshgrid(lengths, lengths, indexing="ij")
        tables = _most(crop_heights, crop_widths, augmentation, multiple)
        for table in tables:
            for axis in (0, 1):
                choice = table.swapaxes(0, axis)[least - 1 :]
                np.maximum.accumulate(choice, axis=0, out=choice)
        for high, broad in before:
            at = np.minimum(high, side) - 1, np.minimum(broad, side) - 1
            found.append((tables[0][at], tables[1][at], tables[2][at]))
    tall, wide, joint = (np.maximum.reduce(each) for each in zip(*found, strict=True))
    return tall, wide, joint


def _most(heights: Sides, widths: Sides, augmentation: Augmentation, multiple: int) -> tuple[Sides, Sides, Sides]:
    """The same over all scales, of what is resized to them."""
    tall, wide, joint = (np.zeros(heights.shape, np.int64) for _ in range(3))
    for scale in set(augmentation.scales):
        if augmentation.resize == "square":
            height, width = np.full_like(heights, scale), np.full_like(widths, scale)
        else:
            height, width = resized(heights, widths, scale, augmentation.max_size)
        np.maximum(tall, height, out=tall)
        np.maximum(wide, width, out=wide)
        height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        np.maximum(joint, height * width * SHIFT + height, out=joint)
    return tall, wide, joint
