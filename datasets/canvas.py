"""Few sizes for many: the canvases that batches are padded to, where every new size costs a GPU seconds.

They follow from the images' sizes and the settings alone, so every process and every resume has the same: random
numbers come from a generator whose stream is fixed, and sums are of whole numbers, exact in any order.

Names of sizes: I images, B batches, P different sizes of batches, C candidates. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .batch import Batch
from .padding import Padding, up
from .sizes import Sides, drawn, reach
from .transforms import Augmentation, Size

STEP, LINES = 32, 42
"""Sides of canvases are multiples of so many pixels or more: of a 42nd part of the longest side, if that is more."""
DRAWN = 1 << 16
"""Images that are drawn to see what batches training will make, and at least a 32nd part as many batches."""
WORTH = 1e-4
"""What one more canvas must save at least, as a share of all pixels."""
ROUNDS = 4
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Canvases:
    """Canvases, by area, and the pixels that they add to those of the same batches padded to their largest image."""

    sizes: tuple[Size, ...]
    waste: float

    def __str__(self) -> str:
        """In words."""
        (low, left), (high, right) = self.sizes[0], self.sizes[-1]
        among = f" from {low} x {left}" if len(self.sizes) > 1 else ""
        return f"{len(self.sizes)}{among} to {high} x {right} pixels, {self.waste:.1%} more pixels"


def for_training(sizes: Sides, augmentation: Augmentation, batch: int, step: int, limit: int, most: int) -> Canvases:
    """Canvases for random batches of images of these sizes, [I, 2], which hold all that augmentation can make.

    step, limit: see `choose`; most: how many canvases at most.
    """
    tall, wide, _ = reach(np.unique(sizes, axis=0), augmentation)
    return choose(batch_sizes(sizes, augmentation, batch), (int(tall.max()), int(wide.max())), step, limit, most)


def for_evaluation(sizes: Sides, augmentation: Augmentation, batch: int, step: int, limit: int, most: int) -> Canvases:
    """Canvases for the batches of an evaluation on images of these sizes, [I, 2] in order; see `for_training`."""
    # Nothing is random in an evaluation.
    sides = drawn(sizes[:, 0], sizes[:, 1], augmentation, lambda: np.zeros(len(sizes)))
    starts = np.arange(0, len(sizes), batch)
    found = np.stack([np.maximum.reduceat(side, starts) for side in sides], axis=1)
    return choose(found, (int(found[:, 0].max()), int(found[:, 1].max())), step, limit, most)


def batch_sizes(sizes: Sides, augmentation: Augmentation, batch: int, batches: int = 0, seed: int = 0) -> Sides:
    """[B, 2] sizes of random batches, before padding; batches: how many, 0 for enough to choose canvases by."""
    count = batches or max(DRAWN // batch, DRAWN // 32)
    source = np.random.PCG64(seed)

    def uniform() -> Numbers:
        # Of the generator itself, whose stream no version of NumPy changes.
        return (source.random_raw(count * batch) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    heights, widths = sizes[(uniform() * len(sizes)).astype(np.int64)].T
    sides = drawn(heights, widths, augmentation, uniform)
    return np.stack([side.reshape(count, batch).max(axis=1) for side in sides], axis=1)


def choose(found: Sides, largest: Size, step: int, limit: int, most: int) -> Canvases:
    """The canvases on a grid which add least to batches of these sizes, [B, 2].

    largest: held by one of them, whatever is found; step: of the grid; limit: the longest side that a canvas can have
    though it is none of the grid's, 0: there is none; most: how many canvases at most.
    """
    step = up(max(step, max(largest) // LINES), step)
    on_grid = np.minimum(-(-found // step) * step, limit or np.iinfo(np.int64).max)
    needed, counts = np.unique(on_grid, axis=0, return_counts=True)
    last = tuple(min(up(side, step), limit or up(side, step)) for side in largest)
    lines = [np.unique([*needed[:, axis].tolist(), last[axis]]) for axis in (0, 1)]
    candidates = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
    chosen = _least(needed, counts, candidates, most)
    by_area = sorted((height * width, height, width) for height, width in candidates[chosen].tolist())
    canvases = tuple((height, width) for _, height, width in by_area)
    return Canvases(canvases, waste(found, canvases))


def _least(needed: Sides, counts: Sides, candidates: Sides, most: int) -> list[int]:
    """Which candidates, [C, 2], to choose for what is needed, [P, 2], so often; the last one is always among them.

    One after the other, each the one that saves most; then each is moved to where it saves most, a few times over.
    """
    area = candidates.prod(axis=1).astype(np.float64)
    fits = (candidates >= needed[:, None]).all(axis=2)
    # [P, C]: whole numbers below 2 ** 53 even when they are added up.
    pixels = np.where(fits, area, area[-1])
    weights, worth = counts.astype(np.float64), WORTH * float(counts @ needed.prod(axis=1))
    chosen, least = [len(candidates) - 1], pixels[:, -1]
    while len(chosen) < most:
        best, saved = _best(pixels, least, weights)
        if saved <= worth:
            break
        chosen.append(best)
        least = np.minimum(least, pixels[:, best])
    for _ in range(ROUNDS):
        before = list(chosen)
        for place in range(1, len(chosen)):
            others = pixels[:, chosen[:place] + chosen[place + 1 :]].min(axis=1)
            chosen[place], _ = _best(pixels, others, weights)
        if chosen == before:
            break
    return chosen


def _best(pixels: Numbers, least: Numbers, weights: Numbers) -> tuple[int, float]:
    """The candidate that saves most, the first of several, and how many pixels."""
    saved = weights @ np.maximum(least[:, None] - pixels, 0.0)
    best = int(saved.argmax())
    return best, float(saved[best])


def waste(found: Sides, canvases: Sequence[Size]) -> float:
    """The pixels that canvases add to batches of these sizes, [B, 2], as a share of theirs; all must fit."""
    area = np.array([height * width for height, width in canvases])
    fits = (np.array(canvases) >= found[:, None]).all(axis=2)
    padded = np.where(fits, area, np.iinfo(np.int64).max).min(axis=1)
    return float(padded.sum() / found.prod(axis=1).sum()) - 1.0


@dataclass
class Waste:
    """What canvases add to the batches that are taken, in pixels of one image of each.

    needed: of batches padded to their largest image; padded: of the canvases.
    """

    needed: int = 0
    padded: int = 0

    def counted(self, supply: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, counted as they are taken."""
        for batch in supply:
            height, width = batch.sizes.amax(dim=0).tolist()
            self.needed += height * width
            self.padded += batch.images.shape[2] * batch.images.shape[3]
            yield batch

    def taken(self) -> float | None:
        """The added share since it was last asked for; None when nothing was counted."""
        share = self.padded / self.needed - 1 if self.needed else None
        self.needed = self.padded = 0
        return share


def drawn_sizes(
    sizes: Sides, augmentation: Augmentation, batch: int, padding: Padding, count: int, seed: int = 0
) -> list[Size]:
    """What so many random batches of images of these sizes, [I, 2], are padded to."""
    return [padding.size(*size) for size in batch_sizes(sizes, augmentation, batch, count, seed).tolist()]
