"""From an image to what a classifier sees of it: DeiT's augmentation in training, a centre crop in evaluation.

Both are timm's parts, on Pillow's images: Touvron et al. 2021; Cubuk et al. 2020 (RandAugment); Zhong et al. 2017
(random erasing). Images are cut before they become Pillow's, since most of an image is cut away.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .images import LARGEST_PIXELS

SMALL, MARGIN = 32, 4
"""Pixels: inputs up to this side are cut from an image with this margin of black around it; neither is resized."""
Block = tuple[int, int, int, int]
"""Top, left, height and width in pixels of what is to be erased; zeros: nothing."""
NOTHING: Block = (0, 0, 0, 0)


class View(Protocol):
    """What becomes of an image."""

    @property
    def size(self) -> int:
        """The side of the square in pixels."""

    def __call__(self, image: Tensor, generator: random.Random) -> tuple[Tensor, Block]:
        """The square [3, size, size] of an image [3, h, w], both uint8, and what of it is to be erased."""


@dataclass(frozen=True)
class TrainingView:
    """A random crop with DeiT's augmentation.

    size: pixels; area: least and largest share of the image that a crop covers; aspect: the same of its width to its
    height; flip, erasing: probabilities; auto_augment: a policy in timm's spelling, or empty; color_jitter: strength,
    used only without a policy, as published; grey: make images grey before anything else.
    Raises ValueError for a policy that timm does not know.
    """

    size: int = 224
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.0
    erasing: float = 0.25
    grey: bool = False

    def __post_init__(self) -> None:
        try:
            self.parts  # noqa: B018
        except (AssertionError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"data.auto_augment={self.auto_augment!r} is no policy that timm knows ({error}): "
                "rand-m9-mstd0.5-inc1 is DeiT's, and an empty text means none"
            ) from error

    @functools.cached_property
    def parts(self) -> tuple[Any, Any, Any]:
        """timm's, in order: the crop; what is done to Pillow's image of it; the erasing, which is told where only."""
        from timm.data.random_erasing import RandomErasing
        from timm.data.transforms_factory import transforms_imagenet_train
        from torchvision.transforms import Compose, RandomCrop

        primary, secondary, _ = transforms_imagenet_train(
            self.size,
            scale=self.area,
            ratio=self.aspect,
            hflip=self.flip,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment or None,
            interpolation="bicubic",
            separate=True,
        )
        crop, *rest = primary.transforms
        if self.size <= SMALL:
            crop = RandomCrop(self.size, padding=MARGIN)
        changing = secondary.transforms if self.auto_augment or self.color_jitter else []
        keep_no_bits(changing)
        # Of the noise only its place is drawn here.
        erasing = RandomErasing(self.erasing, mode="const", device="cpu")
        return crop, Compose([*rest, *changing]), erasing

    def __call__(self, image: Tensor, generator: random.Random) -> tuple[Tensor, Block]:
        """See `View`. Raises ValueError for an image that is too small for a crop without resizing.

        It draws from the process's own generators, so call it within `kept_generators`.
        """
        crop, changes, erasing = self.parts
        follow(generator)
        if self.size <= SMALL:
            height, width = image.shape[1:]
            _check_size(height, width, self.size)
            view = _pillow(crop(image), self.grey)
        else:
            place = crop.get_params(image, crop.scale, crop.ratio)
            view = _pillow(image, self.grey, place).resize((self.size, self.size), Image.Resampling.BICUBIC)
        view = changes(view)
        canvas = _Canvas(self.size)
        erasing(canvas)
        return _pixels(view), canvas.block


@dataclass(frozen=True)
class CentreCrop:
    """What evaluation sees: the shorter side at size / crop_ratio, and of that the centre; nothing is random.

    timm's create_transform(is_training=False), pixel for pixel. Inputs of 32 pixels or less are cut without resizing.
    interpolation: bicubic or bilinear.
    """

    size: int = 224
    crop_ratio: float = 0.875
    grey: bool = False
    interpolation: str = "bicubic"

    @property
    def shorter(self) -> int:
        """Pixels of the shorter side once an image is resized."""
        return int(self.size / self.crop_ratio)

    def check(self, height: int, width: int) -> None:
        """Raise ValueError for an image of this size in pixels that is too small or too narrow to be cut."""
        if self.size <= SMALL:
            _check_size(height, width, self.size)
        elif self.shorter**2 * max(height, width) > LARGEST_PIXELS * min(height, width):
            raise ValueError(
                f"{width} x {height} pixels are too narrow: with a shorter side of {self.shorter} they would be more "
                f"than {LARGEST_PIXELS:,}"
            )

    def __call__(self, image: Tensor, generator: random.Random) -> tuple[Tensor, Block]:
        """See `View`. Raises ValueError as `check`."""
        from torchvision.transforms import functional as F

        del generator
        self.check(*image.shape[1:])
        view = _pillow(image, self.grey)
        if self.size > SMALL:
            view = F.resize(view, self.shorter, F.InterpolationMode(self.interpolation))
        return _pixels(F.center_crop(view, [self.size, self.size])), NOTHING


class _Canvas:
    """An image of `side` x `side` pixels that has none: it notes which block is written to."""

    dtype = torch.uint8

    def __init__(self, side: int) -> None:
        self._side, self.block = side, NOTHING

    def size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return 3, self._side, self._side

    def __setitem__(self, place: tuple[slice, slice, slice], value: Any) -> None:
        _, rows, columns = place
        self.block = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the generators of `random`, numpy and torch back when this ends: training draws from them as well.

    It takes an eighth of a millisecond, so that many views are drawn within one.
    """
    mine, numpys, torchs = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(mine)
        np.random.set_state(numpys)
        torch.default_generator.set_state(torchs)


def follow(generator: random.Random) -> None:
    """Let what timm's and torchvision's transforms draw from follow from this generator.

    They know the process's own alone: `random`'s (crops, strengths, erasing), numpy's (operations), torch's (flips).
    """
    np.random.seed(generator.getrandbits(32))
    torch.default_generator.manual_seed(generator.getrandbits(63))
    random.setstate(generator.getstate())


def keep_no_bits(transforms: Iterable[Any]) -> None:
    """Let posterizing by timm that keeps no bits give a black image, as published; newer Pillows refuse it."""
    for transform in transforms:
        # Of AutoAugment's policy each row is a list of operations.
        listed = getattr(transform, "ops", None) or itertools.chain(*getattr(transform, "policy", ()))
        for operation in listed:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _check_size(height: int, width: int, size: int) -> None:
    if min(height, width) < size - 2 * MARGIN:
        raise ValueError(f"{width} x {height} pixels are too few for an input of {size}, which is not resized")


def _pillow(image: Tensor, grey: bool, place: Block | None = None) -> Image.Image:
    """Pillow's image of pixels [3, h, w], or of a place in them; grey: of three equal channels."""
    # Images are decoded to channels last, which are not copied here.
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    full = pixels.shape[1]
    top, left, height, width = place or (0, 0, *pixels.shape[:2])
    rows = pixels.reshape(-1)[3 * (full * top + left) :]
    pillow = Image.frombytes("RGB", (width, height), rows, "raw", "RGB", 3 * full)
    return pillow.convert("L").convert("RGB") if grey else pillow


def _pixels(image: Image.Image) -> Tensor:
    """[3, h, w] uint8, channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
