"""Masks of training: as a brute force on pixels would cut them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage
from segmented import Pixels, blob, of, pixels_of, read, tight, uncompressed

from detr_container.datasets import masks
from detr_container.datasets.dataset import DetectionDataset, random_of
from detr_container.datasets.masks import SIDE, rasters
from detr_container.datasets.shapes import CATEGORY_IDS, make_shapes
from detr_container.datasets.transforms import Augmentation, Crop, Plan, Resize, Size, apply_boxes

Numbers = NDArray[np.float64]
SHAPES = 256
"""Pixels of the sides of images of shapes."""
AS_IT_IS = Plan(False, (), (300, 400))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks") / "shapes"
    make_shapes(root, 24, 2, SHAPES, workers=0)
    return root


def by_brute_force(segmentation: Any, plan: Plan, size: Size, box: Numbers) -> Pixels:
    """[SIDE, SIDE]: the mask of the file transformed pixel by pixel, of which each cell takes the one it lies on."""
    image = pixels_of(segmentation, size)
    if plan.flip:
        image = image[:, ::-1]
    for step in plan.steps:
        if isinstance(step, Resize):
            sampled = [
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for new, old in zip(step.size, image.shape, strict=True)
            ]
            image = image[np.ix_(*sampled)]
        else:
            image = image[step.top : step.top + step.size[0], step.left : step.left + step.size[1]]
    cells = (np.arange(SIDE) + 0.5) / SIDE
    columns, rows = (
        (box[axis] + cells * (box[axis + 2] - box[axis])).astype(int).clip(0, image.shape[1 - axis] - 1)
        for axis in (0, 1)
    )
    return image[np.ix_(rows, columns)]


def assert_same_but_at_the_border(found: Pixels, expected: Pixels, share: float, within: int) -> None:
    """Whether so many cells are the same, and all others are so few cells from the border of what is expected."""
    differ = found != expected
    assert differ.mean() <= 1 - share
    structure = np.ones((3, 3))
    # The frame is a border as well: tight boxes end where objects do.
    inside, outside = (ndimage.binary_erosion(part, structure, within) for part in (expected, ~expected))
    assert not (differ & (inside | outside)).any()


@pytest.mark.parametrize("kind", ["polygons", "code"])
def test_masks_follow_their_boxes_through_flips_resizing_and_crops(kind: str) -> None:
    """For plans as training draws them; a few cells differ, where a pixel's edge lies between."""
    generator = np.random.default_rng(0)
    size = (300, 400)
    augmentation = Augmentation((480, 640, 800), 1333, crop_resize=(400, 600), crop_range=(200, 500), augment="detr")
    flips = crops = compared = 0
    for number in range(40):
        centre = generator.uniform(80, 320), generator.uniform(80, 220)
        outlines = [blob(generator, centre, 75), blob(generator, (centre[0] + 20, centre[1]), 60)]
        polygons = [[value + 0.5 for value in outline] for outline in outlines[: 1 + number % 2]]
        segmentation = polygons if kind == "polygons" else uncompressed(pixels_of(polygons))
        plan = augmentation.draw(random_of(0, 0, number), size)
        boxes, kept = apply_boxes(plan, size, torch.tensor([tight(pixels_of(polygons))], dtype=torch.float32))
        if not len(kept) or float((boxes[0, 2:] - boxes[0, :2]).min()) < 40:
            continue
        box = boxes.double().numpy()
        (found,) = rasters(of(segmentation), np.array([0]), plan, size, box).numpy()
        # An original pixel is about one cell of such an object, more where a crop shows but a part of it.
        assert_same_but_at_the_border(found, by_brute_force(segmentation, plan, size, box[0]), 0.97, 5)
        flips, crops, compared = flips + plan.flip, crops + (len(plan.steps) > 1), compared + 1
    assert min(flips, crops, compared - flips, compared - crops) > 5


def test_an_object_has_one_raster_whether_it_is_a_polygon_or_a_code() -> None:
    generator = np.random.default_rng(1)
    for _ in range(10):
        polygon = [blob(generator, (200, 150), 120)]
        box = np.array([tight(pixels_of(polygon))], dtype=np.float64)
        both = of(polygon, uncompressed(pixels_of(polygon)))
        first, second = rasters(both, np.array([0, 1]), AS_IT_IS, (300, 400), box.repeat(2, axis=0)).numpy()
        assert_same_but_at_the_border(first, second, 0.985, 2)


