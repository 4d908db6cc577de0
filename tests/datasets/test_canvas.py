"""Canvases: few, little wasted, the same everywhere, and large enough for all that augmentation can make."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from detr_container.datasets.canvas import (
    batch_sizes,
    choose,
    drawn_sizes,
    for_evaluation,
    for_training,
    waste,
)
from detr_container.datasets.dataset import random_of
from detr_container.datasets.padding import Padding
from detr_container.datasets.sizes import Sides, drawn
from detr_container.datasets.transforms import Augmentation, Size

SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
COCO = Augmentation(SCALES, 1333, augment="detr")
EVALUATION = Augmentation((800,), 1333)

# How often COCO's images have which sizes, roughly: most are 640 pixels long, every tenth has sides of its own.
OFTEN: dict[Size, int] = {
    (480, 640): 27, (427, 640): 18, (640, 480): 10, (640, 427): 6, (426, 640): 4, (428, 640): 4, (640, 426): 2,
    (375, 500): 4, (500, 375): 2, (333, 500): 3, (500, 333): 2, (640, 640): 2, (424, 640): 3, (360, 640): 3,
}  # fmt: skip


def like_coco(images: int, seed: int = 0) -> Sides:
    """[I, 2] sizes of images."""
    rng = np.random.default_rng(seed)
    listed, weights = list(OFTEN), np.array([*OFTEN.values()], dtype=float)
    sizes = np.array(listed)[rng.choice(len(listed), images, p=weights / weights.sum())]
    own = rng.random(images) < 0.1
    short = rng.integers(150, 640, images)
    tall = rng.random(images) < 0.4
    sizes[own] = np.where(
        tall[:, None], *(np.stack(each, 1) for each in ((np.full(images, 640), short), (short, np.full(images, 640))))
    )[own]
    return sizes


def least(canvases: tuple[Size, ...], height: int, width: int) -> Size:
    """The same as `Padding.size`, searched in order of area."""
    by_area = sorted(canvases, key=lambda size: size[0] * size[1])
    return next(size for size in by_area if size[0] >= height and size[1] >= width)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_few_canvases_with_little_waste_for_coco(batch: int) -> None:
    """Measured on batches that are drawn one image at a time, by the augmentation itself."""
    sizes = like_coco(20_000)
    canvases = for_training(sizes, COCO, batch, step=32, limit=0, most=48)
    assert 2 < len(canvases.sizes) <= 48
    assert all(height % 32 == width % 32 == 0 for height, width in canvases.sizes)
    padding = Padding(canvases=canvases.sizes)
    needed = padded = 0
    for number in range(3000 // batch):
        rng = random_of(7, batch, number)
        plans = [COCO.draw(rng, tuple(sizes[rng.randrange(len(sizes))].tolist())).size for _ in range(batch)]
        height, width = (max(side) for side in zip(*plans, strict=True))
        size = padding.size(height, width)
        assert size == least(canvases.sizes, height, width)
        needed, padded = needed + height * width, padded + size[0] * size[1]
    assert padded / needed - 1 <= 0.12
    assert padded / needed - 1 == pytest.approx(canvases.waste, abs=0.01)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_evaluation_has_canvases_of_its_own(batch: int) -> None:
    sizes = like_coco(5000, seed=1)
    canvases = for_evaluation(sizes, EVALUATION, batch, step=32, limit=0, most=16)
    assert len(canvases.sizes) <= 16
    rng = random_of(0, 0, 0)
    each = [EVALUATION.draw(rng, (height, width)).size for height, width in sizes.tolist()]
    batches = [tuple(map(max, zip(*each[start : start + batch], strict=True))) for start in range(0, len(each), batch)]
    padded = [least(canvases.sizes, *size) for size in batches]
    extra = sum(h * w for h, w in padded) / sum(h * w for h, w in batches) - 1
    assert extra == pytest.approx(canvases.waste)
    assert extra <= 0.12


def test_more_canvases_waste_less() -> None:
    sizes = like_coco(5000)
    found = [for_training(sizes, COCO, 2, 32, 0, most) for most in (4, 16, 64)]
    assert [len(each.sizes) for each in found] == [4, 16, 64]
    wasted = [each.waste for each in found]
    assert wasted == sorted(wasted, reverse=True)
    assert wasted[-1] < wasted[0] / 4


def test_whatever_can_be_drawn_fits() -> None:
    """Strips, which crops turn into shapes that no image has; and of a few images, as of many."""
    sizes = np.array([(40, 4000), (3000, 10), (700, 90), (480, 640)])
    canvases = for_training(sizes, COCO, 2, step=32, limit=0, most=8)
    padding, rng = Padding(canvases=canvases.sizes), random_of(0, 0, 0)
    for _ in range(4000):
        plans = [COCO.draw(rng, tuple(sizes[rng.randrange(4)].tolist())).size for _ in range(2)]
        padding.size(*(max(side) for side in zip(*plans, strict=True)))


def test_vectors_are_drawn_as_single_images_are() -> None:
    """The same distribution of sizes, so that the estimate means something: mean sides and their spread."""
    count = 40_000
    source = np.random.default_rng(3)
    for size in ((480, 640), (640, 300)):
        heights, widths = (np.full(count, side) for side in size)
        many = np.stack(drawn(heights, widths, COCO, lambda: source.random(count)), axis=1)
        rng = random_of(3, 0, 0)
        single = np.array([COCO.draw(rng, size).size for _ in range(count)])
        assert np.abs(many.mean(0) - single.mean(0)).max() < 3
        assert np.abs(many.std(0) - single.std(0)).max() < 3
        assert (many.min(0) == single.min(0)).all()
        assert np.abs(many.max(0) - single.max(0)).max() < 50


def test_images_of_one_size_have_one_canvas() -> None:
    sizes = np.array([(64, 96)] * 10)
    canvases = for_training(sizes, Augmentation((64,), 96), 2, step=32, limit=0, most=48)
    assert canvases.sizes == ((64, 96),)
    assert canvases.waste == 0
    squares = for_training(sizes, Augmentation((64, 96, 128), 96, resize="square"), 2, step=32, limit=0, most=48)
    assert squares.sizes == ((64, 64), (96, 96), (128, 128))


def test_no_side_is_longer_than_a_model_can_have() -> None:
    sizes = np.array([(64, 96)] * 10)
    square = Augmentation((90,), 96, resize="square")
    assert for_training(sizes, square, 2, step=64, limit=0, most=4).sizes == ((128, 128),)
    assert for_training(sizes, square, 2, step=64, limit=90, most=4).sizes == ((90, 90),)


def test_long_sides_have_a_coarser_grid() -> None:
    """So that choosing takes no longer."""
    found = batch_sizes(like_coco(500), Augmentation(tuple(8 * scale for scale in SCALES), 8 * 1333), 2)
    canvases = choose(found, (8 * 1334, 8 * 1334), step=32, limit=0, most=16)
    assert all(height % 32 == width % 32 == 0 for height, width in canvases.sizes)
    assert canvases.sizes[-1] >= (8 * 1334, 8 * 1334)


def test_the_best_of_all_pairs() -> None:
    """Two canvases of which one is given, against every choice."""
    found = batch_sizes(like_coco(500), COCO, 2, batches=300)
    largest = (1344, 1344)
    chosen = choose(found, largest, step=32, limit=0, most=2)
    grid = range(32, 1345, 32)
    tried = [waste(found, [(height, width), largest]) for height in grid for width in grid]
    assert chosen.waste == pytest.approx(min(tried))


def test_the_same_in_every_process() -> None:
    code = (
        "import json, numpy as np; from detr_container.datasets.canvas import for_training;"
        "from detr_container.datasets.transforms import Augmentation;"
        f"found = for_training(np.array([(480, 640), (640, 427), (375, 500)]), Augmentation({SCALES}, 1333, "
        "augment='detr'), 2, 32, 0, 16); print(json.dumps([found.sizes, found.waste]))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": threads}
        )
        for threads in ("1", "2")
    ]
    here = for_training(np.array([(480, 640), (640, 427), (375, 500)]), COCO, 2, 32, 0, 16)
    expected = json.loads(json.dumps([here.sizes, here.waste]))
    assert [json.loads(run.stdout) for run in runs] == [expected, expected]


def test_sizes_as_the_data_draws_them() -> None:
    sizes = like_coco(300)
    canvases = for_training(sizes, COCO, 2, step=32, limit=0, most=12).sizes
    few = drawn_sizes(sizes, COCO, 2, Padding(canvases=canvases), 500, seed=5)
    many = drawn_sizes(sizes, COCO, 2, Padding(32), 500, seed=5)
    assert set(few) <= set(canvases)
    assert len(Counter(many)) > 5 * len(Counter(few))
    assert all(
        a[0] >= b[0] and a[1] >= b[1] for a, b in zip(few, drawn_sizes(sizes, COCO, 2, Padding(), 500, 5), strict=True)
    )
    assert drawn_sizes(sizes, COCO, 2, Padding(32), 500, seed=6) != many


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch of 65 x 64 pixels fits none of the 2 canvases.*data.canvases=off"):
        Padding(canvases=((64, 64), (32, 128))).size(65, 64)
