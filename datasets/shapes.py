"""A generated data set in COCO's format: coloured shapes that overlap on textured backgrounds.

It has what COCO has and what breaks detectors: crowd objects (a cluster of small shapes, annotated as one region),
images without objects, gaps in the category ids, polygons and run-length masks. A box is tight around the full
shape, also where another shape covers a part of it; every object lies inside its image. Image i of a split
depends on (seed, split, size, i) alone: neither the number of worker processes nor that of images changes it.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .drawn_shapes import Shape, ground, paint, random_shape
from .made import MadeConfig, check_same, make_once, write_text
from .progress_bar import track
from .records import Record

Split = Literal["train", "val"]

CATEGORY_IDS = {"circle": 1, "rectangle": 2, "triangle": 4, "star": 5, "ring": 9, "cross": 13}
"""The classes and their ids, with gaps as COCO's have."""
MANIFEST = "shapes.json"
"""The file in the data set's folder that records how it was made."""
EMPTY_EVERY, EMPTY_AT = 16, 5
"""One image in sixteen has no object."""
CROWD_EVERY, CROWD_AT = 8, 3
"""One image in eight has a crowd."""
FIRST_VAL_ID = 1_000_001
LEAST_SIZE = 64


def make_shapes(
    root: Path,
    train: int = 2000,
    val: int = 200,
    size: int = 128,
    seed: int = 0,
    workers: int = 2,
    progress: bool = False,
) -> bool:
    """Write the data set to `root` in COCO's layout; False when it is there already, made with the same settings.

    train, val: numbers of images; size: side of the square images in pixels; workers: processes, 0 for none.
    The folder appears only when it is complete. Raises ValueError for settings that make no data set, FileExistsError
    when `root` holds anything else, and OSError, which names it, when it cannot be written.
    """
    config = MadeConfig(train, val, size, seed)
    _check(config)
    return make_once(
        root,
        lambda folder: _write(folder, config, workers, progress),
        lambda folder: _check_same(folder, config),
    )


def _check(config: MadeConfig) -> None:
    if min(config.train, config.val) < 1 or config.train >= FIRST_VAL_ID:
        raise ValueError(
            f"train={config.train}, val={config.val}: each split needs at least one image, "
            f"and training fewer than {FIRST_VAL_ID}"
        )
    config.check_drawing(LEAST_SIZE, usual=128)


def _check_same(root: Path, config: MadeConfig) -> None:
    parts = []
    for split, count in (("train", config.train), ("val", config.val)):
        parts.append((f"{split} images", f"{split}2017/*.jpg", count))
        parts.append((f"{split} annotation files", f"annotations/instances_{split}2017.json", 1))
    check_same(root, config, MANIFEST, "shapes", parts)


def _write(root: Path, config: MadeConfig, workers: int, progress: bool) -> None:
    (root / "annotations").mkdir()
    splits: tuple[tuple[Split, int], ...] = (("train", config.train), ("val", config.val))
    for split, count in splits:
        folder = root / f"{split}2017"
        folder.mkdir()
        images: list[Record] = []
        annotations: list[Record] = []
        drawn = _draw_all(folder, split, count, config, workers)
        for image, objects in track(drawn, count, f"drawing {split}2017", progress):
            images.append(image)
            for record in objects:
                # Ids start at 1: pycocotools takes a match with annotation 0 for none.
                annotations.append({"id": len(annotations) + 1, **record})
        content = {
            "info": {"description": "generated shapes", **asdict(config)},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": id_, "name": name, "supercategory": "shape"} for name, id_ in CATEGORY_IDS.items()],
        }
        write_text(root / "annotations" / f"instances_{split}2017.json", json.dumps(content))
    write_text(root / MANIFEST, json.dumps(asdict(config), indent=2) + "\n")


def _draw_all(
    folder: Path, split: Split, count: int, config: MadeConfig, workers: int
) -> Iterator[tuple[Record, list[Record]]]:
    draw = partial(_draw_file, folder, split, config.size, config.seed)
    if workers <= 0:
        yield from map(draw, range(count))
        return
    # Not fork: the caller may hold the threads of torch, and a forked child can inherit their locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(draw, range(count), chunksize=32)


