import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from detr_container.models.layers.position_encoding import Extent, LearnedPosition, SinePosition, extent


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    stride=st.sampled_from([4, 8, 16, 32]),
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3),
)
def test_padding_is_the_nearest_interpolation_of_the_mask(
    height: int, width: int, stride: int, shares: list[tuple[float, float]]
) -> None:
    sizes = torch.tensor([(1 + int(a * (height - 1)), 1 + int(b * (width - 1))) for a, b in shares])
    map_size = (-(-height // stride), -(-width // stride))
    mask = torch.ones(len(shares), height, width)
    for image, (rows, columns) in zip(mask, sizes.tolist(), strict=True):
        image[:rows, :columns] = 0
    expected = F.interpolate(mask[None], size=map_size)[0].bool().flatten(1)
    cover = extent(sizes, (height, width), map_size)
    assert torch.equal(cover.padding(), expected)
    assert not cover.padding()[:, 0].any()


def naive_sine(cover: Extent, channels: int) -> torch.Tensor:
    """Every position and channel by itself, from cumulative sums of the mask."""
    result = torch.zeros(len(cover.rows), cover.height, cover.width, channels, dtype=torch.float64)
    half = channels // 2
    valid = ~cover.padding().unflatten(1, (cover.height, cover.width))
    for image, mask in enumerate(valid):
        for row in range(cover.height):
            for column in range(cover.width):
                y = float(mask[: row + 1, column].sum()) / (float(mask[:, column].sum()) + 1e-6) * 2 * math.pi
                x = float(mask[row, : column + 1].sum()) / (float(mask[row].sum()) + 1e-6) * 2 * math.pi
                for channel in range(half):
                    period = 10000 ** (2 * (channel // 2) / half)
                    function = math.cos if channel % 2 else math.sin
                    result[image, row, column, channel] = function(y / period)
                    result[image, row, column, half + channel] = function(x / period)
    return result.flatten(1, 2).float()


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3),
    quarter=st.integers(1, 4),
)
def test_sine_positions_are_those_of_naive_loops(
    height: int, width: int, shares: list[tuple[float, float]], quarter: int
) -> None:
    rows = torch.tensor([1 + int(a * (height - 1)) for a, _ in shares])
    columns = torch.tensor([1 + int(b * (width - 1)) for _, b in shares])
    cover = Extent(height, width, rows, columns)
    ours = SinePosition(4 * quarter)(cover)
    expected = naive_sine(cover, 4 * quarter)
    # On padding, which nothing attends to, the published cumulative sums run along rows and columns that are all
    # padding; only valid positions have a position.
    valid = ~cover.padding()
    torch.testing.assert_close(ours[valid], expected[valid], rtol=0, atol=1e-5)


def test_learned_positions_hold_x_first() -> None:
    position = LearnedPosition(6, limit=5)
    ours = position(Extent(2, 4, torch.tensor([2, 1]), torch.tensor([4, 3])))
    assert ours.shape == (2, 8, 6)
    for row in range(2):
        for column in range(4):
            expected = torch.cat((position.col_embed.weight[column], position.row_embed.weight[row]))
            assert torch.equal(ours[0, row * 4 + column], expected)
            assert torch.equal(ours[1, row * 4 + column], expected)


def test_settings_that_do_not_work_are_refused() -> None:
    with pytest.raises(ValueError, match="5 positions a side, the feature map has 3 x 6"):
        LearnedPosition(8, limit=5)(Extent(3, 6, torch.tensor([3]), torch.tensor([6])))
    with pytest.raises(ValueError, match=r"multiple of 4, not 30: set head\.width"):
        SinePosition(30)
