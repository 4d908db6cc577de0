"""How often intervals of a difference miss it, and tables call one real that is not, by normal theory.

python tests/rate_of_intervals.py [200000 [2 3 5 8]] prints a Markdown table, each entry with equal and with unequal
spreads over seeds: this program's way beside others, each at its worst over the settings below. How often one interval
covers is integrated, without chance; tables are simulated, with so many trials.

Of trials that are independent a share of 5 % among 20,000 has a standard deviation of 0.15 %. The streams of seeds 0 to
3 happen to lie further out (5.73 % once, with two seeds, spreads of 4 to 1 and no images, where Student's t is exact);
those of 600 others lie as they should, at 5.00 %. So rates here come from more trials, or are integrated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detr_container.compare.intervals import Part, reach, seed_parts

Floats = NDArray[np.float64]
Way = Callable[[float, Floats, Floats, float], Floats]
"""Half-widths [trials] of a - b, from the images' variance, values [trials, S] of both sides and p."""
IMAGES = 4999
"""Degrees of freedom of what images do, as of 5,000 images. Its variance is taken as known."""
RATIOS = (1.0, 1.5, 2.0, 4.0, 8.0, np.inf)
"""Of the spreads of two sides, for single intervals."""
SHARES = tuple(place / 20 for place in range(20))
"""Of the variance of the first difference, what images make, for single intervals."""
SEEDS, GRIDS, TABLE_SHARES = (2, 3, 5, 8), ((2, 2), (2, 4)), (0.0, 0.1, 0.5)
CHUNK = 20_000


def ours(images: float, a: Floats, b: Floats, p: float) -> Floats:
    return reach([Part(np.asarray(images), IMAGES), *seed_parts(a, b)], p)


def _sides(a: Floats, b: Floats) -> list[Part]:
    return [Part(side.var(axis=-1, ddof=1) / side.shape[-1], side.shape[-1] - 1) for side in (a, b)]


def unpaired(images: float, a: Floats, b: Floats, p: float) -> Floats:
    return reach([Part(np.asarray(images), IMAGES), *_sides(a, b)], p)


def _student(variance: Floats, freedom: Floats | float, p: float) -> Floats:
    return -special.stdtrit(freedom, p / 2) * np.sqrt(variance)


def _satterthwaite(parts: Sequence[Part]) -> Floats:
    """Degrees of freedom of a sum of variances."""
    total = sum(part.variance for part in parts)
    # Where nothing varies any number will do.
    share = [part.variance / np.where(total > 0, total, 1.0) for part in parts]
    return 1 / np.maximum(sum(x**2 / part.freedom for x, part in zip(share, parts, strict=True)), 1e-12)


def welch(images: float, a: Floats, b: Floats, p: float) -> Floats:
    parts = [Part(np.asarray(images), IMAGES), *_sides(a, b)]
    return _student(sum(x.variance for x in parts), _satterthwaite(parts), p)


def least_freedom(images: float, a: Floats, b: Floats, p: float) -> Floats:
    return _student(images + sum(x.variance for x in _sides(a, b)), a.shape[-1] - 1.0, p)


def between(images: float, a: Floats, b: Floats, p: float) -> Floats:
    """A quarter of the way from the fewest degrees of freedom to Welch's, images apart."""
    parts = _sides(a, b)
    freedom = 0.75 * (a.shape[-1] - 1) + 0.25 * _satterthwaite(parts)
    apart = _student(sum(x.variance for x in parts), freedom, p)
    return np.hypot(_student(np.asarray(images), IMAGES, p), apart)


def equal_spreads(images: float, a: Floats, b: Floats, p: float) -> Floats:
    both = sum(side.var(axis=-1, ddof=1) for side in (a, b)) / 2
    pooled = Part(2 * both / a.shape[-1], 2 * (a.shape[-1] - 1))
    return reach([Part(np.asarray(images), IMAGES), pooled], p)


WAYS: dict[str, Way] = {
    "seed by seed, squares of half-widths added (used)": ours,
    "each side, squares of half-widths added": unpaired,
    "fewest degrees of freedom for all (Hsu, Scheffé)": least_freedom,
    "a quarter of the way to Welch's, images apart": between,
    "Welch-Satterthwaite": welch,
    "one spread for both sides, images apart": equal_spreads,
}


def draw(rng: np.random.Generator, trials: int, spreads: Sequence[float], seeds: int, share: float) -> Floats:
    """Values [trials, arms, S] without the images' part.

    Scaled so that images are `share` of the variance of the difference of the first two arms' means.
    """
    scale = np.asarray(spreads) * np.sqrt((1 - share) * seeds / (spreads[0] ** 2 + spreads[1] ** 2))
    return rng.normal(size=(trials, len(spreads), seeds)) * scale[:, None]


