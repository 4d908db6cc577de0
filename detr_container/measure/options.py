"""What `benchmark` measures, and how often; without torch, so that --help need not wait for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from tyro.constructors import PrimitiveConstructorSpec

from detr_container.base.limits import between, check, natural

PARTS = ("data", "forward", "matching", "loss", "backward", "optimizer")
"""Of a training step."""


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of a text like 800x1333. Raises ValueError for any other."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise ValueError(f"{text!r} is no size: write HEIGHTxWIDTH in pixels, such as 800x1333")
    if max(len(found[1]), len(found[2])) > 5 or max(int(found[1]), int(found[2])) > 16_384:
        raise ValueError(f"{text[:40]!r}: a side has at most 16,384 pixels")
    return int(found[1]), int(found[2])


def _parsed_or_text(text: str) -> Any:
    try:
        return parse_size(text)
    except ValueError:
        return text


def size_text(size: Sequence[int]) -> str:
    """800x1333."""
    return f"{size[0]}x{size[1]}"


Size = Annotated[
    tuple[int, int],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="HEIGHTxWIDTH",
        # What is no size is kept for `check`, which reports what is wrong with it.
        instance_from_str=lambda words: _parsed_or_text(words[0]),
        is_instance=lambda value: isinstance(value, tuple) and len(value) == 2,
        str_from_instance=lambda size: [size_text(size)],
    ),
    BeforeValidator(lambda value: parse_size(value) if isinstance(value, str) else value),
]


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and how often."""

    sizes: tuple[Size, ...] = ((480, 640), (800, 1066), (800, 1333))
    """Pixels of the images of a forward pass (default: as usual for the task). Training steps get images of the
    largest."""
    batch: tuple[Annotated[int, between(1, 65_536)], ...] = (2,)
    """Images of a training step, one number or several. Forward passes are measured with one image and with each."""
    forward: bool = True
    """Measure forward passes."""
    training: bool = True
    """Measure training steps too."""
    source: Literal["synthetic", "coco", "data", "made"] = "synthetic"
    """Training images. `synthetic`: random ones in memory (`made` is its old name); `coco`: the same, in the sizes that
    training draws of COCO's (detection alone); `data`: the experiment's own, loaded as in training."""
    drawn: Annotated[int, between(2, 100_000)] = 16
    """With `coco`: so many batches are drawn, whose sizes come in turn; with it and with `data` on a GPU, twice as many
    steps are taken before the clock runs, which show what a new size costs."""
    classes: Annotated[int, between(1, 100_000)] = 80
    """Classes to tell apart; with `data` those of the data set. Of ImageNet there are 1000."""
    objects: Annotated[int, natural(10_000)] = 7
    """Objects on each synthetic image (COCO has 7.3 on average); of detection alone."""
    rounds: Annotated[int, between(1, 10_000)] = 5
    """Measurements of each kind; their median is reported."""
    seconds: Annotated[float, natural(3600.0)] = 0.3
    """Each measurement repeats what it measures for so long, once at least, and takes the median."""

    def check(self) -> None:
        """Raise ValueError for what cannot be measured."""
        check(self)
        if not self.sizes:
            raise ValueError("sizes=(): give one or more, such as 800x1333")
        if not self.batch:
            raise ValueError("batch=(): give one or more, such as 2")
        if not (self.forward or self.training):
            raise ValueError("forward=False with training=False leaves nothing to measure: leave one of them out")

    @property
    def largest(self) -> tuple[int, int]:
        """The size with most pixels."""
        return max(self.sizes, key=lambda size: size[0] * size[1])

    def works(self) -> list[Work]:
        """The kinds of measurement, in their order."""
        batches = sorted(set(self.batch))
        counts = sorted({1, *batches}) if self.forward else []
        forward = [Work("forward", size, count) for size in dict.fromkeys(self.sizes) for count in counts]
        # Last, so that gradients and the optimizer's state are not yet there when the memory of the others is measured.
        return [*forward, *(Work("training", self.largest, count) for count in batches if self.training)]


@dataclass(frozen=True)
class Work:
    """One kind of measurement: a forward pass on so many images of a size, or a training step."""

    phase: Literal["forward", "training"]
    size: tuple[int, int]
    images: int

    @property
    def key(self) -> str:
        """What its metrics' names begin with."""
        of_size = f"{size_text(self.size)}/" if self.phase == "forward" else ""
        return f"{self.phase}/{of_size}{self.images}"

    def __str__(self) -> str:
        what = "a forward pass" if self.phase == "forward" else "a training step"
        return f"{what} on {self.images} x {size_text(self.size)}"
