"""Intervals: their formula recomputed, what is certain, and what may be called real among many differences."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import rate_of_intervals
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from detr_container.compare.intervals import (
    LEVEL,
    Interval,
    Sample,
    holm,
    image_part,
    of_difference,
    of_metric,
    ranks,
    reach,
    resamples,
    seed_parts,
)
from detr_container.compare.matching import match
from detr_container.compare.precision import metrics_of

IMAGES = 50


def sample(seeds: int, seed: int, mean: float = 0.4, count: int = 40, images: int = IMAGES) -> Sample:
    rng = np.random.default_rng(seed)
    plain = mean + rng.normal(0, 0.02, seeds)
    return Sample(plain, plain[:, None] + rng.normal(0, 0.01, (seeds, count)), images)


def student_quantile(freedom: float, p: float = 1 - LEVEL) -> float:
    """Where the two-sided probability of Student's t falls to p, from the incomplete beta function alone."""
    share = special.betaincinv(freedom / 2, 0.5, p)
    return math.sqrt(freedom * (1 - share) / share)


def by_hand(value: float, images: list[float], seeds: list[list[float]], count: int) -> Interval:
    """images: the metric in each resample; seeds: what to take the spread of, none when they do not count."""
    parts = [(statistics.variance(images) * count / (count - 1), count - 1)]
    parts += [(statistics.variance(side) / len(side), len(side) - 1) for side in seeds]
    half = math.sqrt(sum(part * student_quantile(count) ** 2 for part, count in parts))

    def beyond(x: float) -> float:
        return sum(part * student_quantile(count, math.exp(x)) ** 2 for part, count in parts) / value**2 - 1

    p = math.exp(optimize.brentq(beyond, -250, -1e-9, xtol=1e-13))
    error = math.sqrt(sum(part for part, _ in parts))
    return Interval(value, value - half, value + half, error, p, bool(seeds))


def assert_same(one: Interval, other: Interval) -> None:
    values, expected = ([i.value, i.low, i.high, i.error, i.p] for i in (one, other))
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert one.seeds is other.seeds


@pytest.mark.parametrize(("left", "right"), [(1, 1), (2, 2), (4, 4), (5, 3), (1, 4), (3, 1)])
@pytest.mark.parametrize("images", [2, 50])
def test_the_formula_recomputed(left: int, right: int, images: int) -> None:
    a, b = sample(left, 1, images=images), sample(right, 2, 0.39, images=images)
    means = [[statistics.fmean(column) for column in s.resampled.T.tolist()] for s in (a, b)]
    value = statistics.fmean(a.plain.tolist()) - statistics.fmean(b.plain.tolist())
    both = [a.plain.tolist(), b.plain.tolist()] if left > 1 and right > 1 else []
    if left == right > 1:
        both = [[x - y for x, y in zip(*both, strict=True)]]
    assert_same(of_difference(a, b), by_hand(value, [x - y for x, y in zip(*means, strict=True)], both, images))
    own = [a.plain.tolist()] if left > 1 else []
    whole = by_hand(statistics.fmean(a.plain.tolist()), means[0], own, images)
    # No AP is below 0 or above 1.
    assert_same(of_metric(a), replace(whole, low=max(whole.low, 0.0), high=min(whole.high, 1.0)))
    assert a.mean == pytest.approx(statistics.fmean(a.plain.tolist()))
    assert a.deviation == (pytest.approx(statistics.stdev(a.plain.tolist())) if left > 1 else None)


def test_a_difference_the_other_way_round_is_the_same_mirrored() -> None:
    a, b = sample(3, 1), sample(2, 2, 0.3)
    one, other = of_difference(a, b), of_difference(b, a)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert (one.error, one.p) == pytest.approx((other.error, other.p))


def test_zero_is_excluded_exactly_when_p_is_small() -> None:
    intervals = [of_difference(sample(3, seed), sample(3, seed + 50, 0.43)) for seed in range(50)]
    assert [one.excludes_zero for one in intervals] == [one.p < 1 - LEVEL for one in intervals]
    assert {one.excludes_zero for one in intervals} == {True, False}
    below = [of_difference(sample(3, seed + 50, 0.43), sample(3, seed)) for seed in range(50)]
    assert [one.excludes_zero for one in below] == [one.excludes_zero for one in intervals]


