"""A generated data set in COCO's format: coloured shapes that overlap on textured backgrounds.

It has what COCO has and what breaks detectors: crowd objects (a cluster of small shapes, annotated as one region),
images without objects, gaps in the category ids, polygons and run-length masks. A box is tight around the full
shape, also where another shape covers a part of it; every object lies inside its image. Image i of a split
depends on (seed, split, size, i) alone: neither the number of worker processes nor that of images changes it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detr_container.base.checked import read_plain

from .progress_bar import track
from .records import Record

Split = Literal["train", "val"]
Points = NDArray[np.float64]

CATEGORY_IDS = {"circle": 1, "rectangle": 2, "triangle": 4, "star": 5, "ring": 9, "cross": 13}
"""The classes and their ids, with gaps as COCO's have."""
MANIFEST = "shapes.json"
"""The file in the data set's folder that records how it was made."""
EMPTY_EVERY, EMPTY_AT = 16, 5
"""One image in sixteen has no object."""
CROWD_EVERY, CROWD_AT = 8, 3
"""One image in eight has a crowd."""
FIRST_VAL_ID = 1_000_001
TILT = math.radians(15)
SUPERSAMPLE = 4
LEAST_SIZE = 64


@dataclass(frozen=True)
class ShapesConfig:
    """What determines the data set. Numbers of images, the side of their squares in pixels, and the seed."""

    train: int = 2000
    val: int = 200
    size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class _Shape:
    """One drawn shape. outline: [n, 2] (x, y) in pixels; hole: the same for what is cut out of it, or empty."""

    name: str
    outline: Points
    hole: Points
    colour: NDArray[np.float64]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels."""
        left, top = self.outline.min(axis=0)
        right, bottom = self.outline.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


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
    config = ShapesConfig(train, val, size, seed)
    _check(config)
    root = Path(os.path.abspath(root))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        _check_same(root, config)
        return False
    partial_root = root.with_name(f".{root.name}.partial-{os.getpid()}-{time.time_ns()}")
    partial_root.mkdir(parents=True)
    try:
        _write(partial_root, config, workers, progress)
        try:
            partial_root.rename(root)
        except OSError:
            if not root.exists():
                raise
            # Another process finished first: all is well if it made the same.
            _check_same(root, config)
            return False
    except OSError as error:
        # What writes images does not say where.
        error.filename = error.filename or str(root)
        raise
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return True


def _check(config: ShapesConfig) -> None:
    if min(config.train, config.val) < 1 or config.train >= FIRST_VAL_ID:
        raise ValueError(
            f"train={config.train}, val={config.val}: each split needs at least one image, "
            f"and training fewer than {FIRST_VAL_ID}"
        )
    if config.size < LEAST_SIZE:
        raise ValueError(
            f"size={config.size} is too small to tell the shapes apart: use {LEAST_SIZE} pixels or more (128 is usual)"
        )
    if config.seed < 0:
        raise ValueError(f"seed={config.seed}: use a whole number of 0 or above")


def _check_same(root: Path, config: ShapesConfig) -> None:
    manifest = root / MANIFEST
    remedy = "delete it, or name another folder"
    if not manifest.is_file():
        raise FileExistsError(f"{root} exists and is not a data set of shapes: name another folder")
    try:
        found = read_plain(manifest)
    except ValueError as error:
        raise FileExistsError(f"{root} exists and its {MANIFEST} cannot be read ({error}): {remedy}") from error
    if found != asdict(config):
        raise FileExistsError(f"{root} was made with {found}, not with {asdict(config)}: {remedy}")
    for split, count in (("train", config.train), ("val", config.val)):
        folder = root / f"{split}2017"
        images = sum(1 for _ in folder.glob("*.jpg")) if folder.is_dir() else 0
        if images != count or not (root / "annotations" / f"instances_{split}2017.json").is_file():
            raise FileExistsError(f"{root} is damaged ({images} of {count} {split} images are there): {remedy}")


def _write(root: Path, config: ShapesConfig, workers: int, progress: bool) -> None:
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
        _write_text(root / "annotations" / f"instances_{split}2017.json", json.dumps(content))
    _write_text(root / MANIFEST, json.dumps(asdict(config), indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _draw_all(
    folder: Path, split: Split, count: int, config: ShapesConfig, workers: int
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
    canvas, base = _background(rng, size)
    taken: list[tuple[float, float, float, float]] = []
    objects: list[Record] = []
    if index % EMPTY_EVERY != EMPTY_AT:
        if index % CROWD_EVERY == CROWD_AT:
            cluster = _cluster(rng, size, base)
            mask = np.max([_paint(canvas, shape) for shape in cluster], axis=0)
            objects.append(_crowd_record(cluster, mask))
            taken.append(_hull(cluster))
        for _ in range(int(rng.integers(1, 7))):
            shape = _place(rng, size, base, taken)
            if shape is not None:
                objects.append(_record(shape, _paint(canvas, shape)))
                taken.append(shape.box)
    canvas += rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


def _background(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a muted colour with soft blotches, a slope of light and, half the time, stripes; also that colour."""
    base = rng.uniform(50, 205) + rng.uniform(-30, 30, 3)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle, light = rng.uniform(0, 2 * math.pi), rng.uniform(0, 50)
    shade = light * (math.cos(angle) * x + math.sin(angle) * y)
    if rng.random() < 0.5:
        angle, waves = rng.uniform(0, 2 * math.pi), rng.uniform(4, 16)
        stripes = np.sin(2 * math.pi * waves * (math.cos(angle) * x + math.sin(angle) * y))
        shade = shade + rng.uniform(3, 12) * stripes
    blocks = int(rng.integers(4, 13))
    blotches = rng.normal(0.0, rng.uniform(5, 18), (blocks, blocks)).astype(np.float32)
    shade = shade + np.asarray(Image.fromarray(blotches).resize((size, size), Image.Resampling.BICUBIC))
    return base + shade[..., None], base


