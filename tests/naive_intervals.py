"""Intervals and verdicts by their definition."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
from scipy import optimize, stats


def interval_of(
    images: int, a: list[np.ndarray], b: list[np.ndarray] | None = None, share: bool = False
) -> dict[str, float]:
    """The interval of a metric or a difference, in per cent: of each seed the plain metric, then those of resamples.

    Both sides have the same seeds, in the same order. share: the metric is a share of the images, of which one that
    says otherwise is reckoned with where all say the same.
    """
    sides = [np.stack(side) for side in (a, b) if side is not None]
    value = sides[0][:, 0].mean() - (sides[1][:, 0].mean() if len(sides) > 1 else 0)
    together = sides[0][:, 1:].mean(axis=0) - (sides[1][:, 1:].mean(axis=0) if len(sides) > 1 else 0)
    variance = statistics.variance(together) * images / (images - 1)
    if share and len(set(together.tolist())) == 1:
        variance = ((max(value, 1 - value) if b is None else 1 + abs(value)) / images) ** 2
    parts = [(variance, images - 1)]
    if (seeds := len(a)) > 1:
        spread = sides[0][:, 0] - (sides[1][:, 0] if len(sides) > 1 else 0)
        parts.append((statistics.variance(spread) / seeds, seeds - 1))

    def half(p: float) -> float:
        return math.sqrt(sum(part * stats.t.isf(p / 2, count) ** 2 for part, count in parts))

    reach = half(0.05)
    low, high = value - reach, value + reach
    if b is None:
        return {"value": 100 * value, "low": 100 * max(low, 0.0), "high": 100 * min(high, 1.0)}
    p = math.exp(optimize.brentq(lambda x: half(math.exp(x)) - abs(value), -100, 0, xtol=1e-14)) if value else 1.0
    return {"value": 100 * value, "low": 100 * low, "high": 100 * high, "p": p}


def real_of(p_values: dict[Any, float]) -> set[Any]:
    """Holm: the smallest of n p is compared with 5 % / n, the next with 5 % / (n - 1), until one is larger."""
    order = sorted(p_values, key=lambda one: p_values[one])
    kept = itertools.takewhile(lambda at: p_values[order[at]] <= 0.05 / (len(order) - at), range(len(order)))
    return {order[at] for at in kept}
