"""Validation images with what they are taken for: the sheet that every evaluation leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detr_container.base.files import atomic_write
from detr_container.datasets.labelled import LabelledImages
from detr_container.drawing.fonts import legible_names
from detr_container.drawing.images import PALETTE, contact_sheet, row, to_image

from .predictions import Predictions

COLUMNS, LINES = 6, 4
SIDE, FRAME = 224, 6
"""Of an image on the sheet, in pixels, and of the frame that says whether it is right."""
RIGHT, WRONG = PALETTE[2], PALETTE[5]


def draw_predictions(dataset: LabelledImages, found: Predictions, target: Path) -> None:
    """Draw the images that are most confidently taken for what they are not, and some that are right.

    Of both up to half of the sheet; where there are fewer mistakes, more that are right.
    """
    names = legible_names(dataset.folder.classes)
    wrong, right = _chosen(found)
    tiles = [_tile(dataset, found, int(at), names) for at in (*wrong, *right)]
    mistakes = int((~found.top(1)).sum())
    caption = (
        f"{len(found.labels) - mistakes:,} of {len(found.labels):,} images are right. Orange frames: the mistakes of "
        "the highest probability; green frames: right ones, evenly spread. Per cent: the probability of the class."
    )
    title = "Validation images: predicted classes"
    sheet = contact_sheet(tiles, title, caption, min(COLUMNS, len(tiles)))
    atomic_write(target, lambda file: sheet.save(file, format="PNG"))


def _chosen(found: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the wrong ones, the most confident first, and of the right ones, in order."""
    is_right = found.top(1)
    wrong, right = np.flatnonzero(~is_right), np.flatnonzero(is_right)
    wrong = wrong[np.argsort(-found.probabilities[wrong, 0], kind="stable")]
    count, half = COLUMNS * LINES, COLUMNS * LINES // 2
    wrong = wrong[: max(half, count - len(right))]
    places = np.linspace(0, len(right) - 1, min(count - len(wrong), len(right))).round().astype(int)
    return wrong, right[places]


def _tile(dataset: LabelledImages, found: Predictions, at: int, names: list[str]) -> Image.Image:
    """One image in its frame under its name, and under what it is taken for, if that is another."""
    label, predicted = int(found.labels[at]), int(found.classes[at, 0])
    image = to_image(dataset[(0, int(found.image_ids[at]))].image)
    image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC if image.width < SIDE else Image.Resampling.LANCZOS)
    framed = ImageOps.expand(image, FRAME, RIGHT if label == predicted else WRONG)
    sure = f"{100 * float(found.probabilities[at, 0]):.0f} %"
    words = f"{names[label]} {sure}" if label == predicted else f"{names[label]}, taken for {names[predicted]} {sure}"
    return row([framed], [words], letters=15)
