"""Dense affinities of one size of map, and what interpolation makes of them for another."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_container.models.layers.dense_affinity import DenseAffinity, resampled

OLD, SIZES = (4, 3), [(6, 5), (3, 3), (2, 6), (1, 1), (3, 4)]


def tokens(grid: tuple[int, int], leading: int = 0) -> int:
    return leading + grid[0] * grid[1]


def drawn(leading: int = 0, heads: int = 2) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, heads, tokens(OLD, leading), tokens(OLD, leading), dtype=torch.float64)


def interpolation(new: tuple[int, int]) -> Tensor:
    """R [N', N]: how each new position is made of the old ones, found by interpolating a map with a single 1."""
    columns = []
    for row, column in product(range(OLD[0]), range(OLD[1])):
        point = torch.zeros(1, 1, *OLD, dtype=torch.float64)
        point[0, 0, row, column] = 1
        columns.append(F.interpolate(point, new, mode="bicubic", antialias=True).flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("leading", [0, 1])
@pytest.mark.parametrize("new", SIZES, ids=str)
def test_the_maths_written_down(new: tuple[int, int], leading: int) -> None:
    affinity, r = drawn(leading), interpolation(new)
    more, fewer = tokens(new), tokens(OLD)
    found = resampled(affinity, OLD, new, leading)
    assert found.shape == (1, 2, leading + more, leading + more)
    for head in range(2):
        rows = []
        for row in affinity[0, head]:
            fine = fewer / more * (r @ row[leading:])
            rows.append(torch.cat([row[:leading], fine + (row[leading:].sum() - fine.sum()) / more]))
        wide = torch.stack(rows)
        expected = torch.cat([wide[:leading], r @ wide[leading:]])
        assert (found[0, head] - expected).abs().max() <= 1e-12


def test_at_its_own_size_nothing_changes() -> None:
    affinity = drawn(1)
    assert resampled(affinity, OLD, OLD, 1) is affinity
    layer = DenseAffinity(2, OLD, 1).double()
    value = torch.randn(3, 2, tokens(OLD, 1), 4, dtype=torch.float64)
    assert torch.allclose(layer(value, OLD), layer.affinity @ value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("leading", [0, 1])
@pytest.mark.parametrize("new", SIZES, ids=str)
def test_rows_sum_to_what_those_around_them_sum_to(new: tuple[int, int], leading: int) -> None:
    affinity = drawn(leading)
    sums = resampled(affinity, OLD, new, leading)[0, :, :, leading:].sum(-1)
    before = affinity[0, :, :, leading:].sum(-1)
    expected = torch.cat([before[:, :leading], before[:, leading:] @ interpolation(new).T], dim=1)
    assert (sums - expected).abs().max() <= 1e-12
    # Rows that all sum to one still do, whatever is in them.
    ones = affinity / affinity[..., leading:].sum(-1, keepdim=True)
    kept = resampled(ones, OLD, new, leading)[..., leading:].sum(-1)
    assert (kept - 1).abs().max() <= 1e-9


@pytest.mark.parametrize("new", SIZES, ids=str)
def test_a_constant_affinity_stays_constant(new: tuple[int, int]) -> None:
    """Every position takes the mean of the map, times a number: of a map of any size."""
    layer = DenseAffinity(1, OLD).double()
    with torch.no_grad():
        layer.affinity.fill_(3 / tokens(OLD))
    value = torch.randn(2, 1, tokens(new), 5, dtype=torch.float64)
    expected = 3 * value.mean(dim=2, keepdim=True).expand_as(value)
    torch.testing.assert_close(layer(value, new), expected)


def test_what_is_interpolated_is_learned() -> None:
    layer = DenseAffinity(2, OLD, leading=1)
    layer(torch.randn(1, 2, tokens((5, 5), 1), 3), (5, 5)).square().sum().backward()
    assert layer.affinity.grad is not None
    assert (layer.affinity.grad != 0).all()


def test_numbers_are_drawn_with_the_deviation_that_is_asked_for() -> None:
    """Of a normal distribution that is cut at 2: with a deviation of 1 that leaves 0.88."""
    torch.manual_seed(0)
    for std, left in ((1.0, 0.88), (0.1, 0.1)):
        affinity = DenseAffinity(4, (8, 8), std=std).affinity
        assert affinity.std().item() == pytest.approx(left, rel=0.02)
        assert affinity.abs().max() <= 2
