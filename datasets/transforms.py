"""DETR's training and evaluation transforms, drawn first and applied afterwards.

A `Plan` is everything random about one image. Drawing it needs only the image's size, so that the true size of
every image of a batch is known without decoding any. Applying it is deterministic.

Sizes are (height, width) in pixels. Boxes are float32 (x0, y0, x1, y1) in pixels, except where cxcywh is stated.
Source: the published DETR training code (Carion et al. 2020, appendix A.4).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]

LARGEST_ASPECT = 16
"""Before a crop the published code resizes without limit; a strip of 4000 x 4 pixels would take a gigabyte."""


@dataclass(frozen=True)
class Resize:
    """Scale the image to `size`."""

    size: Size


@dataclass(frozen=True)
class Crop:
    """Keep `size` pixels whose first row is `top` and first column `left`."""

    top: int
    left: int
    size: Size


@dataclass(frozen=True)
class Plan:
    """What is done to one image: a horizontal flip or none, then the steps in order; `size` is what comes out."""

    flip: bool
    steps: tuple[Resize | Crop, ...]
    size: Size


def shortest_size(size: Size, shorter: int, max_size: int | None = None) -> Size:
    """The size whose shorter side is `shorter`, or less, so that the longer one is about `max_size` at most.

    The rounding is the published code's: the longer side is truncated, and may pass `max_size` by a few pixels.
    """
    short, long = min(size), max(size)
    if max_size is not None and long / short * shorter > max_size:
        shorter = max(1, round(max_size * short / long))
    if short == shorter:
        return size
    longer = int(shorter * long / short)
    return (shorter, longer) if size[0] < size[1] else (longer, shorter) if size[0] > size[1] else (shorter, shorter)


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [n, 4] of the image mirrored left to right."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def resize_boxes(boxes: Tensor, old: Size, new: Size) -> Tensor:
    """Boxes [n, 4] of the image scaled from `old` to `new`; each axis has its own ratio."""
    ratio_y, ratio_x = new[0] / old[0], new[1] / old[1]
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def clamp_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Boxes [n, 4] cut at the image's edges; one that lies outside is left with no area."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes [n, 4] have a positive width and height: [n] bool. Any sliver counts, as published."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def normalise_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Boxes [n, 4] as (cx, cy, w, h) in [0, 1] of an image of `size`."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    centres = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)
    return centres / centres.new_tensor([width, height, width, height])


def resize_image(image: Tensor, size: Size) -> Tensor:
    """An image [3, h, w] uint8 scaled to `size`, antialiased bilinear, with channels last in memory.

    Decoded images lie in memory with channels last, where resizing uint8 is 2.5 times faster than in planes; a
    crop is copied, because a view with gaps would silently take the slow way.
    """
    from torchvision.transforms.v2 import functional as tvf

    if size == tuple(image.shape[-2:]):
        return image
    interleaved = image[None].contiguous(memory_format=torch.channels_last)[0]
    resized: Tensor = tvf.resize(interleaved, list(size), antialias=True)
    return resized


def apply_image(plan: Plan, image: Tensor) -> Tensor:
    """The pixels of `image`, [3, h, w] uint8, after `plan`: [3, *plan.size] uint8; the input is left as it is."""
    if plan.flip:
        image = image.flip(-1)
    for step in plan.steps:
        if isinstance(step, Resize):
            image = resize_image(image, step.size)
        else:
            height, width = step.size
            image = image[:, step.top : step.top + height, step.left : step.left + width]
    return image


def apply_boxes(plan: Plan, size: Size, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Where the objects of an image of `size` are after `plan`.

    boxes: [n, 4] xyxy pixels. Returns the surviving boxes, [m, 4] xyxy pixels of the image that comes out, and their
    row numbers in `boxes`, [m] int64. Crops drop what they leave without area.
    """
    rows = torch.arange(len(boxes))
    if plan.flip:
        boxes = flip_boxes(boxes, size[1])
    for step in plan.steps:
        if isinstance(step, Resize):
            boxes = resize_boxes(boxes, size, step.size)
        else:
            shift = boxes.new_tensor([step.left, step.top, step.left, step.top])
            boxes = clamp_boxes(boxes - shift, step.size)
            kept = has_area(boxes)
            boxes, rows = boxes[kept], rows[kept]
        size = step.size
    return boxes, rows


