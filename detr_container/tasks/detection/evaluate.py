"""Detections of a whole data set, and their COCO metrics; alone, and within training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_container.base.files import write_json
from detr_container.base.shortage import asking
from detr_container.config.detection import DetectionExperiment
from detr_container.config.memory import for_evaluation
from detr_container.datasets.annotations import Category, read_annotations, resolve_split
from detr_container.datasets.canvas import Canvases
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.loader import Ends, batches, evaluation_loader
from detr_container.engine.graphs import CudaRecorder, Recorder, Replays, why_eager
from detr_container.engine.precision import InPrecision, described
from detr_container.engine.session import Session
from detr_container.models.detector import Detector
from detr_container.models.device import Fetched
from detr_container.models.postprocess import LIMIT, Ranked, counted, postprocess

from .build import evaluation_augmentation, make_shapes_if_asked
from .canvases import as_json, grid_of, many_sizes, name_of, padding_of
from .coco_results import OLD_NAME
from .detections import NAME, Detections, starts_of
from .scores import Scores
from .scoring import Evaluator, score


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
        padding=padding_of(data, model.backbone, canvases_of(model, dataset, experiment, session)),
        workers=data.workers,
        pin_memory=session.device.type == "cuda",
    )
    rounds = -(-len(dataset) // (data.eval_batch * session.world))
    was_training = model.training
    model.eval()
    compute = InPrecision(model, experiment.train.precision, session.device)

    def rows_of(padded: bool, images: Tensor, sizes: Tensor) -> Tensor:
        return _packed(postprocess(compute(images, sizes, padded), None, experiment.loss.classification))

    replays = Replays(rows_of, session.device, recorder_for(experiment, session.device))
    found: list[Detections] = []
    waiting: _Found | None = None
    supply = batches(loader, ends)
    try:
        for done in range(1, rounds + 1):
            batch = next(supply, None)
            before, waiting = waiting, None
            if batch is not None:
                rows = Fetched(replays(batch.padded, batch.images, batch.sizes))
                waiting = _Found(batch.image_ids, batch.original_sizes, rows)
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
    grid = grid_of(experiment, model.backbone, session.device)
    return grid.evaluation(dataset.annotations.sizes) if grid else None


def recorder_for(experiment: DetectionExperiment, device: torch.device) -> Recorder | None:
    """What records the forward passes of an evaluation; None where they run without graphs."""
    eager = why_eager(experiment.train.graphs, device, many_sizes(experiment.data))
    return None if eager else CudaRecorder(device)


def _packed(found: Ranked) -> Tensor:
    """[B, n, 7] float32: score, label (exact up to 2^24), box, and whether it can count."""
    scores, labels = found.scores[..., None], found.labels[..., None]
    few = scores.shape[1] <= LIMIT
    counts = torch.ones_like(scores) if few else counted(found.labels)[..., None]
    return torch.cat((scores, labels.to(scores.dtype), found.boxes, counts.to(scores.dtype)), dim=-1)


@dataclass(frozen=True)
class _Found:
    """What was found in a batch of images, as `_packed`, with boxes in [0, 1]; sizes: (height, width) on disk."""

    image_ids: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    rows: Fetched

    def detections(self, category_ids: Sequence[int]) -> Detections:
        """Of each image those that can count, the `LIMIT` best of each class; waits for them."""
        rows = self.rows.wait().numpy()
        kept = rows[..., 6] > 0
        scale = np.array([(w, h, w, h) for h, w in self.sizes], dtype=rows.dtype)
        boxes = rows[..., 2:6] * scale[:, None]
        rows = rows[kept]
        return Detections(
            np.array(self.image_ids, dtype=np.int64),
            starts_of(kept.sum(axis=1)),
            rows[:, 0].copy(),
            rows[:, 1].astype(np.int64),
            boxes[kept],
            np.array(category_ids, dtype=np.int64),
        )


def open_validation(experiment: DetectionExperiment, unlabelled: bool = False) -> DetectionDataset:
    """The validation split alone, as evaluation reads it; unlabelled: a file without annotations will do."""
    data = experiment.data
    make_shapes_if_asked(data)
    images, annotations = resolve_split("val", data.root, data.val_images, data.val_annotations)
    read = read_annotations(annotations, images, unlabelled)
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
    experiment: DetectionExperiment, root: Path | None, images: Path | None, annotations: Path | None
) -> DetectionExperiment:
    """The same experiment evaluated on other data, where any is given."""
    if root is None and images is None and annotations is None:
        return experiment
    data = replace(experiment.data, root=root, val_images=images, val_annotations=annotations, make_shapes=(0, 0, 0))
    return replace(experiment, data=data)
