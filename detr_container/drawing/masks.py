"""A mask laid over an image: what it covers is tinted and stays to be seen, and a line follows its edge."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from detr_container.datasets.run_lengths import RunLength

_SHARP = [0] * 128 + [255] * 128
"""By the share of a pixel that is covered, in 255ths: whether it is the mask's."""
_SMOOTH = 0.4
"""The radius over which an enlarged edge is smoothed, in pixels of the mask."""
_TINT = 0.45
"""The colour's share of what a mask covers."""
_RIM = 0.75
"""How dark the line's outer side is, so that it shows on any ground."""


def lay_mask(image: Image.Image, mask: RunLength, colour: tuple[int, int, int], line: int) -> None:
    """Tint what a mask covers, and draw its edge; line: that one's width in pixels.

    The mask covers the whole image, however large either is. It is decoded, so its code must be sound.
    """
    from pycocotools import mask as coco

    covered = coco.decode(mask)
    rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    height, width = covered.shape
    across, down = image.width / width, image.height / height
    # As small a part of the image as holds the edge's outer side, too.
    room = line + 2
    left, right = max(0, math.floor(columns[0] * across) - room), math.ceil((columns[-1] + 1) * across) + room
    top, bottom = max(0, math.floor(rows[0] * down) - room), math.ceil((rows[-1] + 1) * down) + room
    right, bottom = min(right, image.width), min(bottom, image.height)
    source = (left / across, top / down, min(right / across, width), min(bottom / down, height))
    whole = Image.fromarray(np.ascontiguousarray(covered) * np.uint8(255))
    size, within = (right - left, bottom - top), (left, top, right, bottom)
    enlarged = max(across, down) > 1
    shares = whole.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR, box=source)
    if enlarged:
        # As the image is; and so that a single pixel is still seen.
        shares = shares.filter(ImageFilter.GaussianBlur(_SMOOTH * max(across, down)))
    inside = shares.point(_SHARP)
    image.paste(colour, within, inside.point([round(_TINT * value) for value in range(256)]))
    around = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(3)), inside)
    image.paste((0, 0, 0), within, around.point([round(_RIM * value) for value in range(256)]))
    image.paste(colour, within, ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(2 * line + 1))))
