"""Several models on the same images: what each found, which of it is the same object, and its attention maps."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from detr_container.base.files import atomic_write, write_json
from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.coco_classes import is_unused
from detr_container.datasets.given import UnreadableError, file_stems, keep_inputs, none_readable
from detr_container.models.weights.find import Which

from .found_objects import SAME, Model, Object, finder, found_by, ious, match_across
from .inspection_sheet import Truth, draw_sheet
from .predict import Prediction, needs_queries, predict
from .splits import one_split
from .trained import open_trained

_log = logging.getLogger(__name__)
Word = TypeVar("Word", bound=str)

LINES = 50
"""The most objects that a sheet has lines for: JPEG allows 65,535 pixels."""


def open_models(
    paths: Sequence[Path],
    device: torch.device,
    experiments: Sequence[str] = (),
    weights: Sequence[Which] = (),
    classes: Sequence[str] = (),
) -> list[Model]:
    """Load two or more models that have classes in common.

    experiments, weights, classes: as `open_trained` takes them, one per model in their order, "" for what is usual.
    Raises ValueError for fewer, when no class name is common to all of them, or when images are turned for some of them
    only, and what `open_trained` raises.
    """
    if len(paths) < 2:
        named = f"only {paths[0]}" if paths else "no model"
        raise ValueError(
            f"{named} is given, and two or more are inspected side by side: name their runs or checkpoints before "
            "--image. `detr-container predict RUN IMAGES... --maps` looks at one"
        )
    each = (
        _one_each("experiment", experiments, "", len(paths)),
        _one_each("weights", weights, "auto", len(paths)),
        _one_each("classes", classes, "", len(paths)),
    )
    trained = [
        open_trained(path, device, experiment, which, Path(names) if names else None)
        for path, experiment, which, names in zip(paths, *each, strict=True)
    ]
    for path, one in zip(paths, trained, strict=True):
        needs_queries(one.experiment, f"{path}: attention maps")
    models = [Model(label, one) for label, one in zip(labels(paths), trained, strict=True)]
    _compare_classes(models)
    if len({model.trained.experiment.data.apply_orientation for model in models}) > 1:
        applied = {model.label: model.trained.experiment.data.apply_orientation for model in models}
        raise ValueError(f"the models differ in data.apply_orientation, and so would what they read: {applied}")
    return models


def _one_each(option: str, given: Sequence[Word], usual: Word, count: int) -> Sequence[Word]:
    """What is given for each of so many models, or what is usual."""
    if given and len(given) != count:
        raise ValueError(
            f"--{option} has {len(given)} words for {count} models: give one per model in their order, "
            f"{usual or repr(usual)} for those that say themselves what they are"
        )
    return given or [usual] * count


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
    every = {key: name for names in known for key, name in names.items() if not is_unused(name)}
    if alone := [name for key, name in every.items() if key not in common]:
        _log.warning("not all of the models know %s: the others cannot find such objects", _some(alone))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def write_inspection(
    models: Sequence[Model], paths: Sequence[Path], folder: Path, threshold: float = 0.5, lines: int = 6
) -> dict[str, Any]:
    """Run every model on images; writes `inspection.json` and a sheet per image, returns what the JSON holds.

    threshold: what is below is not found; lines: how many objects of an image have a line of attention maps.
    The JSON names the models by their labels, and has for every image all objects, surest first, each with its class
    and a detection per model, null where that one has not found it:
    category_id, category, score; bbox: x, y, width, height in pixels; query: which of the model's queries;
    iou: with the first model's box, null where that one has not found the object;
    attention_in_box: the share of the last decoder layer's attention (mean over heads) that lies within the box;
    image_in_box: the share of the image within the box, which is what evenly spread attention would have there.
    refused: what is wrong with files that cannot be read as images.
    Raises ValueError for numbers out of range, when none of the files can be read, and as `keep_inputs`.
    """
    if not paths:
        raise ValueError("no image is given: name files, or folders of images, behind --image")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold:g}: scores lie between 0 and 1, so choose a number from 0 to 1")
    if not 0 <= lines <= LINES:
        raise ValueError(f"objects={lines}: a sheet has lines for 0 to {LINES} objects; inspection.json has them all")
    stems = file_stems(paths)
    keep_inputs(paths, folder, (f"{stem}.jpg" for stem in stems))
    truths = known_truths(models, paths)
    images: list[dict[str, Any]] = []
    refused: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        try:
            predictions = [
                prediction for model in models for prediction in predict(model.trained, [path], attention_maps=True)
            ]
        except UnreadableError as error:
            refused.append(str(error))
            continue
        found = [found_by(*pair, threshold) for pair in zip(models, predictions, strict=True)]
        objects = match_across(found)
        record = _record(models, predictions[0], objects)
        record |= {"sheet": f"{stem}.jpg", "truth": truths[path][0].path if path in truths else None}
        images.append(record)
        title = f"{path.name}: {tally(record, [model.label for model in models])}"
        sheet = draw_sheet(models, predictions, objects, truths.get(path), threshold, lines, title)
        atomic_write(folder / record["sheet"], partial(sheet.save, format="JPEG", quality=92))
    if not images:
        raise none_readable(refused)
    described = [
        {"label": m.label, "source": m.trained.source, "step": m.trained.step, "stride": m.stride}
        | {"head": m.trained.experiment.head.kind, "backbone": m.trained.experiment.backbone.name}
        for m in models
    ]
    report = {
        "models": described,
        "threshold": threshold,
        "same_object_iou": SAME,
        "images": images,
        "refused": refused,
    }
    write_json(folder / "inspection.json", report)
    return report


def _record(models: Sequence[Model], prediction: Prediction, objects: Sequence[Object]) -> dict[str, Any]:
    """One image as JSON has it."""
    height, width = prediction.image.shape[1:]
    things = []
    for thing in objects:
        detections: dict[str, Any] = {}
        for model, one in zip(models, thing, strict=True):
            iou = float(ious([thing[0]], [one])[0, 0]) if one and thing[0] else None
            detections[model.label] = one.record | {"iou": iou} if one else None
        things.append({"category": finder(thing)[1].record["category"], "detections": detections})
    return {"file": str(prediction.path), "width": width, "height": height, "objects": things}


def tally(image: dict[str, Any], labels: Sequence[str]) -> str:
    """How many objects of an image (as JSON has it) were found by every model, by one alone, and by some of them."""
    groups = Counter(tuple(name for name in labels if thing["detections"][name]) for thing in image["objects"])
    every, alone = tuple(labels), [(name,) for name in labels]
    some = [group for group in groups if group != every and group not in alone]
    counts = [f"{groups[every]} found by {'both' if len(labels) == 2 else 'all'}"]
    counts += [f"{groups[group]} only by {' and '.join(group)}" for group in [*some, *alone]]
    count = len(image["objects"])
    return f"{count} object{'s' * (count != 1)}: {', '.join(counts)}"


def known_truths(models: Sequence[Model], paths: Sequence[Path]) -> dict[Path, Truth]:
    """What is annotated in those images that belong to the validation set of one of the models.

    An image belongs to it that lies in its folder and is named in its annotation file. A set that is not here, or that
    cannot be read (which is logged), is no reason to refuse.
    """
    found: dict[Path, Truth] = {}
    for model in models:
        data = model.trained.experiment.data
        try:
            images, file = one_split("val", data)
        except (ValueError, FileNotFoundError):
            continue
        # The folder's links are followed, not the image's: the images of a set may be links themselves.
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
