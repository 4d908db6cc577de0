"""What mixing draws: cutmix's boxes as published, the shares of both methods, and nothing where both are off."""

import random
from pathlib import Path

import numpy as np
import pytest

from detr_container.datasets.mixing import NO_BOX, Mix, Mixing, cutmix_box

GOLDEN = Path(__file__).parents[1] / "golden" / "deit.npz"


@pytest.mark.parametrize(
    ("name", "share", "centre"),
    [("cutmix", 0.3, (10, 14)), ("cutmix_corner", 0.3, (2, 27)), ("cutmix_all", 0.0, (10, 14))],
)
def test_boxes_are_the_published_ones(name: str, share: float, centre: tuple[int, int]) -> None:
    with np.load(GOLDEN) as arrays:
        pasted, targets = arrays[f"{name}/pasted"], arrays[f"{name}/targets"]
    top, left, bottom, right = cutmix_box(20, 28, share, centre)
    mine = np.zeros((20, 28), dtype=bool)
    mine[top:bottom, left:right] = True
    assert np.array_equal(mine, pasted)
    # Image 0 has label 0 and its partner label 3, of 5 classes with smoothing 0.1: targets tell the corrected share.
    assert targets[0, 0] == pytest.approx(0.02 + 0.9 * (1 - mine.mean()), abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (48, 48), (33, 64)])
def test_the_share_is_what_the_box_leaves(height: int, width: int) -> None:
    generator = random.Random(0)
    for _ in range(200):
        mix = Mixing(cutmix=1.0).draw(generator, height, width)
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / (height * width))


def test_each_batch_draws_one_of_the_two() -> None:
    """In half of the cases each: of 4,000, within four standard deviations; and each method's share has its spread."""
    generator = random.Random(1)
    drawn = [Mixing(0.8, 1.0).draw(generator, 224, 224) for _ in range(4000)]
    mixup = [mix.share for mix in drawn if mix.box == NO_BOX]
    # A box may be empty where the share is all but 1: then it has no place among zeros either, but for a corner.
    assert abs(len(mixup) - 2000) < 4 * np.sqrt(1000)
    # Beta(a, a) has variance 1 / (4 (2 a + 1)).
    assert np.var(mixup) == pytest.approx(1 / (4 * 2.6), rel=0.1)
    assert np.mean(mixup) == pytest.approx(0.5, abs=0.03)
    assert all(mix.share != 1 for mix in drawn if mix.box == NO_BOX)


def test_one_alone_is_always_drawn_and_none_never() -> None:
    generator = random.Random(2)
    assert {Mixing(mixup=0.8).draw(generator, 32, 32).box for _ in range(50)} == {NO_BOX}
    assert sum(Mixing(cutmix=1.0).draw(generator, 32, 32).box != NO_BOX for _ in range(50)) >= 48
    assert Mixing().draw(generator, 32, 32) == Mix(1.0, NO_BOX)