def pairs_of(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """The pairs of arms that a report compares: those of one row or of one column."""
    places = list(product(range(grid[0]), range(grid[1])))
    return [(a, b) for a, b in combinations(range(len(places)), 2) if any(np.equal(places[a], places[b]))]


def misses(
    way: Way, seeds: tuple[int, int], ratio: float, share: float, p: float = 0.05, nodes: int = 100
) -> tuple[float, float]:
    """How often the interval of a difference of two means misses, and its mean half-width.

    ratio: of the means' standard errors over seeds. Integrated over the variances that are found, of which the
    difference is independent (Gauss and Legendre, in probabilities of the chi-square). Half-widths are in units of the
    true standard error.
    """
    if way is ours and seeds[0] == seeds[1]:
        ratio = np.inf  # The difference seed by seed is normal with one variance, whatever those of the sides.
    place, weight = np.polynomial.legendre.leggauss(nodes)
    sides = []
    for count, spread in zip(seeds, (1.0, 0.0) if np.isinf(ratio) else np.array([ratio, 1.0]), strict=True):
        found = 2 * special.gammaincinv((count - 1) / 2, (place + 1) / 2)
        # Two values apart make the sum of squares; the others are in the middle.
        pattern = np.r_[1.0, -1.0, np.zeros(count - 2)] / np.sqrt(2)
        true = spread**2 / (1 if np.isinf(ratio) else ratio**2 + 1)
        sides.append(np.sqrt(found * (1 - share) * true * count)[:, None] * pattern)
    half = np.broadcast_to(way(share, sides[0][:, None], sides[1][None], p), (nodes, nodes))
    weights = np.outer(weight, weight) / 4
    return float((weights * 2 * special.ndtr(-half)).sum()), float((weights * half).sum())


def false_tables(way: Way, values: Floats, share: float, noise: Floats, grid: tuple[int, int]) -> float:
    """How often Holm calls any difference of a table real when none is: the smallest p decides.

    noise: [trials, arms], what images do to each.
    """
    value, wrong, pairs = values.mean(axis=-1) + noise, np.zeros(len(values), dtype=bool), pairs_of(grid)
    for a, b in pairs:
        wrong |= np.abs(value[:, a] - value[:, b]) > way(share, values[:, a], values[:, b], 0.05 / len(pairs))
    return float(wrong.mean())


def layouts(grid: tuple[int, int]) -> list[list[float]]:
    """Spreads over seeds of a table's arms: all equal; one arm or one row varies alone, one arm 4 times as much."""
    arms, row = grid[0] * grid[1], grid[1]
    one, first = [1.0] + [0.0] * (arms - 1), [1.0] * row + [0.0] * (arms - row)
    return [[1.0] * arms, one, first, [1.0] + [0.25] * (arms - 1)]


def rates(seeds: int, trials: int) -> dict[str, list[str]]:
    """By way, with equal / unequal spreads: the least coverage, the worst shares of false tables, the mean width."""
    rng = np.random.default_rng(100 + seeds)
    false: dict[tuple[str, tuple[int, int]], list[list[float]]] = {(name, g): [[], []] for name in WAYS for g in GRIDS}
    for grid, share in product(GRIDS, TABLE_SHARES):
        for place, spreads in enumerate(layouts(grid)):
            wrong: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(max(1, trials // CHUNK)):
                values = draw(rng, min(trials, CHUNK), spreads, seeds, share)
                noise = rng.normal(size=values.shape[:2]) * np.sqrt(share / 2)
                for name, way in WAYS.items():
                    wrong[name].append(100 * false_tables(way, values, share, noise, grid))
            for name, shares in wrong.items():
                false[name, grid][min(place, 1)].append(float(np.mean(shares)))
    rows = {}
    for name, way in WAYS.items():
        apart = [
            np.array([misses(way, (seeds, seeds), ratio, share) for ratio in ratios for share in SHARES])
            for ratios in (RATIOS[:1], RATIOS[1:])
        ]
        columns = [[f"{100 - 100 * one[:, 0].max():.1f}" for one in apart]]
        columns += [[f"{max(one):.1f}" for one in false[name, grid]] for grid in GRIDS]
        columns.append([f"{one[:, 1].mean():.1f}" for one in apart])
        rows[name] = [" / ".join(one) for one in columns]
    return rows


def main() -> None:
    trials, *seeds = [int(one) for one in sys.argv[1:]] or [200_000]
    heads = ["way", "seeds", "least coverage, %", *(f"false tables {a} x {b}, %" for a, b in GRIDS), "half-width"]
    lines = [heads, ["---"] * len(heads)]
    for count in seeds or SEEDS:
        lines += [[name, str(count), *values] for name, values in rates(count, trials).items()]
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
