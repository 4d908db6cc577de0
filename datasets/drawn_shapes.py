"""Drawing of shapes: outlines of several kinds in random colours, on muted grounds with blotches, light and stripes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
TILT = math.radians(15)
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Shape:
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


def ground(rng: np.random.Generator, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def random_shape(
    rng: np.random.Generator, name: str, centre: NDArray[np.float64], radius: float, base: NDArray[np.float64]
) -> Shape:
    """Draw a shape of this class in a random colour, a little stretched and tilted; `radius` bounds it, in pixels."""
    # Upright, since a small detector needs far more than ten minutes to learn that shapes turn.
    angle, squeeze = -math.pi / 2 + rng.uniform(-TILT, TILT), rng.uniform(0.55 if name == "rectangle" else 0.85, 1.0)
    cos, sin = math.cos(angle), math.sin(angle)
    transform = np.array([[cos, -sin], [sin, cos]]) @ np.diag([radius, radius * squeeze])
    outline, hole = (points @ transform.T + centre for points in _unit(name))
    return Shape(name, outline, hole, colour_beside(rng, base))


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


def colour_beside(rng: np.random.Generator, base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a colour that stands out from the background's."""
    for _ in range(20):
        colour = rng.uniform(15, 240, 3)
        if np.linalg.norm(colour - base) >= 90:
            break
    return colour


def paint(canvas: NDArray[np.float64], shape: Shape) -> NDArray[np.bool_]:
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
