"""The images on which the compared models disagree most: ground truth, then what each of them found, masks and all."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr_container.base.terminal import shown
from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.annotations import Annotations
from detr_container.datasets.images import read_image
from detr_container.datasets.run_lengths import RunLengths
from detr_container.drawing.images import draw_detections, row, to_image
from detr_container.tasks.detection.detections import Columns
from detr_container.tasks.detection.splits import one_split

from .analysis import Analysis, ArmResult
from .detectron2.experiment import is_theirs
from .document import Figure
from .svg import listed

IMAGES = 6
SIDE, LETTERS = 400, 14
"""Pixels of each image's longer side in the page, and of the names on it."""


def disagreement(analysis: Analysis) -> NDArray[np.float64]:
    """How far apart the models are on each image [N]: the range of the image's own AP, mean over seeds."""
    quality = np.stack([np.mean([one.quality for one in arm.results], axis=0) for arm in analysis.evaluated])
    return quality.max(axis=0) - quality.min(axis=0)


def sheets(analysis: Analysis, count: int = IMAGES) -> tuple[list[Figure], str]:
    """Sheets of the images with the largest disagreement; and why none, where there are none."""
    annotations = _images_of(analysis)
    if isinstance(annotations, str):
        return [], annotations
    apart = disagreement(analysis)
    order = [int(index) for index in np.argsort(-np.nan_to_num(apart, nan=-1.0), kind="stable") if apart[index] > 0]
    if not order:
        return [], "The models agree on every image, or there is only one."
    drawings = []
    for number, index in enumerate(order[:count], start=1):
        try:
            drawings.append(_sheet(analysis, annotations, index, f"image-{number}"))
        except (OSError, ValueError) as error:
            return drawings, f"The rest could not be drawn: {error}"
    return drawings, ""


def _images_of(analysis: Analysis) -> Annotations | str:
    """The validation images, or why they cannot be shown."""
    experiment = _ours(analysis)
    if experiment is None:
        return "The images cannot be shown: detectron2's folders do not say where they lie."
    data = experiment.data
    try:
        images, _ = one_split("val", data)
        return replace(analysis.images, image_dir=images)
    except (OSError, ValueError) as error:
        return f"The images cannot be shown: {error}"


def _ours(analysis: Analysis) -> DetectionExperiment | None:
    """The first of the experiments that say where the images are."""
    return next((arm.experiment for arm in analysis.evaluated if not is_theirs(arm.experiment)), None)


def _sheet(analysis: Analysis, annotations: Annotations, index: int, name: str) -> Figure:
    image_id = analysis.ground.images[index]
    place = int(np.searchsorted(annotations.image_ids, image_id))
    path: Path = annotations.image_dir / annotations.file_names[place]
    experiment = _ours(analysis)
    full = to_image(read_image(path, experiment is not None and experiment.data.apply_orientation))
    scale = SIDE / max(full.size)
    # Made small first, so that lines and names are of the size at which they are seen.
    image = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))))
    objects = slice(int(annotations.starts[place]), int(annotations.starts[place + 1]))
    boxes = annotations.boxes[objects].copy()
    boxes[:, 2:] += boxes[:, :2]
    names = [category.name for category in annotations.categories]
    drawn = partial(draw_detections, image, classes=names, threshold=0.0, legible=0, letters=LETTERS)
    crowd = annotations.crowd[objects]
    # The rows of an image's objects have the same order in both.
    masks = _masks(analysis.ground.masks, np.flatnonzero(analysis.ground.image == index))
    labels = annotations.labels[objects]
    drawings = [drawn(boxes=scale * boxes, labels=labels, scores=None, crowd=crowd, masks=masks)]
    titles, values = ["ground truth"], []
    for arm in analysis.evaluated:
        found = _found(arm, int(image_id), int((~crowd).sum()))
        corners = found.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        labels = np.searchsorted(analysis.ground.categories, found.categories)
        drawings.append(drawn(boxes=scale * corners, labels=labels, scores=found.scores, masks=found.masks))
        quality = float(np.mean([one.quality[index] for one in arm.results]))
        titles.append(f"{arm.label}: {100 * quality:.0f}")
        values.append(f"{arm.label} {100 * quality:.0f}")
    file = shown(path.name)
    caption = f"{file}, and the AP of this image alone."
    alt = f"Image {file} with its objects, and with what each model found; AP of the image {listed(values)}."
    panels = [(title, _jpeg(one)) for title, one in zip(titles, drawings, strict=True)]
    return Figure(name, caption, alt, _jpeg(row(drawings, titles)), wide=True, panels=panels)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def _found(arm: ArmResult, image: int, count: int) -> Columns:
    """The surest detections of the first seed on one image."""
    found = arm.results[0].found
    rows = np.flatnonzero(found.images == image)
    # So many, whatever their scores, which of different models need not mean the same.
    rows = rows[np.argsort(-found.scores[rows], kind="stable")][:count]
    masks = _masks(found.masks, rows)
    return Columns(found.images[rows], found.categories[rows], found.boxes[rows], found.scores[rows], masks)


def _masks(masks: RunLengths | None, rows: NDArray[np.int64]) -> RunLengths | None:
    return None if masks is None else masks.take(rows)
