"""How often intervals of a difference miss it, and tables call one real that is not, by normal theory.

python tests/rate_of_intervals.py [200000] prints a Markdown table: this program's way beside others, each at its worst
over ratios of the spreads of seeds (1, 2, 4, one side alone), shares of the variance that images make, and correlations
of runs that share a seed. Widths are means over those without correlation, in units of the true standard error.
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
"""Half-widths [trials] of a - b, from the images' variance, figures [trials, S] of both sides and p."""
IMAGES = 4999
RATIOS, SHARES, CORRELATIONS = (1.0, 2.0, 4.0, np.inf), (0.0, 0.2, 0.5, 0.8), (0.0, 0.5)
SEEDS, GRIDS = (2, 3, 5, 8), ((2, 2), (2, 4))


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


def draw(
    rng: np.random.Generator, trials: int, spreads: Sequence[float], seeds: int, share: float, rho: float
) -> Floats:
    """Figures [trials, cells, S] without the images' part, those of one seed with this correlation.

    Scaled so that images are `share` of the variance of the difference of the first two cells' means.
    """
    common = rng.normal(size=(trials, 1, seeds))
    own = rng.normal(size=(trials, len(spreads), seeds))
    scale = np.asarray(spreads) * np.sqrt((1 - share) * seeds / (spreads[0] ** 2 + spreads[1] ** 2))
    return (np.sqrt(rho) * common + np.sqrt(1 - rho) * own) * scale[:, None]


def pairs_of(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """The pairs of cells that a report compares: those of one row or of one column."""
    places = list(product(range(grid[0]), range(grid[1])))
    return [(a, b) for a, b in combinations(range(len(places)), 2) if any(np.equal(places[a], places[b]))]


def misses(way: Way, figures: Floats, share: float, noise: Floats) -> tuple[float, float]:
    """How often the interval of the first two cells misses, and its mean half-width. noise: [trials, cells]."""
    value = figures.mean(axis=-1) + noise
    half = way(share, figures[:, 0], figures[:, 1], 0.05)
    return float((np.abs(value[:, 0] - value[:, 1]) > half).mean()), float(half.mean())


def false_tables(way: Way, figures: Floats, share: float, noise: Floats, grid: tuple[int, int]) -> float:
    """How often Holm calls any difference of a table real when none is: the smallest p decides."""
    value, wrong, pairs = figures.mean(axis=-1) + noise, np.zeros(len(figures), dtype=bool), pairs_of(grid)
    for a, b in pairs:
        wrong |= np.abs(value[:, a] - value[:, b]) > way(share, figures[:, a], figures[:, b], 0.05 / len(pairs))
    return float(wrong.mean())


def rates(seeds: int, trials: int) -> dict[str, tuple[float, float, list[float]]]:
    """By way: the worst share of misses, the mean half-width, and for each grid the worst share of false tables."""
    rng = np.random.default_rng(seeds)
    missed: dict[str, list[float]] = {name: [] for name in WAYS}
    widths: dict[str, list[float]] = {name: [] for name in WAYS}
    false: dict[str, list[list[float]]] = {name: [[] for _ in GRIDS] for name in WAYS}
    for ratio, share, rho in product(RATIOS, SHARES, CORRELATIONS):
        other = 1 / ratio
        for place, grid in enumerate(GRIDS):
            cells = grid[0] * grid[1]
            figures = draw(rng, trials, [1.0, *[other] * (cells - 1)], seeds, share, rho)
            noise = rng.normal(size=(trials, cells)) * np.sqrt(share / 2)
            for name, way in WAYS.items():
                false[name][place].append(false_tables(way, figures, share, noise, grid))
                if not place:
                    miss, width = misses(way, figures, share, noise)
                    missed[name].append(miss)
                    widths[name] += [width] if rho == 0 else []
    return {n: (max(missed[n]), float(np.mean(widths[n])), [max(one) for one in false[n]]) for n in WAYS}


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    heads = ["way", "seeds", "least coverage, %", *(f"false tables {a} x {b}, %" for a, b in GRIDS), "half-width"]
    lines = [heads, ["---"] * len(heads)]
    for seeds in SEEDS:
        for name, (miss, width, false) in rates(seeds, trials).items():
            figures = [f"{100 * (1 - miss):.1f}", *(f"{100 * one:.1f}" for one in false), f"{width:.1f}"]
            lines.append([name, str(seeds), *figures])
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