def test_a_pixel_for_a_cell_gives_the_pixels_of_pycocotools() -> None:
    """Where the box has as many pixels as the raster has cells, nothing is left to round."""
    generator = np.random.default_rng(2)
    # All of it inside, since pycocotools rounds otherwise left of an image and above it.
    polygon = [blob(generator, (200, 150), 45, corners=30)]
    whole = pixels_of(polygon)
    box = np.array([[150, 100, 150 + SIDE, 100 + SIDE]], dtype=np.float64)
    expected = whole[100 : 100 + SIDE, 150 : 150 + SIDE]
    assert 0.2 < expected.mean() < 0.9
    (code,) = rasters(of(uncompressed(whole)), np.array([0]), AS_IT_IS, (300, 400), box).numpy()
    assert np.array_equal(code, expected)
    (outline,) = rasters(of(polygon), np.array([0]), AS_IT_IS, (300, 400), box).numpy()
    assert np.array_equal(outline, expected)
    mirrored = Plan(True, (), (300, 400))
    there = np.array([[400 - 150 - SIDE, 100, 400 - 150, 100 + SIDE]], dtype=np.float64)
    (code,) = rasters(of(uncompressed(whole)), np.array([0]), mirrored, (300, 400), there).numpy()
    assert np.array_equal(code, expected[:, ::-1])


def test_a_crop_leaves_its_part_of_an_object() -> None:
    """A right angle whose legs are 200 long, of which a crop shows the left half, then magnified unevenly."""
    triangle = [[100, 50, 300, 50, 100, 250]]
    plan = Plan(False, (Crop(0, 0, (300, 200)), Resize((900, 400))), (900, 400))
    boxes, kept = apply_boxes(plan, (300, 400), torch.tensor([[100.0, 50.0, 300.0, 250.0]]))
    assert boxes.tolist() == [[200, 150, 400, 750]]
    (found,) = rasters(of(triangle), kept.numpy(), plan, (300, 400), boxes.double().numpy()).numpy()
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    # Down to the bottom at the left edge, and half as far at the right one.
    assert_same_but_at_the_border(found, y < 1 - x / 2, 0.99, 1)


