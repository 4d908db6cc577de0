"""Masks on images: what they cover is tinted, their edge is a line, and the rest stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from detr_container.config.detection import DataConfig
from detr_container.datasets.annotations import Annotations, read_annotations
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.masks import run_lengths
from detr_container.datasets.run_lengths import RunLength, RunLengths
from detr_container.datasets.shapes import make_shapes
from detr_container.drawing.images import PALETTE, draw_detections
from detr_container.drawing.masks import lay_mask
from detr_container.tasks.detection.build import evaluation_augmentation
from detr_container.tasks.detection.detections import Detections, starts_of
from detr_container.tasks.detection.validation_images import draw_validation, masks_of

GREY = 128
NAMES = ("cell", "platelet")


def grey(width: int = 300, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height), (GREY,) * 3)


def disc(size: tuple[int, int] = (200, 300), centre: tuple[float, float] = (100, 150), radius: float = 60) -> RunLength:
    rows, columns = np.ogrid[: size[0], : size[1]]
    inside = (rows + 0.5 - centre[0]) ** 2 + (columns + 0.5 - centre[1]) ** 2 < radius**2
    code: RunLength = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
    return code


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def test_a_mask_tints_what_it_covers_inside_a_line_of_its_colour() -> None:
    image = grey()
    lay_mask(image, disc(), PALETTE[0], line=2)
    found = pixels(image)
    rows, columns = np.ogrid[:200, :300]
    distance = np.hypot(rows + 0.5 - 100, columns + 0.5 - 150)
    assert (found[distance > 62] == GREY).all()
    line = (found == PALETTE[0]).all(axis=-1)
    assert line[(distance > 58.6) & (distance < 59.5)].mean() > 0.95
    assert not line[(distance < 56) | (distance > 60)].any()
    # Dark outside of the line, so that it is seen on any ground.
    assert (found[(distance > 60.2) & (distance < 60.8)].max(axis=-1) < 0.5 * GREY).mean() > 0.9
    (tint,) = np.unique(found[distance < 55], axis=0)
    mixed = 0.45 * np.array(PALETTE[0]) + 0.55 * GREY
    np.testing.assert_allclose(tint, mixed, atol=2)


@pytest.mark.parametrize("factor", [0.25, 0.6, 3, 5])
def test_a_mask_covers_the_whole_image_whatever_their_sizes(factor: float) -> None:
    image = grey(round(300 * factor), round(200 * factor))
    lay_mask(image, disc(), PALETTE[4], line=1)
    found = (pixels(image) != GREY).any(axis=-1)
    expected = np.pi * (60 * factor + 1) ** 2
    assert found.sum() == pytest.approx(expected, rel=0.1 if factor < 1 else 0.02)
    rows, columns = np.nonzero(found)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == pytest.approx((100 * factor, 150 * factor), abs=0.3)


def test_masks_at_the_rim_and_of_one_pixel_and_of_none() -> None:
    for centre, radius in (((0, 0), 40), ((200, 300), 40), ((100, 150), 500)):
        image = grey()
        lay_mask(image, disc(centre=centre, radius=radius), PALETTE[1], line=3)
        assert (pixels(image) != GREY).any()
    image = grey(400, 400)
    lay_mask(image, disc((100, 100), (10.5, 20.5), 0.6), PALETTE[1], line=1)
    rows, columns = np.nonzero((pixels(image) == PALETTE[1]).all(axis=-1))
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == pytest.approx((42, 82), abs=0.6)
    image = grey()
    lay_mask(image, disc(radius=0), PALETTE[1], line=1)
    assert (pixels(image) == GREY).all()


def test_masks_lie_under_boxes_and_labels_the_surest_on_top() -> None:
    boxes, masks = [[80, 30, 220, 170], [20, 20, 60, 60]], RunLengths.of([disc(), disc(centre=(40, 40), radius=18)])
    plain = draw_detections(grey(), boxes, [0, 1], [0.9, 0.2], NAMES, legible=0)
    drawn = draw_detections(grey(), boxes, [0, 1], [0.9, 0.2], NAMES, legible=0, masks=masks)
    own = (pixels(plain) != GREY).any(axis=-1)
    np.testing.assert_array_equal(pixels(drawn)[own], pixels(plain)[own])
    assert tuple(pixels(drawn)[100, 150]) != (GREY,) * 3
    # Below the threshold.
    assert tuple(pixels(drawn)[40, 40]) == (GREY,) * 3
    both = draw_detections(grey(), boxes[:1] * 2, [0, 1], [0.9, 0.8], NAMES, legible=0, masks=[disc(), disc()])
    assert (pixels(both)[100, 90:92] == PALETTE[0]).all(axis=-1).any()
    mixed = 0.45 * np.array(PALETTE[0]) + 0.55 * (0.45 * np.array(PALETTE[1]) + 0.55 * GREY)
    np.testing.assert_allclose(pixels(both)[100, 150], mixed, atol=2)


def test_crowds_and_objects_without_a_mask_are_drawn_as_before() -> None:
    boxes = [[90, 40, 210, 160]]
    for masks, crowd in (([disc()], [True]), ([None], [False])):
        drawn = draw_detections(grey(), boxes, [0], None, NAMES, crowd=crowd, legible=0, masks=masks)
        plain = draw_detections(grey(), boxes, [0], None, NAMES, crowd=crowd, legible=0)
        np.testing.assert_array_equal(pixels(drawn), pixels(plain))
    with pytest.raises(ValueError, match="1 boxes, 1 labels, 1 scores, 1 crowd marks, 2 masks"):
        draw_detections(grey(), boxes, [0], None, NAMES, masks=[disc(), disc()])


def perfect(read: Annotations) -> Detections:
    """What a perfect detector finds: all but crowds."""
    kept = ~read.crowd
    images = np.repeat(np.arange(len(read.image_ids)), np.diff(read.starts))[kept]
    corners = np.concatenate([read.boxes[:, :2], read.boxes[:, :2] + read.boxes[:, 2:]], axis=1)[kept]
    return Detections(
        read.image_ids,
        starts_of(np.bincount(images, minlength=len(read.image_ids))),
        np.full(kept.sum(), 0.9, dtype=np.float32),
        read.labels[kept],
        corners.astype(np.float32),
        np.array([category.id for category in read.categories]),
        run_lengths(read).take(kept),
    )


def test_validation_images_show_the_masks_of_both(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", 1, 4, 96, seed=1, workers=0)
    path, images = tmp_path / "shapes/annotations/instances_val2017.json", tmp_path / "shapes/val2017"
    sheets = []
    for segmentations in (False, True):
        read = read_annotations(path, images, segmentations=segmentations)
        found = perfect(read_annotations(path, images, segmentations=True))
        for masks in (None, found.masks):
            found = Detections(**{**vars(found), "masks": masks})
            dataset = DetectionDataset(read, evaluation_augmentation(DataConfig()), 0)
            draw_validation(dataset, found, read.categories, tmp_path / "sheet.png")
            with Image.open(tmp_path / "sheet.png") as sheet:
                sheets.append(pixels(sheet.convert("RGB")).astype(int))
        if not segmentations:
            assert masks_of(read, 0) is None
    bare, of_predictions, of_truth, both = sheets
    changed = [(one != other).any(axis=-1) for one, other in ((bare, of_predictions), (bare, of_truth), (bare, both))]
    predictions, truth, together = changed
    assert predictions.sum() > 10_000
    assert not (predictions & truth).any()
    np.testing.assert_array_equal(predictions | truth, together)
    # The same masks, side by side.
    assert predictions.sum() == pytest.approx(truth.sum(), rel=0.05)