def test_what_a_seed_does_to_both_sides_alike_cancels_from_their_difference() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, 4)
    a, b = (Sample(shared + rng.normal(mean, 1e-4, 4), np.full((4, 5), mean), IMAGES) for mean in (0.4, 0.3))
    assert of_difference(a, b).excludes_zero
    assert of_metric(a).error > 20 * of_difference(a, b).error
    # With other numbers of seeds, which runs belong together is not known.
    fewer = Sample(b.plain[:3], b.resampled[:3], IMAGES)
    assert of_difference(a, fewer).error > 20 * of_difference(a, b).error


def certain(images: int, plain: float) -> Sample:
    """A share of images that all say the same."""
    return Sample(np.array([plain]), np.full((1, 20), plain), images, share=True)


@pytest.mark.parametrize("images", [3, 5, 8])
def test_few_images_that_all_say_the_same_prove_no_more_than_a_sign_test_would(images: int) -> None:
    """One side right on all, the other on none: the p of the exact test of the discordant ones, within three times."""
    interval = of_difference(certain(images, 1.0), certain(images, 0.0))
    exact = 2 * 0.5**images
    assert exact / 3 < interval.p < 3 * exact
    assert interval.low < 1 < interval.high
    # One image alone, or none that tells the two apart, shows nothing.
    assert not of_difference(certain(1, 1.0), certain(1, 0.0)).excludes_zero
    assert of_difference(certain(images, 1.0), certain(images, 1.0)).p == pytest.approx(1)


def test_a_share_of_all_or_of_none_is_not_certain() -> None:
    """As far as where one of the 270 images says otherwise."""
    whole, none = of_metric(certain(270, 1.0)), of_metric(certain(270, 0.0))
    right = np.arange(270) > 0
    one_wrong = Sample(np.array([right.mean()]), (resamples(270, 2000) @ right / 270)[None], 270, share=True)
    assert whole.error == none.error == pytest.approx(of_metric(one_wrong).error, rel=0.05)
    assert (whole.low, whole.high) == (pytest.approx(1 - 1.97 / 270, abs=1e-4), 1.0)
    assert (none.low, none.high) == (0.0, pytest.approx(1.97 / 270, abs=1e-4))


@pytest.mark.parametrize("value", [1e-12, 1e-3, 1.0, 1e6, 1e40, 1e200])
def test_p_is_the_level_of_the_interval_that_ends_at_zero(value: float) -> None:
    rng = np.random.default_rng(0)
    sides = [Sample(np.array([0.0, 1e-4, 3e-4])[:n], rng.normal(0, 1e-4, (n, 30)), IMAGES) for n in (3, 2)]
    sides[0] = replace(sides[0], plain=sides[0].plain + value)
    interval = of_difference(*sides)
    parts = [image_part(sides[0].resampled.mean(axis=0) - sides[1].resampled.mean(axis=0), IMAGES)]
    parts += seed_parts(sides[0].plain, sides[1].plain)
    if interval.p:
        assert float(reach(parts, interval.p)) == pytest.approx(abs(interval.value), rel=1e-6)
    else:
        assert value >= 1e40


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (8, 8), (2, 3), (2, 8), (5, 3)])
def test_intervals_miss_as_often_as_stated_at_most_whatever_the_spreads(seeds: tuple[int, int]) -> None:
    """Integrated, by normal theory, at the levels of single intervals and of Holm's method."""
    ratios, shares, levels = (0.0, 0.25, 1.0, 2.0, math.inf), (0.0, 0.05, 0.2, 0.5, 0.95), (0.05, 0.05 / 4, 0.05 / 16)
    for way in (rate_of_intervals.ours, rate_of_intervals.unpaired):
        for ratio, share, p in product(ratios, shares, levels):
            missed, _ = rate_of_intervals.misses(way, seeds, ratio, share, p)
            assert missed <= p + 1e-5
            if ratio == math.inf and share == 0:
                # Seeds of one side alone: Student's t, exactly.
                assert missed == pytest.approx(p, abs=1e-5)
    if seeds in [(2, 2), (3, 3)]:
        assert rate_of_intervals.misses(rate_of_intervals.welch, seeds, math.inf, 0.05)[0] > 0.07


