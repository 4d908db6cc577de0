"""Detection as `preflight`, `benchmark` and `compare` try it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detr_container.config.detection import DetectionExperiment, detection
from detr_container.config.settings import Experiment
from detr_container.datasets.batch import Batch, collate
from detr_container.datasets.canvas import drawn_sizes
from detr_container.datasets.check import check_dataset
from detr_container.datasets.loader import permutation
from detr_container.datasets.transforms import Size
from detr_container.engine.precision import InPrecision
from detr_container.engine.session import choose_device
from detr_container.engine.task import Task
from detr_container.engine.trials import Largest, Trials
from detr_container.models.detector import Detector
from detr_container.models.postprocess import postprocess

from .build import Data, make_shapes_if_asked, open_data, training_augmentation
from .canvases import active, grid_of, padding_of
from .largest import LargestBatch, few_images, largest_batch, synthetic_batch
from .splits import both_splits
from .task import MOST_SLOTS, DetectionTask, task_of

SMALL = 64
"""Side in pixels of a small batch."""


class DetectionTrials(Trials):
    """A detector's trials."""

    experiment: DetectionExperiment

    def __init__(self, experiment: DetectionExperiment) -> None:
        super().__init__(experiment)
        self._data: Data | None = None
        self._compute: InPrecision | None = None

    def like(self, experiment: Experiment) -> DetectionTrials:
        """See `Trials`; what was read is not read again."""
        other = DetectionTrials(detection(experiment))
        other._data = self._data
        return other

    def bare(self, classes: int = 1) -> DetectionTask:
        """See `Trials`."""
        return task_of(self.experiment, None, classes)

    def classes(self, task: Task) -> int:
        """See `Trials`."""
        return _of(task).classes

    def opened(self) -> DetectionTask:
        """See `Trials`."""
        self._data = self._data or open_data(self.experiment)
        return task_of(self.experiment, self._data)

    def check_data(self, limit: int, remark: Callable[[str], None]) -> str:
        """See `Trials`."""
        config = self.experiment.data
        make_shapes_if_asked(config)
        splits = dict(zip(("train", "val"), both_splits(config), strict=True))
        report = check_dataset(
            splits, os.cpu_count() or 1, progress=True, sample=limit, apply_orientation=config.apply_orientation
        )
        if report.errors:
            wrong = [problem.message for problem in report.problems if problem.severity == "error"]
            listed = "".join(f"\n{message}" for message in wrong[:3])
            raise ValueError(
                f"{report.errors} errors{listed}\n`detr-container data check` lists everything that is wrong"
            )
        data = self.opened().data
        for doubt in (*data.train.annotations.doubts, *data.val.annotations.doubts):
            remark(doubt)
        queries = self.experiment.head.queries
        for summary in report.summaries:
            if summary.most_objects > queries and not self.experiment.anchors:
                remark(
                    f"{summary.name}: image {summary.most_objects_image} has {summary.most_objects} objects, of which "
                    f"{queries} at most can be found: raise head.queries={queries}"
                )
        counts = [
            f"{summary.name} read {min(limit or summary.images, summary.images)} of {summary.images} images"
            for summary in report.summaries
        ]
        return f"{', '.join(counts)}; {len(data.classes)} classes; no errors, {report.warnings} warnings"

    def largest(self, task: Task, multiple: int) -> Largest:
        """See `Trials`."""
        config, micro_batch = self.experiment.data, self.experiment.train.micro_batch
        annotations, device = _of(task).data.train.annotations, choose_device(self.experiment.device)
        sizes: Sequence[Size] = ()
        if active(config, device):
            sizes = _of(task).padding(task.build(weights=False), device).canvases
        batch = largest_batch(annotations, config, micro_batch, multiple, sizes)
        side = -(-SMALL // multiple) * multiple
        return Largest(
            f"{micro_batch} x {batch.height} x {batch.width} pixels, up to {max(batch.objects)} objects",
            f"data.scales={config.scales} or data.max_size={config.max_size}",
            asdict(batch),
            asdict(replace(batch, height=side, width=side)),
        )

    def of_size(self, size: tuple[int, int], multiple: int, images: int, objects: int) -> Mapping[str, Any]:
        """See `Trials`."""
        height, width = (-(-side // multiple) * multiple for side in size)
        slots = MOST_SLOTS if active(self.experiment.data, choose_device(self.experiment.device)) else 0
        return asdict(LargestBatch(height, width, (objects,) * images, (height, width) != size, slots))

    def drawn(
        self, model: nn.Module, sizes: Sequence[Size], images: int, batches: int, objects: int
    ) -> list[Mapping[str, Any]]:
        """See `Trials`."""
        assert isinstance(model, Detector)
        images_of, experiment = np.array(sizes), self.experiment
        grid = grid_of(experiment, model, model.pixel_mean.device)
        padding = padding_of(experiment.data, model, grid.training(images_of, images) if grid else None)
        slots = MOST_SLOTS if grid else 0
        found = drawn_sizes(
            images_of, training_augmentation(experiment.data), images, padding, batches, experiment.seed
        )
        return [asdict(LargestBatch(*size, (objects,) * images, padded=True, slots=slots)) for size in found]

    def synthetic(self, task: Task, values: Mapping[str, Any], seed: int = 0) -> Batch:
        """See `Trials`."""
        batch = LargestBatch(**{**values, "objects": tuple(values["objects"])})
        return synthetic_batch(batch, _of(task).classes, seed, self.experiment.masks)

    def learnable(self, task: Task, model: nn.Module) -> Batch:
        """See `Trials`; an image shows something when it has an object."""
        images, experiment = _of(task).data.train, self.experiment
        order = permutation(len(images), experiment.seed, 0)
        shown = islice((index for index in order if len(images.objects(index)[0])), experiment.train.micro_batch)
        samples = [images[(0, index)] for index in shown]
        if not samples:
            raise ValueError("no training image has an object, so there is nothing to learn: see `data check`")
        return collate(samples, _of(task).padding(model))

    def few(self, task: Task, images: int, path: Path) -> DetectionTask:
        """See `Trials`."""
        data = _of(task).data
        return task_of(self.experiment, Data(data.train, few_images(data.val, images, path)))

    def inputs(self, model: nn.Module, size: tuple[int, int]) -> tuple[Any, ...]:
        """See `Trials`."""
        assert isinstance(model, Detector)
        device = model.pixel_mean.device
        image, sizes = torch.zeros(1, 3, *size, device=device), torch.tensor([size], device=device)
        return image, sizes, *self._as_many_as_may_be

    def infer(self, model: nn.Module, batch: Batch) -> None:
        """See `Trials`."""
        if self._compute is None or self._compute.model is not model:
            self._compute = InPrecision(model, self.experiment.train.precision, batch.images.device)
        if self.experiment.anchors:
            self._compute(batch.images, batch.sizes, *self._as_many_as_may_be)
            return
        output = self._compute(batch.images, batch.sizes, batch.padded)
        postprocess(output, batch.original_sizes, self.experiment.loss.classification)

    @property
    def _as_many_as_may_be(self) -> tuple[Any, ...]:
        """How `AnchorDetector` is called to find so many.

        What it costs follows from that, and without training it would find nothing.
        """
        return (True, None, 0.0) if self.experiment.anchors else ()


def _of(task: Task) -> DetectionTask:
    assert isinstance(task, DetectionTask)
    return task
