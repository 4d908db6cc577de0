"""The pictures on which the compared models disagree most: ground truth, then what each of them found."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detr_container.base.terminal import shown
from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.annotations import Annotations, read_annotations, resolve_split
from detr_container.datasets.images import read_image
from detr_container.drawing.images import draw_detections, row, to_image

from .analysis import Analysis, CellResult
from .document import Figure
from .drawing import listed

PICTURES = 6
SIDE, LETTERS = 400, 14
"""Pixels of each picture's longer side in the page, and of the names on it."""


def disagreement(analysis: Analysis) -> NDArray[np.float64]:
    """How far apart the models are on each picture [N]: the range of the picture's own AP, mean over seeds."""
    quality = np.stack([np.mean([one.quality for one in cell.results], axis=0) for cell in analysis.judged])
    return quality.max(axis=0) - quality.min(axis=0)


def draw(analysis: Analysis, count: int = PICTURES) -> tuple[list[Figure], str]:
    """Sheets of the pictures with the largest disagreement; and why there are none, where there are none."""
    annotations = _pictures_of(analysis)
    if isinstance(annotations, str):
        return [], annotations
    apart = disagreement(analysis)
    order = [int(index) for index in np.argsort(-np.nan_to_num(apart, nan=-1.0), kind="stable") if apart[index] > 0]
    if not order:
        return [], "The models agree on every picture, or there is only one."
    drawings = []
    for number, index in enumerate(order[:count], start=1):
        try:
            drawings.append(_sheet(analysis, annotations, index, f"picture-{number}"))
        except (OSError, ValueError) as error:
            return drawings, f"The rest could not be drawn: {error}"
    return drawings, ""


def _pictures_of(analysis: Analysis) -> Annotations | str:
    """The validation pictures, or why they cannot be shown."""
    experiment: DetectionExperiment = analysis.judged[0].cell.experiment
    data = experiment.data
    try:
        images, _ = resolve_split("val", data.root, data.val_images, data.val_annotations)
        return read_annotations(analysis.annotations, images)
    except (OSError, ValueError) as error:
        return f"The pictures cannot be shown: {error}"


def _sheet(analysis: Analysis, annotations: Annotations, index: int, name: str) -> Figure:
    picture = analysis.ground.pictures[index]
    place = int(np.searchsorted(annotations.image_ids, picture))
    path: Path = annotations.image_dir / annotations.file_names[place]
    full = to_image(read_image(path, analysis.judged[0].cell.experiment.data.apply_orientation))
    scale = SIDE / max(full.size)
    # Made small first, so that lines and names are of the size at which they are seen.
    image = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))))
    objects = slice(int(annotations.starts[place]), int(annotations.starts[place + 1]))
    boxes = annotations.boxes[objects].copy()
    boxes[:, 2:] += boxes[:, :2]
    names = [category.name for category in annotations.categories]
    drawn = partial(draw_detections, image, classes=names, threshold=0.0, legible=0, letters=LETTERS)
    crowd = annotations.crowd[objects]
    sheets = [drawn(boxes=scale * boxes, labels=annotations.labels[objects], scores=None, crowd=crowd)]
    titles, said = ["ground truth"], []
    for cell in analysis.judged:
        found, labels, scores = _found(cell, int(picture), analysis, int((~crowd).sum()))
        sheets.append(drawn(boxes=scale * found, labels=labels, scores=scores))
        quality = float(np.mean([one.quality[index] for one in cell.results]))
        titles.append(f"{cell.cell.label}: {100 * quality:.0f}")
        said.append(f"{cell.cell.label} {100 * quality:.0f}")
    file = shown(path.name)
    caption = f"{file}, and the AP of this picture alone."
    alt = f"Picture {file} with its objects, and with what each model found; AP of the picture {listed(said)}."
    panels = [(title, _jpeg(one)) for title, one in zip(titles, sheets, strict=True)]
    return Figure(name, caption, alt, _jpeg(row(sheets, titles)), wide=True, panels=panels)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def _found(
    cell: CellResult, picture: int, analysis: Analysis, count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """The surest detections of the first seed on one picture: boxes as corners, labels and scores."""
    found = cell.results[0].found
    here = np.flatnonzero(found.images == picture)
    # So many, whatever their scores, which of different models need not mean the same.
    here = here[np.argsort(-found.scores[here], kind="stable")][:count]
    boxes = found.boxes[here].copy()
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.searchsorted(analysis.ground.categories, found.categories[here]), found.scores[here]
