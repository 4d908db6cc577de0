"""Ground truth beside predictions on some validation images: the image that every evaluation leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detr_container.base.files import atomic_write
from detr_container.datasets.annotations import Annotations, Category
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.images import read_image
from detr_container.datasets.masks import run_length
from detr_container.datasets.run_lengths import RunLength
from detr_container.drawing.images import contact_sheet, draw_detections, image_pair

from .detections import Detections

PAIRS = 8


def draw_validation(
    dataset: DetectionDataset,
    found: Detections,
    classes: Sequence[Category],
    target: Path,
    threshold: float = 0.4,
    pairs: int = PAIRS,
) -> None:
    """Draw evenly spread images of a data set with the detections on it; classes: those that its labels index."""
    annotations = dataset.annotations
    names = [category.name for category in classes]
    truth_names = [category.name for category in annotations.categories]
    chosen = np.linspace(0, len(dataset) - 1, min(pairs, len(dataset))).round().astype(int)
    rows = []
    for index in chosen:
        rows_of = slice(int(annotations.starts[index]), int(annotations.starts[index + 1]))
        image = read_image(annotations.image_dir / annotations.file_names[index], dataset.apply_orientation)
        boxes = annotations.boxes[rows_of].copy()
        boxes[:, 2:] += boxes[:, :2]
        left = draw_detections(
            image,
            boxes,
            annotations.labels[rows_of],
            None,
            truth_names,
            crowd=annotations.crowd[rows_of],
            masks=masks_of(annotations, int(index)),
        )
        own = found.rows_of(int(annotations.image_ids[index]))
        sure = found.scores[own] >= threshold
        right = draw_detections(
            image,
            found.boxes[own][sure],
            found.labels[own][sure],
            found.scores[own][sure],
            names,
            threshold=threshold,
            masks=None if found.masks is None else found.masks.take(np.arange(len(found.scores))[own][sure]),
        )
        rows.append(image_pair(left, right))
    sheet = contact_sheet(
        rows,
        "Validation images: ground truth beside predictions",
        f"Predictions of score {threshold:g} and above.",
        2,
    )
    atomic_write(target, lambda file: sheet.save(file, format="PNG"))


def masks_of(annotations: Annotations, index: int) -> list[RunLength | None] | None:
    """The masks of the objects of image `index`; None where the file was read without segmentations."""
    if annotations.segmentations is None:
        return None
    height, width = annotations.sizes[index].tolist()
    rows = range(int(annotations.starts[index]), int(annotations.starts[index + 1]))
    given = [annotations.segmentations[row] for row in rows]
    return [None if each is None else run_length(each, (height, width)) for each in given]
