"""Detections of a whole data set, and their COCO metrics; alone, and within training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detr_container.base.files import write_json
from detr_container.base.shortage import asking
from detr_container.config.detection import DetectionExperiment
from detr_container.config.memory import for_evaluation
from detr_container.datasets.annotations import Category, read_annotations
from detr_container.datasets.canvas import Canvases
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.loader import Ends, batches, evaluation_loader
from detr_container.engine.precision import described
from detr_container.engine.session import Session
from detr_container.models.detector import Detector

from .build import evaluation_augmentation, make_shapes_if_asked
from .canvases import as_json, grid_of, name_of, padding_of
from .coco_results import OLD_NAME
from .detections import NAME, Detections
from .finding import Waiting, finder_of
from .scores import Scores
from .scoring import Evaluator, score
from .splits import one_split


@torch.inference_mode()
def detect(
    model: Detector,
    dataset: DetectionDataset,
    classes: Sequence[Category],
    experiment: DetectionExperiment,
    session: Session,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    ends: Ends = lambda short: False,
) -> Detections:
    """Detections of every image, each once; complete on the main process, of no image on others.

    classes: what the model's labels index. after_batch: gets how many batches of how many are done, as often on every
    process; it may raise to stop them all. ends: see `batches`.
    """
    data, ids = experiment.data, [category.id for category in classes]
    loader = evaluation_loader(
        dataset,
        batch=data.eval_batch,
        rank=session.process.rank,
        world=session.world,
        padding=padding_of(data, model, canvases_of(model, dataset, experiment, session)),
        workers=data.workers,
        pin_memory=session.device.type == "cuda",
    )
    rounds = -(-len(dataset) // (data.eval_batch * session.world))
    was_training = model.training
    model.eval()
    find = finder_of(model, experiment, session.device)
    found: list[Detections] = []
    waiting: Waiting | None = None
    supply = batches(loader, ends)
    try:
        for done in range(1, rounds + 1):
            batch = next(supply, None)
            before, waiting = waiting, None
            if batch is not None:
                waiting = find(batch)
            if before is not None:
                # Its copy was under way while the device was given more to do.
                found.append(before.detections(ids))
            after_batch(done, rounds)
        if waiting is not None:
            found.append(waiting.detections(ids))
    finally:
        model.train(was_training)
    return Detections.joined(session.to_main(Detections.joined(found, ids)), ids)


def canvases_of(
    model: Detector, dataset: DetectionDataset, experiment: DetectionExperiment, session: Session
) -> Canvases | None:
    """The canvases of an evaluation; None where none are used."""
    grid = grid_of(experiment, model, session.device)
    return grid.evaluation(dataset.annotations.sizes) if grid else None


def open_validation(experiment: DetectionExperiment, unlabelled: bool = False) -> DetectionDataset:
    """The validation split alone, as evaluation reads it; unlabelled: a file without annotations will do."""
    data = experiment.data
    make_shapes_if_asked(data)
    images, annotations = one_split("val", data)
    read = read_annotations(annotations, images, unlabelled, segmentations=experiment.masks)
    return DetectionDataset(read, evaluation_augmentation(data), experiment.seed, data.apply_orientation)


def known_classes(classes: Sequence[Category], dataset: DetectionDataset) -> None:
    """Raise ValueError unless every class of the data set is one that the model knows under the same id."""
    known = {category.id: category.name for category in classes}
    strange = [c for c in dataset.annotations.categories if known.get(c.id, "").lower() != c.name.lower()]
    if strange:
        listed = ", ".join(f"{category.name!r} (id {category.id})" for category in strange[:5])
        raise ValueError(
            f"{dataset.annotations.path} has categories that the model was not trained on: {listed}. "
            "Evaluate on a data set with the model's class list, or fine-tune first (train --init CHECKPOINT)"
        )


def evaluate_to(
    folder: Path,
    model: Detector,
    dataset: DetectionDataset,
    classes: Sequence[Category],
    experiment: DetectionExperiment,
    session: Session,
    evaluator: Evaluator = "faster",
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    ends: Ends = lambda short: False,
) -> Scores | None:
    """Detect, write `detections.npz` and `scores.json` to `folder`, and return the scores.

    Returns None on all processes but the main one, and where the annotation file has no annotations, so that there is
    nothing to score. after_batch, ends: see `detect`.
    """
    known_classes(classes, dataset)
    with asking("evaluation", for_evaluation(experiment)):
        results = detect(model, dataset, classes, experiment, session, after_batch, ends)
    if not session.main:
        return None
    results.write(folder / NAME)
    # Of an earlier version, of the evaluation that this one takes the place of.
    (folder / OLD_NAME).unlink(missing_ok=True)
    if not dataset.annotations.labelled:
        return None
    scores = score(dataset.annotations, results, evaluator)
    data = experiment.data
    canvases = canvases_of(model, dataset, experiment, session)
    eval_settings: dict[str, Any] = {
        "eval_batch": data.eval_batch,
        "eval_size": data.eval_size,
        "max_size": data.max_size,
        "resize": data.resize,
        "canvas": data.canvas,
        "precision": experiment.train.precision,
        "arithmetic": described(experiment.train.precision, session.device, experiment.in_float32),
        "annotations": dataset.annotations.path,
    }
    if canvases:
        eval_settings["canvases"] = name_of(as_json(canvases))
    noted = {"canvases": as_json(canvases)} if canvases else {}
    write_json(folder / "scores.json", {**scores.to_dict(), "evaluated_with": eval_settings, **noted})
    return scores


def with_data(
    experiment: DetectionExperiment,
    root: Path | None,
    images: Path | None,
    annotations: Path | None,
    d2_dataset: str = "",
    d2_import: str = "",
) -> DetectionExperiment:
    """The same experiment evaluated on other data, where any is given."""
    if root is None and images is None and annotations is None and not d2_dataset:
        return experiment
    data = replace(
        experiment.data,
        root=root,
        train_images=None,
        train_annotations=None,
        val_images=images,
        val_annotations=annotations,
        d2_dataset=d2_dataset,
        d2_import=d2_import,
        make_shapes=(0, 0, 0),
    )
    return replace(experiment, data=data)
