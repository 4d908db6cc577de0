"""Predictions of a whole split, and their accuracy; alone, and within training.

Shapes: B images, K classes, T of them kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detr_container.base.files import write_json
from detr_container.base.shortage import asking
from detr_container.config.backbones import has_dense
from detr_container.config.classification import ClassificationExperiment
from detr_container.datasets.labelled import LabelledBatch, LabelledImages
from detr_container.datasets.loader import Ends, batches, evaluation_loader
from detr_container.engine.graphs import CudaRecorder, Replays, why_eager
from detr_container.engine.precision import InPrecision, described
from detr_container.engine.session import Session
from detr_container.models.classifier import ImageClassifier
from detr_container.models.device import Fetched

from .mixing import Normalisation
from .predictions import MOST, Predictions
from .scores import Scores, score


@torch.inference_mode()
def classify(
    model: ImageClassifier,
    dataset: LabelledImages,
    experiment: ClassificationExperiment,
    session: Session,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    ends: Ends = lambda short: False,
) -> tuple[Predictions, NDArray[np.float32]]:
    """Predictions of every image, each once, and the loss of each; complete on the main process, of none on others.

    after_batch: gets how many batches of how many are done, as often on every process; it may raise to stop them all.
    ends: see `batches`.
    """
    data, kept = experiment.data, min(MOST, len(dataset.folder.classes))
    loader = evaluation_loader(
        dataset,
        batch=data.eval_batch,
        rank=session.process.rank,
        world=session.world,
        workers=data.workers,
        pin_memory=session.device.type == "cuda",
    )
    rounds = -(-len(dataset) // (data.eval_batch * session.world))
    was_training = model.training
    model.eval()
    compute = InPrecision(model, experiment.train.precision, session.device)
    normalise = Normalisation(model.mean, model.std, model.memory_format)

    def rows_of(form: None, images: Tensor, labels: Tensor) -> Tensor:
        del form
        return _packed(compute(normalise(images)), labels, kept)

    eager = why_eager(experiment.train.graphs, session.device, "")
    replays = Replays(rows_of, session.device, None if eager else CudaRecorder(session.device))
    found, waiting = [_Rows.none(kept)], None
    supply = batches(loader, ends)
    try:
        for done in range(1, rounds + 1):
            batch = next(supply, None)
            before, waiting = waiting, None
            if batch is not None:
                waiting = batch, Fetched(replays(None, batch.images, batch.labels))
            if before is not None:
                # Its copy was under way while the device was given more to do.
                found.append(_Rows.of(*before))
            after_batch(done, rounds)
        if waiting is not None:
            found.append(_Rows.of(*waiting))
    finally:
        model.train(was_training)
    every = _Rows.joined([_Rows.none(kept), *session.to_main(_Rows.joined(found))])
    return every.predictions(), every.values[:, -1].copy()


def _packed(logits: Tensor, labels: Tensor, kept: int) -> Tensor:
    """[B, 2 T + 1] float32: the most probable classes (exact up to 2^24), their probabilities, the label's loss."""
    logarithms = logits.float().log_softmax(dim=1)
    best = logarithms.topk(kept, dim=1)
    losses = -logarithms.gather(1, labels[:, None])
    return torch.cat((best.indices.float(), best.values.exp(), losses), dim=1)


class _Rows(NamedTuple):
    """Images with what was found of each: ids and labels [N], and values [N, 2 T + 1] as `_packed`."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    values: NDArray[np.float32]

    @classmethod
    def none(cls, kept: int) -> _Rows:
        """Of no image."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2 * kept + 1), np.float32))

    @classmethod
    def of(cls, batch: LabelledBatch, rows: Fetched) -> _Rows:
        """Of a batch; waits for what was found."""
        return cls(np.array(batch.image_ids, dtype=np.int64), batch.labels.numpy(), rows.wait().numpy())

    @classmethod
    def joined(cls, parts: Sequence[_Rows]) -> _Rows:
        """All parts' together, by rising ids."""
        order = np.argsort(np.concatenate([part.ids for part in parts]))
        return cls(*(np.concatenate(columns)[order] for columns in zip(*parts, strict=True)))

    def predictions(self) -> Predictions:
        """The same as an evaluation keeps it."""
        kept = self.values.shape[1] // 2
        classes, probabilities = self.values[:, :kept].astype(np.int64), self.values[:, kept : 2 * kept].copy()
        return Predictions(self.ids, self.labels, classes, probabilities, np.exp(-self.values[:, -1]))


def evaluate_to(
    folder: Path,
    model: ImageClassifier,
    dataset: LabelledImages,
    experiment: ClassificationExperiment,
    session: Session,
    after_batch: Callable[[int, int], None] = lambda done, total: None,
    ends: Ends = lambda short: False,
) -> Scores | None:
    """Predict, write `predictions.npz` and `scores.json` to `folder`, and return the scores.

    Returns None on all processes but the main one. after_batch, ends: see `classify`.
    Raises FloatingPointError where a prediction is not finite.
    """
    with asking("evaluation", memory_of(experiment)):
        found, losses = classify(model, dataset, experiment, session, after_batch, ends)
    if not session.main:
        return None
    if not np.isfinite(losses).all():
        first = int(found.image_ids[~np.isfinite(losses)][0])
        raise FloatingPointError(
            f"NaN or Inf in what the model predicts for {dataset.folder.path(first)}: use train.precision=fp32, or "
            "weights of an earlier epoch"
        )
    scores = score(found, losses, dataset.folder.classes)
    found.write(folder)
    noted = evaluated_with(dataset, experiment, session.device)
    write_json(folder / "scores.json", {**scores.to_dict(), "evaluated_with": noted})
    return scores


def evaluated_with(
    dataset: LabelledImages, experiment: ClassificationExperiment, device: torch.device
) -> dict[str, Any]:
    """On what and how predictions were made: what two results must share to be compared."""
    data, precision = experiment.data, experiment.train.precision
    return {
        **dataset.folder.version(),
        "size": data.evaluated_at,
        "crop_ratio": data.crop_ratio,
        "interpolation": data.interpolation,
        "grey": data.grey,
        **({"dense": experiment.backbone.dense} if has_dense(experiment.backbone.name) else {}),
        "eval_batch": data.eval_batch,
        "precision": precision,
        "arithmetic": described(precision, device, experiment.in_float32),
    }


def memory_of(experiment: ClassificationExperiment) -> dict[str, Any]:
    """The settings that decide what a forward pass takes at evaluation."""
    data = experiment.data
    return {"data.eval_batch": data.eval_batch, "data.eval_size": data.evaluated_at}