def test_tables_and_intervals_of_few_seeds_simulated() -> None:
    """Rates of intervals are those that were integrated; with all arms, and one alone, more variable than others.

    Margins of four standard deviations: of 48 shares one is further out by chance in one of 300 streams.
    """
    trials, grid, single = 100_000, (2, 2), (1, 2)
    rng = np.random.default_rng(1)
    careless = []
    for seeds, ratio, share in product((2, 3), (1.0, 4.0, math.inf), (0.0, 0.2)):
        drawn = rate_of_intervals.draw(rng, trials, [1.0, *[1 / ratio] * 3], seeds, share)
        noise = rng.normal(size=(trials, 4)) * math.sqrt(share / 2)
        for way in (rate_of_intervals.ours, rate_of_intervals.unpaired):
            expected, _ = rate_of_intervals.misses(way, (seeds, seeds), ratio, share)
            missed = rate_of_intervals.false_tables(way, drawn[:, :2], share, noise[:, :2], single)
            assert abs(missed - expected) <= 4 * math.sqrt(expected * (1 - expected) / trials)
            wrong = rate_of_intervals.false_tables(way, drawn, share, noise, grid)
            assert wrong <= 1 - LEVEL + 4 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
        careless.append(rate_of_intervals.false_tables(rate_of_intervals.welch, drawn, share, noise, grid))
    assert max(careless) > 1.5 * (1 - LEVEL)


@pytest.mark.parametrize(("first", "others"), [(2, 2), (3, 3), (2, 5)])
def test_tables_of_differences_are_wrong_at_most_as_often_as_stated(first: int, others: int) -> None:
    """A 2 x 2 grid in which one arm alone varies: what a report computes, from samples to verdicts."""
    rng, trials, images = np.random.default_rng(first), 800, 200
    grid = [(0, 1), (2, 3), (0, 2), (1, 3)]
    wrong = 0
    for _ in range(trials):
        arms = []
        for place in range(4):
            count, shift = (others if place else first), rng.normal(0, 0.01)
            plain = 0.4 + shift + rng.normal(0, 0.0 if place else 0.02, count)
            arms.append(Sample(plain, plain[:, None] + rng.normal(0, 0.01, 40), images))
        wrong += any(holm([of_difference(arms[a], arms[b]).p for a, b in grid]))
    assert wrong / trials <= 1 - LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def test_what_is_always_the_same_is_certain() -> None:
    one = sample(2, 0)
    same = Sample(one.plain[:1], one.resampled[:1], IMAGES)
    none = of_difference(same, same)
    assert (none.value, none.low, none.high, none.error, none.p) == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert not none.excludes_zero
    shifted = Sample(same.plain + 0.5, same.resampled + 0.5, IMAGES)
    constant = of_difference(
        Sample(np.array([0.75]), np.full((1, 5), 0.75), 9), Sample(np.array([0.5]), np.full((1, 5), 0.5), 9)
    )
    assert (constant.low, constant.high, constant.p) == (0.25, 0.25, 0.0)
    assert constant.excludes_zero
    assert of_difference(shifted, same).error < 1e-12


def test_identical_detectors_differ_by_exactly_nothing() -> None:
    world = simulated.scene(30, 3, 0)
    found = simulated.detect(world, 0.5, 1, per_image=10)
    weights = np.concatenate([np.ones((1, 30)), resamples(30, 20)])
    rows = [metrics_of(match(world.ground, found), weights).overall[:, 0] for _ in range(2)]
    a, b = (Sample(row[:1], row[None, 1:], 30) for row in rows)
    none = of_difference(a, b)
    assert (none.value, none.low, none.high, none.p) == (0.0, 0.0, 0.0, 1.0)
    assert of_metric(a).error > 0.01


def test_what_is_hard_for_both_cancels_from_their_difference() -> None:
    world = simulated.scene(80, 3, 0)
    weights = np.concatenate([np.ones((1, 80)), resamples(80, 100)])

    def evaluated(skill: float, seed: int) -> Sample:
        row = metrics_of(match(world.ground, simulated.detect(world, skill, seed, 10)), weights).overall[:, 0]
        return Sample(row[:1], row[None, 1:], 80)

    a, b = evaluated(0.5, 1), evaluated(0.6, 2)
    unpaired = math.hypot(of_metric(a).error, of_metric(b).error)
    assert of_difference(a, b).error < 0.85 * unpaired


@pytest.mark.filterwarnings("error")
def test_metrics_that_do_not_exist_are_not_compared() -> None:
    a, b = sample(2, 1), sample(2, 2)
    nothing = Sample(np.full(2, np.nan), np.full((2, 40), np.nan), IMAGES)
    unknown = Sample(nothing.plain[:1], b.resampled[:1], IMAGES)
    for interval in (of_difference(a, nothing), of_difference(nothing, b), of_metric(nothing), of_metric(unknown)):
        assert all(math.isnan(x) for x in (interval.value, interval.low, interval.high, interval.error, interval.p))
        assert not interval.excludes_zero
    single = Sample(a.plain, a.resampled[:, :1], IMAGES)  # one resample has no spread
    assert math.isnan(of_metric(single).error)
    assert of_metric(single).value == a.mean
    none = Sample(a.plain, np.full((2, 3), np.nan), IMAGES)
    assert math.isnan(of_metric(none).error)


