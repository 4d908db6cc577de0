"""Detectors without images or networks: any number of boxes with known errors near simulated objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask

from detr_container.compare.matching import Ground
from detr_container.datasets.run_lengths import RunLengths
from detr_container.tasks.detection.detections import Columns, Detections, starts_of

WIDTH, HEIGHT = 640.0, 480.0


@dataclass(frozen=True)
class Scene:
    """A data set; hard: [N] how hard each image is, for every detector alike."""

    ground: Ground
    hard: NDArray[np.float64]


def scene(images: int, classes: int, seed: int, objects: float = 7.0, crowds: float = 0.01) -> Scene:
    """Images with a Poisson number of objects; classes as uneven as COCO's, sizes from 8 to 300 pixels."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), rng.poisson(objects, images))
    count = len(image)
    share = 1 / np.arange(1, classes + 1) ** 0.8
    side = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - side)
    ground = Ground(
        np.arange(1, images + 1) * 3,
        np.arange(1, classes + 1) * 2,
        tuple(f"class {k}" for k in range(classes)),
        image,
        rng.choice(classes, count, p=share / share.sum()),
        np.concatenate([corner, side], axis=1),
        side.prod(axis=1) * rng.uniform(0.5, 1, count),
        rng.random(count) < crowds,
    )
    return Scene(ground, rng.normal(size=images))


def detect(world: Scene, skill: float, seed: int, per_image: int = 100) -> Columns:
    """A detector that finds an object the surer, the closer and the more often the greater its skill.

    Every image has `per_image` detections; those that are for no object have random places, classes and sizes.
    """
    rng = np.random.default_rng(seed)
    ground, images = world.ground, len(world.ground.images)
    ease = skill - 0.7 * world.hard[ground.image] + rng.normal(size=len(ground.image))
    tried = rng.random(len(ease)) < 1 / (1 + np.exp(-1.5 * ease))
    noise = 0.4 / (1 + np.exp(ease[tried, None]))
    box = ground.box[tried].copy()
    box[:, :2] += rng.normal(size=(tried.sum(), 2)) * noise * box[:, 2:]
    box[:, 2:] *= np.exp(rng.normal(size=(tried.sum(), 2)) * noise)
    label = ground.label[tried].copy()
    mistaken = rng.random(len(label)) < 0.1
    label[mistaken] = rng.integers(0, len(ground.names), mistaken.sum())
    score = 1 / (1 + np.exp(-ease[tried] - rng.normal(size=len(label)) * 0.5))
    rest = np.maximum(per_image - np.bincount(ground.image[tried], minlength=images), 0)
    other = np.repeat(np.arange(images), rest)
    side = np.exp(rng.uniform(np.log(8), np.log(300), (len(other), 2)))
    corner = rng.uniform(0, 1, (len(other), 2)) * (np.array([WIDTH, HEIGHT]) - side)
    return Columns(
        ground.images[np.r_[ground.image[tried], other]],
        ground.categories[np.r_[label, rng.choice(ground.label, len(other))]],
        np.concatenate([box, np.concatenate([corner, side], axis=1)]),
        np.r_[score, rng.beta(1, 12, len(other))],
    )


def outlines(boxes: NDArray[np.float64], seed: int) -> RunLengths:
    """A mask within each box [n, 4] (x, y, width, height): an octagon that fills more or less of it."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0.3, 0], [0.7, 0], [1, 0.3], [1, 0.7], [0.7, 1], [0.3, 1], [0, 0.7], [0, 0.3]])
    found = []
    for (x, y, width, height), fill in zip(boxes.tolist(), rng.uniform(0.6, 1, len(boxes)), strict=True):
        polygon = (np.array([x, y]) + corners * np.array([width, height]) * fill).ravel().tolist()
        found += mask.frPyObjects([polygon], int(HEIGHT), int(WIDTH))
    return RunLengths.of(found)


def with_masks(world: Scene, seed: int) -> Scene:
    """The same data set with masks; areas stay what they are, as the rule for sizes takes them."""
    return replace(world, ground=replace(world.ground, masks=outlines(world.ground.box, seed)))


def annotation_file(world: Scene) -> dict[str, Any]:
    """The data set as a file in COCO's format holds it."""
    ground = world.ground
    return {
        "images": [
            {"id": int(i), "file_name": f"{i}.jpg", "width": int(WIDTH), "height": int(HEIGHT)} for i in ground.images
        ],
        "categories": [{"id": int(i), "name": name} for i, name in zip(ground.categories, ground.names, strict=True)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(ground.images[ground.image[number]]),
                "category_id": int(ground.categories[ground.label[number]]),
                "bbox": ground.box[number].tolist(),
                "area": float(ground.area[number]),
                "iscrowd": int(ground.crowd[number]),
                **_segmentation(ground, number),
            }
            for number in range(len(ground.image))
        ],
    }


def _segmentation(ground: Ground, number: int) -> dict[str, Any]:
    if ground.masks is None:
        return {}
    code = ground.masks[number]
    return {"segmentation": {"size": code["size"], "counts": code["counts"].decode()}}


def detections(found: Columns) -> Detections:
    """The same as an evaluation keeps them, in float32."""
    category_ids, labels = np.unique(found.categories, return_inverse=True)
    order = np.argsort(found.images, kind="stable")
    image_ids, counts = np.unique(found.images, return_counts=True)
    corners = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
    return Detections(
        image_ids,
        starts_of(counts),
        found.scores[order].astype(np.float32),
        labels[order],
        corners[order].astype(np.float32),
        category_ids,
        None if found.masks is None else found.masks.take(order),
    )


def assert_refused(path: Path, content: bytes, message: str) -> None:
    """A file of detections with this content is named in the error, with what is wrong and the remedy."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        Detections.read(path)
    assert str(path) in str(raised.value)
    assert "evaluate again" in str(raised.value)
