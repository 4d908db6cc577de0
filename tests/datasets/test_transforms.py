import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import pattern
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from detr_container.datasets.transforms import (
    Augmentation,
    Crop,
    Plan,
    Resize,
    apply,
    apply_boxes,
    apply_image,
    normalise_boxes,
    resize_image,
    shortest_size,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).resolve().parent.parent / "golden" / "transforms.json").read_text())
SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
SIDES = st.integers(1, 150)


def as_boxes(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def height_width(size_wh: list[int]) -> tuple[int, int]:
    return size_wh[1], size_wh[0]


@pytest.mark.parametrize("case", GOLDEN["resize"])
def test_resize_equals_the_published_code(case: dict[str, Any]) -> None:
    size = height_width(case["size_wh"])
    new = shortest_size(size, case["short"], case["max"])
    assert new == height_width(case["out_wh"])
    boxes, rows = apply_boxes(Plan(False, (Resize(new),), new), size, as_boxes([case["box_in"]]))
    assert rows.tolist() == [0]
    torch.testing.assert_close(boxes, as_boxes([case["box_out"]]), atol=1e-3, rtol=0)


def test_flip_equals_the_published_code() -> None:
    case = GOLDEN["hflip"]
    size = height_width(case["size_wh"])
    boxes, _ = apply_boxes(Plan(True, (), size), size, as_boxes(case["boxes_in"]))
    torch.testing.assert_close(boxes, as_boxes(case["boxes_out"]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", GOLDEN["crop"])
def test_crop_equals_the_published_code(case: dict[str, Any]) -> None:
    top, left, height, width = case["top_left_height_width"]
    plan = Plan(False, (Crop(top, left, (height, width)),), (height, width))
    boxes, rows = apply_boxes(plan, height_width(case["size_wh"]), as_boxes(case["boxes_in"]))
    assert (rows + 1).tolist() == case["kept_labels"]
    torch.testing.assert_close(boxes, as_boxes(case["boxes_out"]), atol=1e-3, rtol=0)


def test_normalised_boxes_equal_the_published_code() -> None:
    case = GOLDEN["normalise"]
    boxes = normalise_boxes(as_boxes(case["boxes_in"]), height_width(case["size_wh"]))
    torch.testing.assert_close(boxes, as_boxes(case["boxes_out"]), atol=1e-5, rtol=0)


def test_resized_pixels_are_within_two_levels_of_pillow() -> None:
    case = GOLDEN["pixels"]
    image = (pattern.image(240, 320) * 50 + 128).clip(0, 255).to(torch.uint8)
    size = shortest_size((240, 320), case["short"])
    assert size == height_width(case["out_wh"])
    resized = apply_image(Plan(False, (Resize(size),), size), image)
    for y, x, *rgb in case["samples_yx_rgb"]:
        assert (resized[:, y, x].int() - torch.tensor(rgb)).abs().max() <= 2
    torch.testing.assert_close(resized.float().mean((1, 2)), torch.tensor(case["mean"]), atol=0.5, rtol=0)


@given(SIDES, SIDES, SIDES, SIDES, st.booleans())
def test_resizing_agrees_with_pillow(height: int, width: int, new_height: int, new_width: int, planes: bool) -> None:
    pixels = np.random.default_rng(height * 151 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    resized = resize_image(image.contiguous() if planes else image, (new_height, new_width))
    expected = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR))
    difference = resized.permute(1, 2, 0).int() - torch.from_numpy(expected.astype(np.int32))
    assert difference.abs().max() <= 2


def naive_boxes(plan: Plan, size: tuple[int, int], boxes: list[list[float]]) -> list[tuple[int, list[float]]]:
    """Row number and corners of what survives, one box and one number at a time."""
    survivors = []
    for row, corners in enumerate(boxes):
        (height, width), (x0, y0, x1, y1), alive = size, corners, True
        if plan.flip:
            x0, x1 = width - x1, width - x0
        for step in plan.steps:
            if isinstance(step, Resize):
                x0, x1 = (x * step.size[1] / width for x in (x0, x1))
                y0, y1 = (y * step.size[0] / height for y in (y0, y1))
            else:
                x0, x1 = (min(max(x - step.left, 0), step.size[1]) for x in (x0, x1))
                y0, y1 = (min(max(y - step.top, 0), step.size[0]) for y in (y0, y1))
                alive = alive and x1 > x0 and y1 > y0
            height, width = step.size
        if alive:
            survivors.append((row, [x0, y0, x1, y1]))
    return survivors


@st.composite
def drawn_plans(draw: st.DrawFn) -> tuple[Plan, tuple[int, int]]:
    augment = Augmentation(
        scales=(40, 57, 90),
        max_size=120,
        crop_resize=(50, 64),
        crop_range=(24, 60),
        augment=draw(st.sampled_from(["detr", "flip", "none"])),
        resize=draw(st.sampled_from(["shortest", "square"])),
    )
    size = (draw(SIDES), draw(SIDES))
    return augment.draw(random.Random(draw(st.integers(0, 2**32))), size), size


@given(drawn_plans(), st.data())
def test_boxes_follow_a_plan_as_naive_loops_do(drawn: tuple[Plan, tuple[int, int]], data: st.DataObject) -> None:
    plan, (height, width) = drawn
    box = st.tuples(*[st.integers(0, side - 1) for side in (width, height)]).flatmap(
        lambda corner: st.tuples(
            st.just(float(corner[0])),
            st.just(float(corner[1])),
            st.integers(corner[0] + 1, width).map(float),
            st.integers(corner[1] + 1, height).map(float),
        )
    )
    rows = [list(corners) for corners in data.draw(st.lists(box, max_size=5))]
    boxes, kept = apply_boxes(plan, (height, width), as_boxes(rows))
    expected = naive_boxes(plan, (height, width), rows)
    # A corner that falls on a crop's edge may round to either side of it in float32.
    by_row = dict(expected)
    for row in set(kept.tolist()) ^ set(by_row):
        other = dict(zip(kept.tolist(), boxes.tolist(), strict=True)) | by_row
        assert min(other[row][2] - other[row][0], other[row][3] - other[row][1]) < 1e-3
    for row, corners in zip(kept.tolist(), boxes.tolist(), strict=True):
        if row in by_row:
            assert corners == pytest.approx(by_row[row], abs=2e-3)


@given(drawn_plans(), st.data())
def test_boxes_stay_on_their_pixels(drawn: tuple[Plan, tuple[int, int]], data: st.DataObject) -> None:
    plan, (height, width) = drawn
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    image, boxes, labels = apply(plan, image, as_boxes([[x0, y0, x1, y1]]), torch.tensor([7]))
    assert tuple(image.shape) == (3, *plan.size)
    assume(len(boxes) == 1)
    cx, cy, w, h = (boxes[0] * torch.tensor([plan.size[1], plan.size[0], plan.size[1], plan.size[0]])).tolist()
    assume(w >= 6 and h >= 6)
    assert labels.tolist() == [7]
    lit = image[0] > 127
    for axis, low, high in ((0, cx - w / 2, cx + w / 2), (1, cy - h / 2, cy + h / 2)):
        places = lit.any(dim=axis).nonzero().flatten().tolist()
        # Two antialiased resizings may each move the half-way level by a fraction of a pixel.
        assert places[0] == pytest.approx(low, abs=1.6)
        assert places[-1] + 1 == pytest.approx(high, abs=1.6)


def test_the_published_augmentation_is_drawn_in_its_proportions() -> None:
    augment = Augmentation(SCALES, 1333, augment="detr")
    rng = random.Random(1)
    plans = [augment.draw(rng, (480, 640)) for _ in range(4000)]
    assert 0.47 < sum(plan.flip for plan in plans) / 4000 < 0.53
    crops = [plan.steps for plan in plans if len(plan.steps) == 3]
    assert 0.47 < len(crops) / 4000 < 0.53
    assert {min(plan.size) for plan in plans if len(plan.steps) == 1} == set(SCALES)
    first = {steps[0].size for steps in crops}
    assert first == {(400, 533), (500, 666), (600, 800)}
    for before, crop, _ in crops:
        assert isinstance(crop, Crop)
        assert all(384 <= side <= min(600, limit) for side, limit in zip(crop.size, before.size, strict=True))
        assert 0 <= crop.top <= before.size[0] - crop.size[0]
        assert 0 <= crop.left <= before.size[1] - crop.size[1]
    widest = [crop for before, crop, _ in crops if before.size == (600, 800)]
    assert {min(c.size[0] for c in widest), max(c.size[0] for c in widest)} == {384, 600}
    assert {min(c.size[1] for c in widest), max(c.size[1] for c in widest)} == {384, 600}


@pytest.mark.parametrize("resize", ["shortest", "square"])
@given(size=st.tuples(st.integers(1, 6000), st.integers(1, 6000)), seed=st.integers(0, 1000))
def test_every_size_can_be_augmented(resize: Any, size: tuple[int, int], seed: int) -> None:
    plan = Augmentation(SCALES, 1333, augment="detr", resize=resize).draw(random.Random(seed), size)
    current = size
    for step in plan.steps:
        assert min(step.size) >= 1
        assert step.size[0] * step.size[1] <= 16 * 600 * 600
        if isinstance(step, Crop):
            assert step.top + step.size[0] <= current[0]
            assert step.left + step.size[1] <= current[1]
        current = step.size
    assert current == plan.size
    assert resize == "shortest" or plan.size[0] == plan.size[1]


def test_evaluation_only_resizes() -> None:
    evaluation = Augmentation((800,), 1333)
    plans = {evaluation.draw(random.Random(seed), (480, 640)) for seed in range(20)}
    assert plans == {Plan(False, (Resize((800, 1066)),), (800, 1066))}
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    assert torch.equal(apply_image(Augmentation((4,), 4).draw(random.Random(0), (4, 4)), image), image)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"scales": ()}, "data.scales"),
        ({"scales": (480, 0)}, "data.scales"),
        ({"max_size": 0}, "data.max_size"),
        ({"crop_range": (600, 384)}, "data.crop_range"),
        ({"crop_resize": ()}, "data.crop_resize"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Augmentation(**({"scales": SCALES, "max_size": 1333} | arguments))
