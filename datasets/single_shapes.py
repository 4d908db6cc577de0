"""Generated image folders for a classifier: one shape in each image, filled or an outline, among scraps and noise.

The class is the shape and whether it is filled; place, size, tilt, colour and ground say nothing of it. Image i of a
split depends on (seed, split, size, i) alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .drawn_shapes import Points, Shape, ground, paint, random_shape
from .made import MadeConfig, check_same, make_once, write_text

SHAPES = ("circle", "cross", "rectangle", "star", "triangle")
CLASSES = tuple(f"{shape}-{kind}" for shape in SHAPES for kind in ("filled", "outline"))
"""Of image i: the one at i modulo their number."""
MANIFEST = "single-shapes.json"
"""The file in the data set's folder that records how it was made."""
LEAST_SIZE = 32
DARK = 0.45
"""Brightness of a ground, of what it is drawn with."""
HOLE = 0.6
"""Size of what is cut out of an outline, of the shape's."""


def make_single_shapes(root: Path, train: int, val: int, size: int, seed: int = 0) -> bool:
    """Write train/CLASS and val/CLASS to `root`; False when they are there already, made with the same settings.

    train, val: numbers of images; size: side of the square images in pixels. The folder appears only when it is
    complete. Raises ValueError for settings that make no data set, FileExistsError when `root` holds anything else, and
    OSError, which names it, when it cannot be written.
    """
    config = MadeConfig(train, val, size, seed)
    _check(config)
    return make_once(root, lambda folder: _write(folder, config), lambda folder: _check_same(folder, config))


def _check(config: MadeConfig) -> None:
    if min(config.train, config.val) < len(CLASSES):
        raise ValueError(
            f"train={config.train}, val={config.val}: each split needs an image of each of the {len(CLASSES)} classes"
        )
    config.check_drawing(LEAST_SIZE, usual=56)


def _check_same(root: Path, config: MadeConfig) -> None:
    counts = {"train": config.train, "val": config.val}
    parts = [(f"{split} images", f"{split}/*/*.jpg", count) for split, count in counts.items()]
    check_same(root, config, MANIFEST, "single shapes", parts)


def _write(root: Path, config: MadeConfig) -> None:
    for split, count in (("train", config.train), ("val", config.val)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
        for index in range(count):
            pixels, name = draw_single(split == "train", index, config.size, config.seed)
            Image.fromarray(pixels).save(root / split / name / f"{index:06d}.jpg", quality=95, subsampling=0)
    write_text(root / MANIFEST, json.dumps(asdict(config), indent=2) + "\n")


def draw_single(train: bool, index: int, size: int, seed: int) -> tuple[NDArray[np.uint8], str]:
    """Draw one image, [size, size, 3], and say of which class it is."""
    name = CLASSES[index % len(CLASSES)]
    shape, _, kind = name.partition("-")
    rng = np.random.default_rng([seed, size, 0 if train else 1, index])
    canvas, base = ground(rng, size)
    # Light shapes on dark grounds: in the same 500 steps a tiny network learns 94 % of them, and 39 % in any colours.
    canvas, base = canvas * DARK, base * DARK
    for _ in range(int(rng.integers(1, 5))):
        scrap = SHAPES[int(rng.integers(len(SHAPES)))]
        paint(canvas, _light(rng, scrap, rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.03, 0.06) * size, base))
    radius = size * rng.uniform(0.26, 0.42)
    centre = rng.uniform(radius + 1, size - radius - 1, 2)
    drawn = _light(rng, shape, centre, radius, base)
    if kind == "outline":
        drawn = replace(drawn, hole=centre + HOLE * (drawn.outline - centre))
    paint(canvas, drawn)
    canvas += rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), name


def _light(rng: np.random.Generator, name: str, centre: Points, radius: float, base: Points) -> Shape:
    return replace(random_shape(rng, name, centre, radius, base), colour=rng.uniform(110, 250, 3))