def test_resamples_without_the_metric_are_left_out() -> None:
    a, b = sample(2, 1), sample(2, 2)
    gaps = np.arange(40) % 5 == 0
    holes = Sample(a.plain, np.where(gaps, np.nan, a.resampled), IMAGES)
    less = [Sample(s.plain, s.resampled[:, ~gaps], IMAGES) for s in (a, b)]
    assert_same(of_difference(holes, b), of_difference(*less))
    assert_same(of_difference(b, holes), of_difference(*less[::-1]))
    assert_same(of_metric(holes), of_metric(less[0]))


def test_resamples_draw_as_many_images_as_there_are() -> None:
    drawn = resamples(30, 400)
    assert drawn.shape == (400, 30)
    assert (drawn.sum(axis=1) == 30).all()
    assert (drawn == np.rint(drawn)).all()
    assert (drawn >= 0).all()
    np.testing.assert_array_equal(resamples(30, 400), drawn)
    np.testing.assert_array_equal(resamples(30, 10), drawn[:10])
    assert (resamples(30, 400, seed=1) != drawn).any(axis=1).all()
    assert len(np.unique(drawn, axis=0)) == 400
    # Each image is drawn once on average, and is binomial: variance 1 - 1 / N, missing with (1 - 1 / N)^N.
    assert np.abs(drawn.mean(axis=0) - 1).max() < 5 * math.sqrt(1 / 400)
    assert drawn.var() == pytest.approx(1 - 1 / 30, rel=0.05)
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 30) ** 30, abs=0.02)


def naive_holm(p: list[float], level: float = LEVEL) -> list[bool]:
    """By adjusted p: the largest of (how many are not smaller) x p among those that are not larger."""
    known = sorted(x for x in p if not math.isnan(x))
    adjusted = [max((len(known) - i) * known[i] for i in range(place + 1)) for place in range(len(known))]
    return [not math.isnan(x) and adjusted[known.index(x)] <= 1 - level for x in p]


@given(st.lists(st.floats(0, 1) | st.just(math.nan) | st.floats(0, 0.03), unique=True, max_size=8))
def test_holm_is_its_definition(p: list[float]) -> None:
    assert holm(p) == naive_holm(p)
    assert holm(p, 0.8) == naive_holm(p, 0.8)


def test_holm_by_hand() -> None:
    # Limits: 0.05 / 4, / 3, / 2, / 1. The third fails, and what comes after it is not considered any more.
    assert holm([0.01, 0.03, 0.015, 0.031]) == [True, False, True, False]
    assert holm([0.011, 0.02, 0.021, 0.022]) == [True, False, False, False]
    assert holm([1 - LEVEL]) == [True]
    assert holm([]) == []
    assert holm([math.nan, 0.04, math.nan]) == [False, True, False]


def test_holm_is_wrong_in_any_of_many_at_most_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    trials, wrong, careless, found = 4000, 0, 0, 0
    for _ in range(trials):
        null = rng.random(8)
        real = holm([*null, 1e-4, 1e-5])
        wrong += any(real[:8])
        careless += bool((null <= 1 - LEVEL).any())
        found += all(real[8:])
    tolerance = 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
    assert 0.03 < wrong / trials <= 1 - LEVEL + tolerance
    assert careless / trials > 0.25
    assert found == trials


@settings(max_examples=60)
@given(values=st.lists(st.integers(0, 5).map(float), min_size=1, max_size=6), data=st.data())
def test_ranks_count_those_that_are_certainly_better_and_worse(values: list[float], data: st.DataObject) -> None:
    count = len(values)
    distinct = [[False] * count for _ in values]
    for i, j in combinations(range(count), 2):
        distinct[i][j] = distinct[j][i] = data.draw(st.booleans())
    for i, (best, worst) in enumerate(ranks(values, distinct)):
        others = [j for j in range(count) if distinct[i][j]]
        assert best == 1 + len([j for j in others if values[j] > values[i]])
        assert worst == count - len([j for j in others if values[j] < values[i]])


def test_ranks_by_hand() -> None:
    apart = [[False, False, True], [False, False, False], [True, False, False]]
    assert ranks([0.3, 0.2, 0.1], apart) == [(1, 2), (1, 3), (2, 3)]
    assert ranks([0.1, 0.3], [[False, True], [True, False]]) == [(2, 2), (1, 1)]
    assert ranks([0.1, 0.3], [[False, False], [False, False]]) == [(1, 2), (1, 2)]