@pytest.mark.parametrize("kind", ["polygons", "code"])
@pytest.mark.parametrize("width", [0.5, 1e-3, 1e-5])
def test_a_sliver_of_an_object_is_cheap(width: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its raster is a magnification by millions; pycocotools gets no polygon that is much larger than the raster."""
    given: list[Numbers] = []
    original = coco_mask.frPyObjects

    def seen(polygons: Any, height: int, wide: int) -> Any:
        given.extend(polygons if isinstance(polygons, list) else [])
        return original(polygons, height, wide)

    diamond = [[200, 50, 300, 150, 200, 250, 100, 150]]
    segmentations = of(diamond if kind == "polygons" else uncompressed(pixels_of(diamond)))
    monkeypatch.setattr(coco_mask, "frPyObjects", seen)
    # Across its middle, where it is 200 high.
    box = np.array([[200 - width / 2, 0, 200 + width / 2, 300]])
    (found,) = rasters(segmentations, np.array([0]), AS_IT_IS, (300, 400), box).numpy()
    expected = (np.abs((np.arange(SIDE) + 0.5) / SIDE * 300 - 150) < 100)[:, None].repeat(SIDE, axis=1)
    assert_same_but_at_the_border(found, expected, 0.98, 1)
    assert all(np.abs(polygon).max() <= 2 * SIDE for polygon in given)
    assert bool(given) == (kind == "polygons")


def test_what_is_cut_off_a_polygon_is_far_outside_the_raster() -> None:
    generator = np.random.default_rng(3)
    cut = 0
    for _ in range(60):
        centre = generator.uniform(-500, 600, 2)
        polygon = np.array(blob(generator, (centre[0], centre[1]), 600, corners=7)).reshape(-1, 2)
        smaller = masks._cut(polygon)
        whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon.ravel()], SIDE, SIDE)))
        if len(smaller):
            assert smaller.min() >= -SIDE - 1e-6
            assert smaller.max() <= 2 * SIDE + 1e-6
            again = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([smaller.ravel()], SIDE, SIDE)))
        else:
            again = np.zeros_like(whole)
        # The points of the cut are rounded to a fifth of a cell.
        assert_same_but_at_the_border(again.astype(bool), whole.astype(bool), 0.98, 1)
        cut += int(0 < whole.mean() < 1)
    assert cut > 10
    assert len(masks._cut(np.array([[900.0, 0], [950, 0], [900, 50]]))) == 0


def test_objects_without_area_and_outside_of_their_box_have_empty_rasters() -> None:
    line, elsewhere = [[10, 10, 60, 60, 30, 30]], [[300, 200, 350, 200, 350, 250]]
    box = np.array([[10.0, 10, 60, 60]]).repeat(2, axis=0)
    found = rasters(of(line, elsewhere), np.array([0, 1]), AS_IT_IS, (300, 400), box)
    assert found.float().mean(dim=(1, 2)).max() < 0.02
    assert not found[1].any()
    nothing = rasters(of(line), np.zeros(0, dtype=np.int64), AS_IT_IS, (300, 400), np.zeros((0, 4)))
    assert (nothing.shape, nothing.dtype) == ((0, SIDE, SIDE), torch.bool)


def test_samples_have_the_masks_of_their_boxes(shapes: Path) -> None:
    """With what the same data set gives without masks, and the holes of rings."""
    annotations = read(shapes)
    augmentation = Augmentation((200, 300), 500, crop_resize=(256, 300), crop_range=(160, 240), augment="detr")
    masked = DetectionDataset(annotations, augmentation, seed=4, masks=True)
    plain = DetectionDataset(replace(annotations, segmentations=None), augmentation, seed=4)
    ring = sorted(CATEGORY_IDS.values()).index(CATEGORY_IDS["ring"])
    rings = empty = 0
    for key in [(epoch, index) for epoch in range(2) for index in range(len(masked))]:
        sample, same = masked[key], plain[key]
        assert torch.equal(sample.image, same.image)
        assert torch.equal(sample.boxes, same.boxes)
        assert torch.equal(sample.labels, same.labels)
        assert same.masks is None
        assert sample.masks is not None
        assert sample.masks.dtype == torch.bool
        assert sample.masks.shape == (len(sample.labels), SIDE, SIDE)
        empty += not len(sample.labels)
        plan = masked.plan(key)
        boxes, rows = masked._boxes(key[1])
        boxes, kept = apply_boxes(plan, (SHAPES, SHAPES), boxes)
        assert annotations.segmentations is not None
        for row, box, label, found in zip(
            rows[kept.numpy()], boxes.numpy(), sample.labels.tolist(), sample.masks, strict=True
        ):
            if min(box[2:] - box[:2]) < 50:
                continue
            expected = by_brute_force(annotations.segmentations[row], plan, (SHAPES, SHAPES), box)
            # Of such objects, a pixel is up to four cells.
            assert_same_but_at_the_border(found.numpy(), expected, 0.93, 7)
            if label == ring and not any(isinstance(step, Crop) for step in plan.steps):
                middle = found[SIDE // 2 - 4 : SIDE // 2 + 4, SIDE // 2 - 4 : SIDE // 2 + 4]
                assert not middle.any()
                rings += 1
    assert rings > 3
    assert empty >= 2


@pytest.mark.shared
def test_real_objects_have_masks_as_large_as_their_areas_say(shared_data: Path) -> None:
    annotations = read(shared_data / "coco_permissive")
    assert annotations.segmentations is not None
    dataset = DetectionDataset(annotations, Augmentation((200,), 333), masks=True)
    compared = 0
    for index in range(len(dataset)):
        boxes, rows = dataset._boxes(index)
        height, width = annotations.sizes[index].tolist()
        plan = Plan(False, (), (height, width))
        found = rasters(annotations.segmentations, rows, plan, (height, width), boxes.double().numpy())
        sides = (boxes[:, 2:] - boxes[:, :2]).double()
        areas = found.double().mean(dim=(1, 2)) * sides.prod(dim=1)
        large = annotations.areas[rows] > 1000
        stated = torch.from_numpy(annotations.areas[rows])
        assert bool(((areas - stated).abs() <= 0.03 * stated)[torch.from_numpy(large)].all())
        compared += int(large.sum())
    assert compared > 100
