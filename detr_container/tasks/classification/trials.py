"""Classification as `preflight`, `benchmark` and `compare` try it. All batches of a run have one size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.settings import Experiment
from detr_container.datasets.check_folders import check_folders
from detr_container.datasets.folders import ImageFolder, resolve
from detr_container.datasets.labelled import LabelledBatch
from detr_container.datasets.loader import permutation
from detr_container.datasets.padding import TO_LARGEST
from detr_container.engine.precision import InPrecision
from detr_container.engine.task import Task
from detr_container.engine.trials import Largest, Trials
from detr_container.models.classifier import ImageClassifier

from .build import Data, data_of, evaluation_images, folders_of, make_shapes_if_asked
from .mixing import Normalisation
from .task import ClassificationTask

FEW = 2
"""Images of a small batch: enough for batch statistics."""


class ClassificationTrials(Trials):
    """A classifier's trials."""

    experiment: ClassificationExperiment

    def __init__(self, experiment: ClassificationExperiment) -> None:
        super().__init__(experiment)
        self._folders: tuple[ImageFolder, ImageFolder] | None = None
        self._computing: tuple[InPrecision, Normalisation] | None = None

    def like(self, experiment: Experiment) -> ClassificationTrials:
        """See `Trials`; what was listed is not listed again."""
        other = ClassificationTrials(classification(experiment))
        other._folders = self._folders
        return other

    def bare(self, classes: int = 1) -> ClassificationTask:
        """See `Trials`."""
        return ClassificationTask(self.experiment, None, classes)

    def classes(self, task: Task) -> int:
        """See `Trials`."""
        return _of(task).classes

    def opened(self) -> ClassificationTask:
        """See `Trials`."""
        self._folders = self._folders or folders_of(self.experiment)
        return ClassificationTask(self.experiment, data_of(self.experiment, *self._folders))

    def check_data(self, limit: int, remark: Callable[[str], None]) -> str:
        """See `Trials`."""
        config = self.experiment.data
        make_shapes_if_asked(config)
        folders = resolve(config.root, config.train_images, config.val_images)
        splits = dict(zip(("train", "val"), folders, strict=True))
        report = check_folders(splits, os.cpu_count() or 1, progress=True, sample=limit, size=config.size)
        if report.errors:
            wrong = [problem.message for problem in report.problems if problem.severity == "error"]
            listed = "".join(f"\n{message}" for message in wrong[:3])
            raise ValueError(
                f"{report.errors} errors{listed}\n`detr-container data check` lists everything that is wrong"
            )
        images = self.opened().training_images
        if config.repeats > 1:
            remark(f"an epoch shows {images:,} views: each of its images {config.repeats} times (data.repeats)")
        counts = {name: sum(of_class.values()) for name, of_class in report.counts}
        read = [f"{name} read {min(limit or count, count)} of {count} images" for name, count in counts.items()]
        classes = len(report.counts[0][1])
        return f"{', '.join(read)}; {classes} classes; no errors, {report.warnings} warnings"

    def largest(self, task: Task, multiple: int) -> Largest:
        """See `Trials`; the only size that training draws."""
        del task, multiple
        images, side = self.experiment.train.micro_batch, self.experiment.data.size
        large = {"images": images, "height": side, "width": side}
        words = f"{images} x {side} x {side} pixels"
        return Largest(words, f"data.size={side}", large, {**large, "images": min(images, FEW)})

    def of_size(self, size: tuple[int, int], multiple: int, images: int, objects: int) -> Mapping[str, Any]:
        """See `Trials`; an image has one label, however many objects."""
        del multiple, objects
        return {"images": images, "height": size[0], "width": size[1]}

    def synthetic(self, task: Task, values: Mapping[str, Any], seed: int = 0) -> LabelledBatch:
        """See `Trials`."""
        generator = torch.Generator().manual_seed(seed)
        images, height, width = (values[name] for name in ("images", "height", "width"))
        pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=generator)
        return LabelledBatch(
            pixels.permute(0, 3, 1, 2),
            torch.randint(0, _of(task).classes, (images,), generator=generator),
            torch.zeros(images, 4, dtype=torch.int64),
            torch.ones(1),
            torch.zeros(4, dtype=torch.int64),
            tuple(range(images)),
        )

    def learnable(self, task: Task, model: nn.Module) -> LabelledBatch:
        """See `Trials`; every image shows something."""
        del model
        images, experiment = _of(task).data.train, self.experiment
        order = permutation(len(images), experiment.seed, 0)
        samples = [images[(0, index)] for index in islice(order, experiment.train.micro_batch)]
        batch: LabelledBatch = images.joining(TO_LARGEST)(samples)
        return batch

    def few(self, task: Task, images: int, path: Path) -> ClassificationTask:
        """See `Trials`; evenly spread, so that they are of many classes."""
        del path
        data = _of(task).data
        folder = data.val.folder
        rows = np.linspace(0, len(folder) - 1, min(images, len(folder))).round().astype(np.int64)
        return ClassificationTask(
            self.experiment, Data(data.train, evaluation_images(folder.taken(rows), self.experiment))
        )

    def inputs(self, model: nn.Module, size: tuple[int, int]) -> tuple[Any, ...]:
        """See `Trials`."""
        return (torch.zeros(1, 3, *size, device=next(model.parameters()).device),)

    def infer(self, model: nn.Module, batch: LabelledBatch) -> None:
        """See `Trials`."""
        assert isinstance(model, ImageClassifier)
        if self._computing is None or self._computing[0].model is not model:
            compute = InPrecision(model, self.experiment.train.precision, batch.images.device)
            self._computing = compute, Normalisation(model.mean, model.std, model.memory_format)
        compute, normalise = self._computing
        compute(normalise(batch.images)).float().softmax(dim=1)


def _of(task: Task) -> ClassificationTask:
    assert isinstance(task, ClassificationTask)
    return task
