"""From a batch of images to its detections, without waiting for the device until they are asked for.

Shapes: B images, n detections of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.batch import Batch
from detr_container.datasets.run_lengths import RunLengths
from detr_container.engine.graphs import CudaRecorder, Recorder, Replays, why_eager
from detr_container.engine.precision import InPrecision
from detr_container.models.detector import Detector
from detr_container.models.device import Fetched
from detr_container.models.found import Found
from detr_container.models.postprocess import LIMIT, Ranked, counted, postprocess

from .canvases import many_sizes
from .detections import Detections, starts_of
from .pasting import paste


class Waiting(Protocol):
    """The detections of a batch, which may still be computed."""

    def detections(self, category_ids: Sequence[int]) -> Detections:
        """Of each image, in pixels on disk; waits for them. category_ids: what labels index."""


Finder = Callable[[Batch], Waiting]


def finder_of(model: Detector, experiment: DetectionExperiment, device: torch.device) -> Finder:
    """What finds the objects of a batch on the host; model: in evaluation mode, on the device."""
    compute = InPrecision(model, experiment.train.precision, device)
    if experiment.anchors:

        def anchored(batch: Batch) -> Waiting:
            on_device = batch.to(device)
            return _Pasted(batch, compute(on_device.images, on_device.sizes, batch.padded))

        return anchored

    def rows_of(padded: bool, images: Tensor, sizes: Tensor) -> Tensor:
        return _packed(postprocess(compute(images, sizes, padded), None, experiment.loss.classification))

    replays = Replays(rows_of, device, recorder_for(experiment, device))
    return lambda batch: _Rows(batch, Fetched(replays(batch.padded, batch.images, batch.sizes)))


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
class _Rows:
    """What queries have found in a batch, as `_packed`, with boxes in [0, 1]."""

    batch: Batch
    rows: Fetched

    def detections(self, category_ids: Sequence[int]) -> Detections:
        """Of each image those that can count, the `LIMIT` best of each class."""
        rows = self.rows.wait().numpy()
        kept = rows[..., 6] > 0
        scale = np.array([(w, h, w, h) for h, w in self.batch.original_sizes], dtype=rows.dtype)
        boxes = rows[..., 2:6] * scale[:, None]
        rows = rows[kept]
        return Detections(
            np.array(self.batch.image_ids, dtype=np.int64),
            starts_of(kept.sum(axis=1)),
            rows[:, 0].copy(),
            rows[:, 1].astype(np.int64),
            boxes[kept],
            np.array(category_ids, dtype=np.int64),
        )


@dataclass(frozen=True)
class _Pasted:
    """What was found in each image of a batch, with masks in the frames of their boxes."""

    batch: Batch
    found: Sequence[Found]

    def detections(self, category_ids: Sequence[int]) -> Detections:
        """Of each image, masks pasted one image after the other."""
        scaled = [in_pixels(each, size) for each, size in zip(self.found, self.batch.original_sizes, strict=True)]
        masks = [paste_found(each, size) for each, size in zip(scaled, self.batch.original_sizes, strict=True)]
        return Detections(
            np.array(self.batch.image_ids, dtype=np.int64),
            starts_of(np.array([len(each.scores) for each in scaled], dtype=np.int64)),
            np.concatenate([each.scores.cpu().numpy() for each in scaled]),
            np.concatenate([each.labels.cpu().numpy() for each in scaled]),
            np.concatenate([each.boxes.cpu().numpy() for each in scaled]),
            np.array(category_ids, dtype=np.int64),
            None if masks[0] is None else RunLengths.joined([mask for mask in masks if mask is not None]),
        )


def in_pixels(found: Found, size: tuple[int, int]) -> Found:
    """The same with boxes in pixels of an image of `size`, (height, width)."""
    height, width = size
    scale = found.boxes.new_tensor([width, height, width, height])
    return Found(found.scores, found.labels, found.boxes * scale, found.masks)


def ranked(found: Found) -> Ranked:
    """The same as of queries, each of which has found one."""
    queries = torch.arange(len(found.scores), device=found.scores.device)
    return Ranked(found.scores, found.labels, found.boxes, queries)


def paste_found(found: Found, size: tuple[int, int]) -> RunLengths | None:
    """The masks of detections in pixels of an image of `size`; None where there are none."""
    return None if found.masks is None else paste(found.masks, found.boxes, size)
