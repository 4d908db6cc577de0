"""Several models on the same picture: what each found, which of it is the same object, and where each looked for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from detr_container.datasets.annotations import Annotations, read_annotations, resolve_split

from .files import atomic_write, write_json
from .pictures import contact_sheet, draw_detections, outlined, overlay_heat, row, to_image
from .predict import Prediction, as_records, file_stems, over_picture, predict, query_maps
from .terminal import shown
from .trained import Trained, open_trained

_log = logging.getLogger(__name__)

SAME = 0.5
"""The least IoU of two boxes of one class that are taken for the same object."""
LINES = 50
"""The most objects that a sheet has lines for: JPEG allows 65,535 pixels."""
_PANEL, _LEAST, _GAP, _LETTERS = 512, 320, 8, 21
"""Pixels: the longer side of a map, the least width of a panel, between panels, of the titles' font."""


@dataclass(frozen=True)
class Model:
    """A trained model under the name that it bears on sheets and in JSON."""

    label: str
    trained: Trained

    def __str__(self) -> str:
        settings = self.trained.experiment
        return f"{settings.head.kind} on {settings.backbone.label}, step {self.trained.step}"

    @property
    def stride(self) -> int:
        """Pixels of the resized picture to a cell of the encoder."""
        return self.trained.model.backbone.strides[-1]


@dataclass(frozen=True)
class Found:
    """One detection of one model: its record, its box [4] xyxy in the file's pixels, its maps [m, h, w] over cells."""

    record: dict[str, Any]
    box: Tensor
    maps: Tensor


Object = list[Found | None]
"""The detections of one object, one per model in their order, None where a model has not found it."""


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


def open_models(paths: Sequence[Path], device: torch.device, experiments: Sequence[str] = ()) -> list[Model]:
    """Load two or more models that have classes in common.

    experiments: the named experiment of each that is a published checkpoint, "" where it should be guessed.
    Raises ValueError for fewer, when no class name is common to all of them, or when images are turned for some of them
    only, and what `open_trained` raises.
    """
    if len(paths) < 2:
        named = f"only {paths[0]}" if paths else "no model"
        raise ValueError(
            f"{named} is given, and two or more are inspected side by side: name their runs or checkpoints before "
            "--image. `detr-container predict RUN IMAGES... --maps` looks at one"
        )
    if experiments and len(experiments) != len(paths):
        raise ValueError(
            f"--experiment has {len(experiments)} names for {len(paths)} models: give one per model in their order, "
            '"" for those that say themselves what they are'
        )
    trained = [
        open_trained(path, device, name) for path, name in zip(paths, experiments or [""] * len(paths), strict=True)
    ]
    models = [Model(label, one) for label, one in zip(labels(paths), trained, strict=True)]
    _compare_classes(models)
    if len({model.trained.experiment.data.apply_orientation for model in models}) > 1:
        applied = {model.label: model.trained.experiment.data.apply_orientation for model in models}
        raise ValueError(f"the models differ in data.apply_orientation, and so would what they look at: {applied}")
    return models


def labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart; a path that is given again is numbered."""
    whole = [path.resolve() for path in paths]
    apart = len(set(whole))
    depths = range(1, max(len(path.parts) for path in whole) + 1)
    depth = next(depth for depth in depths if len({path.parts[-depth:] for path in whole}) == apart)
    found: list[str] = []
    for place, path in enumerate(whole):
        again = whole[:place].count(path)
        found.append("/".join(path.parts[-depth:]) + (f" ({again + 1})" if again else ""))
    return found


def _compare_classes(models: Sequence[Model]) -> None:
    """Raise ValueError without a class name common to all models; warn of names that only some of them know."""
    known = [{category.name.casefold(): category.name for category in model.trained.classes} for model in models]
    common = set.intersection(*(set(names) for names in known))
    if not common:
        lists = "; ".join(f"{m.label}: {_some(list(names.values()))}" for m, names in zip(models, known, strict=True))
        raise ValueError(
            f"the models have no class in common ({lists}): objects are matched by their class's name, so inspect "
            "models that were trained on the same classes"
        )
    # Published heads have rows that no category of COCO belongs to; nobody misses those.
    every = {key: name for names in known for key, name in names.items() if not name.startswith("(unused id ")}
    if alone := [name for key, name in every.items() if key not in common]:
        _log.warning("not all of the models know %s: the others cannot find such objects", _some(alone))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def write_inspection(
    models: Sequence[Model], paths: Sequence[Path], folder: Path, threshold: float = 0.5, lines: int = 6
) -> dict[str, Any]:
    """Look at pictures with every model; writes `inspection.json` and a sheet per picture, returns what the JSON holds.

    threshold: what is below is not found; lines: how many objects of a picture get a line of maps, the surest first.
    The JSON names the models by their labels, and has for every picture all objects, surest first, each with its class
    and a detection per model, null where that one has not found it:
    category_id, category, score; bbox: x, y, width, height in pixels; query: which of the model's queries;
    iou: with the first model's box, null where that one has not found the object;
    attention_in_box: the share of the last decoder layer's attention (mean over heads) that lies within the box;
    picture_in_box: the share of the picture within the box, which is what evenly spread attention would have there.
    Raises ValueError for figures out of range and for what is no picture.
    """
    if not paths:
        raise ValueError("no image is given: name files, or folders of images, behind --image")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold:g}: scores lie between 0 and 1, so choose a number from 0 to 1")
    if not 0 <= lines <= LINES:
        raise ValueError(f"objects={lines}: a sheet has lines for 0 to {LINES} objects; inspection.json has them all")
    truths = known_truths(models, paths)
    streams = [predict(model.trained, paths, maps=True) for model in models]
    pictures = []
    for path, stem, *predictions in zip(paths, file_stems(paths), *streams, strict=True):
        found = [look(*pair, threshold) for pair in zip(models, predictions, strict=True)]
        objects = match_across(found)
        record = _record(models, predictions[0], objects)
        record |= {"sheet": f"{stem}.jpg", "truth": truths[path][0].path if path in truths else None}
        pictures.append(record)
        title = f"{path.name}: {tally(record, [model.label for model in models])}"
        sheet = draw_sheet(models, predictions, objects, truths.get(path), threshold, lines, title)
        atomic_write(folder / record["sheet"], partial(sheet.save, format="JPEG", quality=92))
    described = [
        {"label": m.label, "source": m.trained.source, "step": m.trained.step, "stride": m.stride}
        | {"head": m.trained.experiment.head.kind, "backbone": m.trained.experiment.backbone.name}
        for m in models
    ]
    report = {"models": described, "threshold": threshold, "same_object_iou": SAME, "pictures": pictures}
    write_json(folder / "inspection.json", report)
    return report


def look(model: Model, prediction: Prediction, threshold: float) -> list[Found]:
    """What a model has found in one picture at or above a score, best first, with its maps."""
    rows = as_records(prediction, model.trained, threshold)["detections"]
    boxes, queries = prediction.found.boxes.float().cpu(), prediction.found.queries.tolist()
    height, width = prediction.image.shape[1:]
    found = []
    for record, box, query in zip(rows, boxes, queries, strict=False):
        maps = query_maps(prediction, query)
        x1, y1, x2, y2 = (box.clamp(min=0).minimum(torch.tensor([width, height] * 2))).tolist()
        shares = {
            "query": query,
            "attention_in_box": within_box(maps[0], box, prediction),
            "picture_in_box": max(0.0, x2 - x1) * max(0.0, y2 - y1) / (width * height),
        }
        found.append(Found(record | shares, box, maps))
    return found


def within_box(heat: Tensor, box: Tensor, prediction: Prediction) -> float:
    """The share in [0, 1] of a map's mass within a box; a cell's mass is spread evenly over its part of the picture.

    heat: [h, w] over the padded canvas's cells; box: [4] xyxy in the file's pixels.
    """
    low, high = box[:2].flip(0).tolist(), box[2:].flip(0).tolist()
    shares = []
    for axis, cells in enumerate(heat.shape):
        pixels, true = prediction.size[axis], prediction.image.shape[1 + axis]
        edges = torch.linspace(0, prediction.canvas[axis], cells + 1, dtype=torch.float64).clamp(max=pixels)
        start, end = low[axis] * pixels / true, high[axis] * pixels / true
        inside = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
        # A cell that is all padding has no width, and no attention either.
        shares.append(inside.clamp(min=0) / edges.diff().clamp(min=1e-9))
    weights = heat.double()
    return float((shares[0] @ weights @ shares[1]) / weights.sum())


def match_across(found: Sequence[Sequence[Found]]) -> list[Object]:
    """Tell which detections of several models are the same object; surest first.

    Model by model, detections are assigned to the objects so far (to the box of the first model that found each) such
    that the sum of IoUs is largest (Kuhn 1955); pairs need one class and an IoU of `SAME`. The rest are new objects.
    """
    objects: list[Object] = []
    for place, detections in enumerate(found):
        free = set(range(len(detections)))
        if objects and detections:
            first = [finder(thing)[1] for thing in objects]
            overlap = _ious(first, detections)
            named = [[_class(one) == _class(other) for other in detections] for one in first]
            allowed = np.array(named) & (overlap >= SAME)
            for line, column in zip(*linear_sum_assignment(np.where(allowed, overlap, 0), maximize=True), strict=True):
                if allowed[line, column]:
                    objects[line][place] = detections[column]
                    free.remove(column)
        for index in sorted(free):
            objects.append([detections[index] if model == place else None for model in range(len(found))])
    return sorted(objects, key=lambda thing: -max(one.record["score"] for one in thing if one))


def finder(thing: Object) -> tuple[int, Found]:
    """The first model that has found an object, and its detection."""
    return next((place, one) for place, one in enumerate(thing) if one)


def _class(one: Found) -> str:
    return str(one.record["category"]).casefold()


def _ious(ours: Sequence[Found], theirs: Sequence[Found]) -> np.ndarray:
    """[n, m]; boxes without area overlap nothing."""
    overlap = box_iou(torch.stack([one.box for one in ours]), torch.stack([one.box for one in theirs]))
    return overlap.nan_to_num().numpy()


def _record(models: Sequence[Model], prediction: Prediction, objects: Sequence[Object]) -> dict[str, Any]:
    """One picture as JSON has it."""
    height, width = prediction.image.shape[1:]
    things = []
    for thing in objects:
        detections: dict[str, Any] = {}
        for model, one in zip(models, thing, strict=True):
            iou = float(_ious([thing[0]], [one])[0, 0]) if one and thing[0] else None
            detections[model.label] = one.record | {"iou": iou} if one else None
        things.append({"category": finder(thing)[1].record["category"], "detections": detections})
    return {"file": str(prediction.path), "width": width, "height": height, "objects": things}


def tally(picture: dict[str, Any], labels: Sequence[str]) -> str:
    """How many objects of a picture (as JSON has it) were found by every model, by one alone, and by some of them."""
    groups = Counter(tuple(name for name in labels if thing["detections"][name]) for thing in picture["objects"])
    every, alone = tuple(labels), [(name,) for name in labels]
    some = [group for group in groups if group != every and group not in alone]
    said = [f"{groups[every]} found by {'both' if len(labels) == 2 else 'all'}"]
    said += [f"{groups[group]} only by {' and '.join(group)}" for group in [*some, *alone]]
    count = len(picture["objects"])
    return f"{count} object{'s' * (count != 1)}: {', '.join(said)}"


Truth = tuple[Annotations, int]
"""An annotation file and the place of a picture in it."""


def known_truths(models: Sequence[Model], paths: Sequence[Path]) -> dict[Path, Truth]:
    """What is annotated in those pictures that belong to the validation set of one of the models.

    A picture belongs to it that lies in its folder and is named in its annotation file. A set that is not here, or that
    cannot be read (which is said), is no reason to refuse.
    """
    found: dict[Path, Truth] = {}
    for model in models:
        data = model.trained.experiment.data
        try:
            images, file = resolve_split("val", data.root, data.val_images, data.val_annotations)
        except (ValueError, FileNotFoundError):
            continue
        # The folder's links are followed, not the picture's: the pictures of a set may be links themselves.
        real = {path: path.parent.resolve() / path.name for path in paths if path not in found}
        inside = {
            path: at.relative_to(images.resolve()) for path, at in real.items() if at.is_relative_to(images.resolve())
        }
        if not inside:
            continue
        try:
            annotations = read_annotations(file, images)
        except (ValueError, OSError) as error:
            _log.warning("no ground truth is shown: %s", error)
            continue
        places = {Path(name): place for place, name in enumerate(annotations.file_names)}
        found |= {path: (annotations, places[name]) for path, name in inside.items() if name in places}
    return found


def draw_sheet(
    models: Sequence[Model],
    predictions: Sequence[Prediction],
    objects: Sequence[Object],
    truth: Truth | None,
    threshold: float,
    lines: int,
    title: str,
) -> Image.Image:
    """One picture: what is annotated (where it is known) and found, then a line of every model's maps per object."""
    image = to_image(predictions[0].image)
    small = _scaled(image, _PANEL * image.width / max(image.size))
    shown = objects[:lines]
    rows = [_maps_row(models, predictions, small, number, thing) for number, thing in enumerate(shown, 1)]
    panels = len(models) + (truth is not None)
    # As wide as the lines of maps, so that little of the sheet is wasted where each model has two maps; but titles give
    # very high pictures lines that are much wider than what they show.
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
        names = ["attention", *(["Gaussian"] if prediction.output.gaussians is not None else [])]
        if one is None:
            # Where another model has found it, so that one sees what is missing.
            grey = outlined(image.convert("L"), finder(thing)[1].box * factor, dashed=True)
            panels += [grey] * len(names)
            titles += [f"{number}. {model.label}: not found\n{name}" for name in names]
            continue
        panels += [outlined(overlay_heat(image, heat), one.box * factor) for heat in over_picture(one.maps, prediction)]
        record = one.record
        head = f"{number}. {model.label}: {shown(record['category'])} {record['score']:.2f}"
        share = f"{record['attention_in_box']:.0%} in the box ({record['picture_in_box']:.0%} if even)"
        titles += [f"{head}\n{name}{f', {share}' if name == 'attention' else ''}" for name in names]
    return row(panels, titles, _GAP, _LETTERS, _LEAST)


def _caption(
    models: Sequence[Model], predictions: Sequence[Prediction], shown: int, count: int, threshold: float
) -> str:
    if not count:
        return f"No model has a detection of score {threshold:g} or above."
    cells = []
    for model, prediction in zip(models, predictions, strict=True):
        attention = prediction.output.attention
        height, width = attention.shape[-2:] if attention is not None else (0, 0)
        cells.append(f"{model.label}: {height} x {width} cells at stride {model.stride}")
    parts = [
        f"The {shown} surest of {count} objects" if shown < count else "Objects, surest first",
        f", matched across models by class and an IoU of at least {SAME:g}. Not found: no such detection of score "
        f"{threshold:g} or above; dashed is where another model has found it.\n"
        f"Attention: last decoder layer, mean over heads. It covers the encoder's cells ({'; '.join(cells)}), "
        "interpolated here. Every map is scaled by its own largest value: brightness compares places within a map, not "
        "maps. In the box: the share of the attention's mass within the model's box; if even: the share that attention "
        "spread evenly over the picture would have.",
    ]
    return "".join(parts)