def _place(
    rng: np.random.Generator,
    size: int,
    base: NDArray[np.float64],
    taken: list[tuple[float, float, float, float]],
) -> _Shape | None:
    """Draw a shape that covers no more than a third of another's box; None when no place is found."""
    name = list(CATEGORY_IDS)[int(rng.integers(len(CATEGORY_IDS)))]
    for _ in range(12):
        radius = size * rng.uniform(0.11, 0.25)
        centre = rng.uniform(radius + 1, size - radius - 1, 2)
        shape = _shape(rng, name, centre, radius, base)
        if all(_covered(shape.box, box) <= 1 / 3 for box in taken):
            return shape
    return None


def _cluster(rng: np.random.Generator, size: int, base: NDArray[np.float64]) -> list[_Shape]:
    """Draw a crowd: shapes of one class, smaller than any single object, close together."""
    name = list(CATEGORY_IDS)[int(rng.integers(len(CATEGORY_IDS)))]
    spread = size * rng.uniform(0.14, 0.2)
    largest = size * 0.05
    middle = rng.uniform(spread + largest + 1, size - spread - largest - 1, 2)
    count = int(rng.integers(10, 19))
    return [
        _shape(rng, name, middle + rng.uniform(-spread, spread, 2), size * rng.uniform(0.03, 0.05), base)
        for _ in range(count)
    ]


def _covered(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the intersection of two boxes over the smaller one's area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _shape(
    rng: np.random.Generator, name: str, centre: NDArray[np.float64], radius: float, base: NDArray[np.float64]
) -> _Shape:
    """Draw a shape of this class in a random colour, a little stretched and tilted; `radius` bounds it, in pixels."""
    # Upright, since a small detector needs far more than ten minutes to learn that shapes turn.
    angle, squeeze = -math.pi / 2 + rng.uniform(-TILT, TILT), rng.uniform(0.55 if name == "rectangle" else 0.85, 1.0)
    cos, sin = math.cos(angle), math.sin(angle)
    transform = np.array([[cos, -sin], [sin, cos]]) @ np.diag([radius, radius * squeeze])
    outline, hole = (points @ transform.T + centre for points in _unit(name))
    return _Shape(name, outline, hole, _colour(rng, base))


def _unit(name: str) -> tuple[Points, Points]:
    """Return the outline and the hole of a shape within the circle of radius 1."""
    nothing = np.zeros((0, 2))
    if name in ("circle", "ring"):
        return _round(40, (1.0,)), _round(40, (0.55,)) if name == "ring" else nothing
    if name == "cross":
        long, short = 0.95, 0.3
        corner = [(long, -short), (long, short), (short, short)]
        rotations = [[(x, y), (-y, x), (-x, -y), (y, -x)] for x, y in corner]
        return np.array([rotations[c][quarter] for quarter in range(4) for c in range(3)]), nothing
    if name == "rectangle":
        # Sides along the axes, so that stretching makes a rectangle and not a rhombus.
        return _round(4, (1.0,), 0.25 * math.pi), nothing
    return _round(3, (1.0,)) if name == "triangle" else _round(10, (1.0, 0.42)), nothing


def _round(count: int, radii: tuple[float, ...], first: float = 0.0) -> Points:
    """Return `count` points around the centre at these distances in turn, the first at this angle."""
    angles = first + 2 * math.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(np.array(radii), count)[:, None]


def _colour(rng: np.random.Generator, base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a colour that stands out from the background's."""
    for _ in range(20):
        colour = rng.uniform(15, 240, 3)
        if np.linalg.norm(colour - base) >= 90:
            break
    return colour


def _paint(canvas: NDArray[np.float64], shape: _Shape) -> NDArray[np.bool_]:
    """Paint a shape over the canvas with smooth edges and return its mask, [size, size]."""
    size = canvas.shape[0]
    left, top, right, bottom = shape.box
    x0, y0 = max(0, math.floor(left)), max(0, math.floor(top))
    x1, y1 = min(size, math.ceil(right)), min(size, math.ceil(bottom))
    stencil = Image.new("L", ((x1 - x0) * SUPERSAMPLE, (y1 - y0) * SUPERSAMPLE))
    draw = ImageDraw.Draw(stencil)
    for points, value in ((shape.outline, 255), (shape.hole, 0)):
        if len(points):
            # Pillow's coordinates are those of pixel centres.
            fine = (points - (x0, y0)) * SUPERSAMPLE - 0.5
            draw.polygon([(float(x), float(y)) for x, y in fine], fill=value)
    alpha = np.asarray(stencil.reduce(SUPERSAMPLE), dtype=np.float64) / 255
    window = canvas[y0:y1, x0:x1]
    window += alpha[..., None] * (shape.colour - window)
    mask = np.zeros((size, size), dtype=bool)
    mask[y0:y1, x0:x1] = alpha >= 0.5
    return mask


def _hull(shapes: list[_Shape]) -> tuple[float, float, float, float]:
    boxes = np.array([shape.box for shape in shapes])
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    left, top, right, bottom = box
    return [round(left, 2), round(top, 2), round(right - left, 2), round(bottom - top, 2)]


def _record(shape: _Shape, mask: NDArray[np.bool_]) -> Record:
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


def _crowd_record(cluster: list[_Shape], mask: NDArray[np.bool_]) -> Record:
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
