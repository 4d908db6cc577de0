"""How sure a metric is: resampled images, repeated seeds, and what both mean for a difference.

Two things make a result another one next time: which images are in the validation set, and the seed of the training.
The first is measured by a paired bootstrap over images: the same resamples for all runs, so that what makes an image
hard for all of them cancels from a difference. The second is measured by runs with other seeds. Their variances add,
with the degrees of freedom of Welch (1947) and Satterthwaite (1946), and the interval is Student's. It is centred on
the plain metric: resampled AP is a little too high on average, since repeated images agree with themselves.

The spread over seeds was measured on one validation set, so a part of the first is in it too, which makes intervals
wider rather than narrower. With one seed a side, nothing is known of the second, and an interval states that.

Shapes: S seeds, B resamples, N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
LEVEL = 0.95
_TINY = 1e-150
"""The least p that is distinguished from 0."""


@dataclass(frozen=True)
class Part:
    """An estimated variance [...] of a mean or a difference, and its degrees of freedom."""

    variance: Floats
    freedom: int


@dataclass(frozen=True)
class Sample:
    """One metric of one arm over its seeds: plain: [S], resampled: [S, B] for the same resamples as others.

    images: that it is of; share: whether it is the share of them that is right.
    """

    plain: Floats
    resampled: Floats
    images: int
    share: bool = False

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.plain.mean())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds; None of one."""
        return float(self.plain.std(ddof=1)) if len(self.plain) > 1 else None


@dataclass(frozen=True)
class Interval:
    """A metric or a difference of two. seeds: whether the interval covers training again with another seed, too.

    p: two-sided, of there being no difference from 0.
    """

    value: float
    low: float
    high: float
    error: float
    p: float
    seeds: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0


def resamples(images: int, count: int, seed: int = 0) -> Floats:
    """How often each image is drawn [B, N] when N are drawn with replacement."""
    drawn = np.empty((count, images))
    for row, times in zip(drawn, draws(images, count, seed), strict=True):
        row[:] = times
    return drawn


def draws(images: int, count: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """The same, one [N] after the other, for who has no room for all."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(rng.integers(0, images, images), minlength=images)


def of_metric(sample: Sample) -> Interval:
    """The interval of a metric itself, which is a share: it ends at 0 and at 1."""
    other = max(sample.mean, 1 - sample.mean) if sample.share else 0.0
    images = image_part(sample.resampled.mean(axis=0), sample.images, other)
    whole = _interval(sample.mean, images, seed_parts(sample.plain))
    low, high = np.clip([whole.low, whole.high], 0.0, 1.0).tolist()
    return replace(whole, low=low, high=high)


def of_difference(a: Sample, b: Sample) -> Interval:
    """The interval of a's metric less b's. Where both have as many seeds, they are in the same order."""
    value = a.mean - b.mean
    other = 1 + abs(value) if a.share else 0.0
    images = image_part(a.resampled.mean(axis=0) - b.resampled.mean(axis=0), a.images, other)
    return _interval(value, images, seed_parts(a.plain, b.plain))


def image_part(resampled: Floats, images: int, other: float = 0.0) -> Part:
    """What other images do, from a metric in each resample [B]; those in which it does not exist are left out.

    other: how far from the metric an image can be at most, 0: not known. Where all images say the same, resamples
    cannot vary, though the next image may say otherwise: the error is then what one such image among them would make.
    """
    present = resampled[~np.isnan(resampled)]
    if other and len(present) and np.ptp(present) == 0:
        return Part(np.asarray((other / images) ** 2), max(1, images - 1))
    variance = present.var(ddof=1) if len(present) > 1 else np.nan
    # n / (n - 1): resampled images vary as the sample does, which is a little less than what it was drawn from.
    return Part(np.asarray(variance * images / max(1, images - 1)), max(1, images - 1))


def seed_parts(*sides: Floats) -> list[Part]:
    """What other seeds do to a mean or a difference of two, from values [..., S]; nothing where a side has one seed.

    Runs that share a seed stand in the same place of both sides. Where some seeds are in one side only, the parts are
    right on average or too large as long as runs of the same seed are not less alike than others.
    """
    if any(side.shape[-1] < 2 for side in sides):
        return []
    if len({side.shape[-1] for side in sides}) == 1:
        # The difference, seed by seed.
        sides = (sides[0] - sum(sides[1:]),)
    return [Part(side.var(axis=-1, ddof=1) / side.shape[-1], side.shape[-1] - 1) for side in sides]


def reach(parts: Sequence[Part], p: float) -> Floats:
    """The half-width [...] of an interval that misses the truth with probability `p` at most."""
    return np.sqrt(sum((special.stdtrit(part.freedom, p / 2) ** 2 * part.variance for part in parts), np.zeros(())))


def holm(p: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several differences are real when all are considered: Holm (1979), wrong in any with 1 - level at most.

    A p that is not a number (nothing could be compared) is never one of them.
    """
    real = [False] * len(p)
    order = sorted((index for index in range(len(p)) if not math.isnan(p[index])), key=lambda index: p[index])
    for place, index in enumerate(order):
        if p[index] > (1 - level) / (len(order) - place):
            break
        real[index] = True
    return real


def ranks(values: Sequence[float], distinct: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """The best and the worst place that each can have, 1 is the best.

    distinct[i][j]: whether i and j differ for certain; those that do not may stand either way round.
    """
    places = []
    for i, value in enumerate(values):
        above = sum(distinct[i][j] and other > value for j, other in enumerate(values))
        below = sum(distinct[i][j] and other < value for j, other in enumerate(values))
        places.append((1 + above, len(values) - below))
    return places


def _interval(value: float, images: Part, seeds: Sequence[Part]) -> Interval:
    parts = [images, *seeds]
    variance = float(sum(part.variance for part in parts))
    if math.isnan(value) or math.isnan(variance):
        return Interval(value, math.nan, math.nan, math.nan, math.nan, bool(seeds))
    if variance == 0:
        return Interval(value, value, value, 0.0, float(value == 0), bool(seeds))
    half = float(reach(parts, 1 - LEVEL))
    p = _probability(abs(value), parts)
    return Interval(value, value - half, value + half, math.sqrt(variance), p, bool(seeds))


def _probability(distance: float, parts: Sequence[Part]) -> float:
    """The p at which the reach of these parts is the distance, by halving its logarithm's range; 0 of less than any."""
    low, high = math.log(_TINY), 0.0
    if reach(parts, _TINY) < distance:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reach(parts, math.exp(middle)) > distance else (low, middle)
    return math.exp(high)