def scale_and_shift(plan: Plan, size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the points of an image of `size` are after `plan`: at scale x point + shift, each [2] (x, y), in pixels."""
    scale, shift = np.ones(2), np.zeros(2)
    if plan.flip:
        scale[0], shift[0] = -1, size[1]
    for step in plan.steps:
        if isinstance(step, Resize):
            ratio = step.size[1] / size[1], step.size[0] / size[0]
            scale, shift = scale * ratio, shift * ratio
        else:
            shift = shift - (step.left, step.top)
        size = step.size
    return scale, shift


def apply(plan: Plan, image: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An image and its objects after `plan`.

    image: [3, h, w] uint8; boxes: [n, 4] float32 xyxy pixels; labels: [n]. Returns the image [3, *plan.size], the
    surviving boxes [m, 4] as (cx, cy, w, h) in [0, 1], and their labels [m].
    """
    boxes, rows = apply_boxes(plan, (image.shape[1], image.shape[2]), boxes)
    return apply_image(plan, image), normalise_boxes(boxes, plan.size), labels[rows]


class Augmentation:
    """What may be done to an image, from which `draw` takes one plan.

    scales: sizes of which one is drawn; max_size: the longer side's limit (`shortest` only).
    crop_resize, crop_range: sizes of the shorter side before a crop, and the least and largest side of a crop;
    an image that is smaller than the least side is cropped to what it has.
    augment: `detr` flips half the images and crops half; `flip` only flips; `none` does neither (evaluation).
    resize: scale the shorter side to the drawn size, or both sides (`square`). All lengths are in pixels.
    Raises ValueError for lengths that are not positive, or ranges that are empty.
    """

    def __init__(
        self,
        scales: Sequence[int],
        max_size: int,
        crop_resize: Sequence[int] = (400, 500, 600),
        crop_range: tuple[int, int] = (384, 600),
        augment: Literal["detr", "flip", "none"] = "none",
        resize: Literal["shortest", "square"] = "shortest",
    ) -> None:
        for name, values in (("scales", scales), ("crop_resize", crop_resize), ("max_size", (max_size,))):
            if not values or min(values) < 1:
                raise ValueError(f"data.{name}={values!r}: give at least one length, each of 1 pixel or more")
        if not 1 <= crop_range[0] <= crop_range[1]:
            raise ValueError(f"data.crop_range={crop_range!r}: give two lengths in pixels, the smaller one first")
        self.scales = tuple(scales)
        self.max_size = max_size
        self.crop_resize = tuple(crop_resize)
        self.crop_range = crop_range
        self.augment = augment
        self.resize = resize

    def draw(self, rng: random.Random, size: Size) -> Plan:
        """The plan for an image of `size`; nothing but `rng` and the size decides it."""
        flip = self.augment != "none" and rng.random() < 0.5
        steps: list[Resize | Crop] = []
        if self.augment == "detr" and rng.random() < 0.5:
            shorter = rng.choice(self.crop_resize)
            size = shortest_size(size, shorter, LARGEST_ASPECT * shorter)
            crop = self._draw_crop(rng, size)
            steps += [Resize(size), crop]
            size = crop.size
        scale = rng.choice(self.scales)
        size = (scale, scale) if self.resize == "square" else shortest_size(size, scale, self.max_size)
        return Plan(flip, (*steps, Resize(size)), size)

    def _draw_crop(self, rng: random.Random, size: Size) -> Crop:
        """A crop anywhere in an image of `size`; its two sides are drawn independently."""
        least, largest = self.crop_range
        width = rng.randint(min(least, size[1]), min(largest, size[1]))
        height = rng.randint(min(least, size[0]), min(largest, size[0]))
        return Crop(rng.randint(0, size[0] - height), rng.randint(0, size[1] - width), (height, width))
