"""A sheet for one image: what is annotated and what each model has found, and below it attention maps, by object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from detr_container.base.terminal import shown
from detr_container.datasets.annotations import Annotations
from detr_container.drawing.images import contact_sheet, draw_detections, outlined, overlay_heat, row, to_image

from .found_objects import SAME, Model, Object, finder
from .predict import Prediction, over_image

_PANEL, _LEAST, _GAP, _LETTERS = 512, 320, 8, 21
"""Pixels: the longer side of an attention map, the least width of a panel, between panels, of the titles' font."""
Truth = tuple[Annotations, int]
"""An annotation file and the place of an image in it."""


@dataclass
class ClassNames:
    """The classes of all models in one list, so that a class has one colour; upper and lower case are the same."""

    names: list[str]

    def number(self, name: str) -> int:
        """The place of a class, which is added where it is new."""
        for place, known in enumerate(self.names):
            if known.casefold() == name.casefold():
                return place
        self.names.append(name)
        return len(self.names) - 1


def draw_sheet(
    models: Sequence[Model],
    predictions: Sequence[Prediction],
    objects: Sequence[Object],
    truth: Truth | None,
    threshold: float,
    lines: int,
    title: str,
) -> Image.Image:
    """One image: what is annotated (where known) and found, then a line of every model's attention maps per object."""
    image = to_image(predictions[0].image)
    small = _scaled(image, _PANEL * image.width / max(image.size))
    shown = objects[:lines]
    rows = [_maps_row(models, predictions, small, number, thing) for number, thing in enumerate(shown, 1)]
    panels = len(models) + (truth is not None)
    # As wide as the lines of attention maps, so that little of the sheet is wasted where each model has two; but titles
    # give very high images lines that are much wider than what they show.
    wide = max(small.width, (max((line.width for line in rows), default=0) + _GAP) // panels - _GAP)
    first = _first_row(models, predictions, _scaled(image, min(wide, 2.1 * small.width)), truth, threshold)
    return contact_sheet([first, *rows], title, _caption(models, predictions, len(shown), len(objects), threshold))


def _scaled(image: Image.Image, width: float) -> Image.Image:
    height = max(1, round(image.height * width / image.width))
    return image.resize((max(1, round(width)), height), Image.Resampling.BICUBIC)


def _first_row(
    models: Sequence[Model],
    predictions: Sequence[Prediction],
    image: Image.Image,
    truth: Truth | None,
    threshold: float,
) -> Image.Image:
    classes = ClassNames([])
    factor = image.width / predictions[0].image.shape[2]
    panels, titles = [], []
    for model, prediction in zip(models, predictions, strict=True):
        numbers = [classes.number(category.name) for category in model.trained.classes]
        found = prediction.found
        marks = [numbers[label] for label in found.labels.tolist()]
        boxes = found.boxes.float().cpu() * factor
        panels.append(
            draw_detections(
                image, boxes, marks, found.scores.float(), classes.names, threshold, legible=0, letters=_LETTERS - 4
            )
        )
        titles.append(f"{model.label}\n{model}")
    if truth:
        annotations, place = truth
        numbers = [classes.number(category.name) for category in annotations.categories]
        rows = slice(int(annotations.starts[place]), int(annotations.starts[place + 1]))
        corners = annotations.boxes[rows] * factor
        corners[:, 2:] += corners[:, :2]
        marks = [numbers[label] for label in annotations.labels[rows]]
        crowd = annotations.crowd[rows]
        panels.insert(
            0, draw_detections(image, corners, marks, None, classes.names, crowd=crowd, legible=0, letters=_LETTERS - 4)
        )
        titles.insert(0, "ground truth")
    return row(panels, titles, _GAP, _LETTERS, _LEAST)


def _maps_row(
    models: Sequence[Model], predictions: Sequence[Prediction], image: Image.Image, number: int, thing: Object
) -> Image.Image:
    factor = image.width / predictions[0].image.shape[2]
    panels, titles = [], []
    for model, prediction, one in zip(models, predictions, thing, strict=True):
        names = ["attention", *(["Gaussian"] if prediction.queried.gaussians is not None else [])]
        if one is None:
            # Where another model has found it, so that one sees what is missing.
            grey = outlined(image.convert("L"), finder(thing)[1].box * factor, dashed=True)
            panels += [grey] * len(names)
            titles += [f"{number}. {model.label}: not found\n{name}" for name in names]
            continue
        panels += [
            outlined(overlay_heat(image, heat), one.box * factor) for heat in over_image(one.attention_maps, prediction)
        ]
        record = one.record
        head = f"{number}. {model.label}: {shown(record['category'])} {record['score']:.2f}"
        share = f"{record['attention_in_box']:.0%} in the box ({record['image_in_box']:.0%} if even)"
        titles += [f"{head}\n{name}{f', {share}' if name == 'attention' else ''}" for name in names]
    return row(panels, titles, _GAP, _LETTERS, _LEAST)


def _caption(
    models: Sequence[Model], predictions: Sequence[Prediction], shown: int, count: int, threshold: float
) -> str:
    if not count:
        return f"No model has a detection of score {threshold:g} or above."
    grids = []
    for model, prediction in zip(models, predictions, strict=True):
        levels = [(*level.shape[-2:], stride) for stride, level in (prediction.queried.attention or {}).items()]
        sizes = [f"{height} x {width} at stride {stride}" for height, width, stride in levels]
        grids.append(f"{model.label}: {', '.join(sizes)}")
    parts = [
        f"The {shown} surest of {count} objects" if shown < count else "Objects, surest first",
        f", matched across models by class and an IoU of at least {SAME:g}. Not found: no such detection of score "
        f"{threshold:g} or above; dashed is where another model has found it.\n"
        f"Attention: last decoder layer, mean over heads. It covers the encoder's positions ({'; '.join(grids)}), "
        "interpolated here. Every map is scaled by its own largest value: brightness compares places within a map, not "
        "maps. In the box: the share of the attention's mass within the model's box; if even: the share that attention "
        "spread evenly over the image would have.",
    ]
    return "".join(parts)