def _draw_file(folder: Path, split: Split, size: int, seed: int, index: int) -> tuple[Record, list[Record]]:
    pixels, objects = draw_image(split, index, size, seed)
    image_id = index + (FIRST_VAL_ID if split == "val" else 1)
    name = f"{image_id:012d}.jpg"
    Image.fromarray(pixels).save(folder / name, quality=95, subsampling=0)
    image = {"id": image_id, "file_name": name, "width": size, "height": size}
    return image, [{"image_id": image_id, **record} for record in objects]


def draw_image(split: Split, index: int, size: int, seed: int) -> tuple[NDArray[np.uint8], list[Record]]:
    """Draw one image, [size, size, 3], and its annotations in COCO's format, without their ids."""
    rng = np.random.default_rng([seed, size, 0 if split == "train" else 1, index])
    canvas, base = ground(rng, size)
    taken: list[tuple[float, float, float, float]] = []
    objects: list[Record] = []
    if index % EMPTY_EVERY != EMPTY_AT:
        if index % CROWD_EVERY == CROWD_AT:
            cluster = _cluster(rng, size, base)
            mask = np.max([paint(canvas, shape) for shape in cluster], axis=0)
            objects.append(_crowd_record(cluster, mask))
            taken.append(_hull(cluster))
        for _ in range(int(rng.integers(1, 7))):
            shape = _place(rng, size, base, taken)
            if shape is not None:
                objects.append(_record(shape, paint(canvas, shape)))
                taken.append(shape.box)
    canvas += rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


def _place(
    rng: np.random.Generator,
    size: int,
    base: NDArray[np.float64],
    taken: list[tuple[float, float, float, float]],
) -> Shape | None:
    """Draw a shape that covers no more than a third of another's box; None when no place is found."""
    name = list(CATEGORY_IDS)[int(rng.integers(len(CATEGORY_IDS)))]
    for _ in range(12):
        radius = size * rng.uniform(0.11, 0.25)
        centre = rng.uniform(radius + 1, size - radius - 1, 2)
        shape = random_shape(rng, name, centre, radius, base)
        if all(_covered(shape.box, box) <= 1 / 3 for box in taken):
            return shape
    return None


def _cluster(rng: np.random.Generator, size: int, base: NDArray[np.float64]) -> list[Shape]:
    """Draw a crowd: shapes of one class, smaller than any single object, close together."""
    name = list(CATEGORY_IDS)[int(rng.integers(len(CATEGORY_IDS)))]
    spread = size * rng.uniform(0.14, 0.2)
    largest = size * 0.05
    middle = rng.uniform(spread + largest + 1, size - spread - largest - 1, 2)
    count = int(rng.integers(10, 19))
    return [
        random_shape(rng, name, middle + rng.uniform(-spread, spread, 2), size * rng.uniform(0.03, 0.05), base)
        for _ in range(count)
    ]


def _covered(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the intersection of two boxes over the smaller one's area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _hull(shapes: list[Shape]) -> tuple[float, float, float, float]:
    boxes = np.array([shape.box for shape in shapes])
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    left, top, right, bottom = box
    return [round(left, 2), round(top, 2), round(right - left, 2), round(bottom - top, 2)]


def _record(shape: Shape, mask: NDArray[np.bool_]) -> Record:
    x, y = shape.outline.T
    segmentation: Any = [[round(float(value), 2) for value in shape.outline.ravel()]]
    area = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    if len(shape.hole):
        # COCO's polygons know no holes.
        segmentation, area = _run_lengths(mask), float(mask.sum())
    return {
        "category_id": CATEGORY_IDS[shape.name],
        "bbox": _xywh(shape.box),
        "area": round(area, 2),
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def _crowd_record(cluster: list[Shape], mask: NDArray[np.bool_]) -> Record:
    return {
        "category_id": CATEGORY_IDS[cluster[0].name],
        "bbox": _xywh(_hull(cluster)),
        "area": float(mask.sum()),
        "iscrowd": 1,
        "segmentation": _run_lengths(mask),
    }


def _run_lengths(mask: NDArray[np.bool_]) -> Record:
    """Return COCO's uncompressed run lengths: down the columns, beginning with the count of zeros."""
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}
