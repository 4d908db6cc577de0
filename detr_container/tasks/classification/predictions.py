"""Predictions of many images as columns: what an evaluation makes, gathers, keeps on disk, scores and draws.

Names of sizes: N images, T classes kept of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detr_container.engine.columns import REMEDY, read_columns, write_columns

NAME = "predictions.npz"
MOST = 5
"""Classes that are kept of an image, best first."""
_COLUMNS: dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]] = {
    "image_ids": (np.dtype(np.int64), ()),
    "labels": (np.dtype(np.int64), ()),
    "classes": (np.dtype(np.int64), (None,)),
    "probabilities": (np.dtype(np.float32), (None,)),
    "true_probability": (np.dtype(np.float32), ()),
}
"""Of a file: the type of each column and the shape of an entry."""


@dataclass(frozen=True)
class Predictions:
    """Of each image the most probable classes, best first.

    image_ids: [N], rising, the images' places in their split; labels: [N] true classes; classes: [N, T] and
    probabilities: [N, T] of the T most probable; true_probability: [N] of the label.
    """

    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    true_probability: NDArray[np.float32]

    def top(self, k: int) -> NDArray[np.bool_]:
        """[N] whether the label is among the k most probable classes. With fewer classes it always is.

        Raises ValueError for more than are kept.
        """
        if not 1 <= k <= MOST:
            raise ValueError(f"top {k}: of each image the {MOST} most probable classes are kept, so choose 1 to {MOST}")
        return np.asarray((self.classes[:, :k] == self.labels[:, None]).any(axis=1))

    def write(self, folder: Path) -> None:
        """Write `NAME` into a folder, whole or not at all; the same predictions give the same bytes."""
        write_columns(folder / NAME, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote. Raises ValueError for anything else, OSError for what the system refuses."""
        found = cls(**read_columns(path, _COLUMNS, "predictions"))
        if wrong := _mistake(found):
            raise ValueError(f"{path} is no file of predictions: {wrong}. {REMEDY}")
        return found


def _mistake(found: Predictions) -> str:
    """What does not fit together; empty when all does."""
    count, kept = len(found.image_ids), found.classes.shape[1]
    if any(len(column) != count for column in vars(found).values()) or found.probabilities.shape[1] != kept:
        return "its columns are not of the same length"
    if not 1 <= kept <= MOST:
        return f"it keeps {kept} classes of each image, not 1 to {MOST}"
    if (np.diff(found.image_ids) <= 0).any():
        return "image ids do not rise"
    if count and (found.labels.min() < 0 or found.classes.min() < 0):
        return "classes count from 0"
    for column in (found.probabilities, found.true_probability):
        if not ((column >= 0) & (column <= 1 + 1e-4)).all():
            return "probabilities do not lie between 0 and 1"
    if (np.diff(found.probabilities, axis=1) > 0).any():
        return "probabilities do not fall"
    return ""
