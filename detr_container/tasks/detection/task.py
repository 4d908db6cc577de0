"""Detection as a task of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detr_container.base.shortage import asking
from detr_container.config.detection import DetectionExperiment, detection
from detr_container.config.settings import Experiment
from detr_container.datasets.annotations import Category
from detr_container.datasets.batch import Batch
from detr_container.datasets.canvas import Canvases, Waste
from detr_container.datasets.loader import Ends, StepBatches, batches, training_loader
from detr_container.datasets.padding import Padding
from detr_container.engine.backbones import why_eager
from detr_container.engine.resume import show
from detr_container.engine.run import evaluation_of
from detr_container.engine.session import Session
from detr_container.engine.task import Evaluation, NonFiniteError, Task
from detr_container.models.criterion import diagnostics
from detr_container.models.detector import Detector, Output
from detr_container.models.layers.gpu.assignment import refusal
from detr_container.models.matcher import NonFiniteOutputError

from .build import Data, build_criterion, build_detector, build_matcher, start_from
from .canvases import Grid, as_json, grid_of, many_sizes, padding_of
from .detections import NAME, Detections
from .evaluate import evaluate_to
from .groups import parameter_counts, parameter_groups
from .largest import fullest
from .scores import Scores, table
from .together import data_on_all
from .validation_images import draw_validation

_TERMS = ("class", "l1", "giou")
_DIAGNOSTICS = ("class_error", "cardinality_error")
MOST_SLOTS = 128
"""For the objects of an image; a batch with a fuller one has as many as it needs."""


def open_task(experiment: Experiment, session: Session) -> DetectionTask:
    """Detection's task with both splits, on every process."""
    mine = detection(experiment)
    with asking("the annotation files", {}):
        return task_of(mine, data_on_all(session, mine))


def task_of(experiment: DetectionExperiment, data: Data | None, classes: int = 0) -> DetectionTask:
    """Detection's task of an experiment, whichever its head; see `DetectionTask`."""
    if experiment.anchors:
        from .anchors.task import AnchorTask

        return AnchorTask(experiment, data, classes)
    return DetectionTask(experiment, data, classes)


class DetectionTask(Task):
    """A detector, its loss and its data; here, the loss of detectors with queries."""

    meters: tuple[str, ...] = (*_TERMS, *_DIAGNOSTICS)

    def __init__(self, experiment: DetectionExperiment, data: Data | None, classes: int = 0) -> None:
        """data: None where only steps are taken, on batches from elsewhere; then classes says how many there are."""
        self.experiment, self._data = experiment, data
        self.classes = classes if data is None else len(data.classes)
        if data is not None:
            self.training_images, self.validation_images = len(data.train), len(data.val)
        self._matcher, self._criterion = build_matcher(experiment), build_criterion(experiment)
        self._waste, self._chosen = Waste(), dict[Grid, Canvases]()
        self._softmax = experiment.loss.classification == "softmax"
        self._on_device = False

    @property
    def data(self) -> Data:
        """Both splits."""
        assert self._data is not None
        return self._data

    def describe(self) -> str:
        """See `Task`."""
        return f"{len(self.data.train)} training and {len(self.data.val)} validation images"

    def padding(self, model: nn.Module, device: torch.device | None = None) -> Padding:
        """What training batches are padded to, for a model on its device, or on another."""
        detector = detector_of(model)
        canvases = self._canvases(detector, device or detector.pixel_mean.device)
        # As many slots in each batch, or there would be more shapes than canvases.
        slots = min(MOST_SLOTS, *fullest(self.data.train.annotations, 1)) if canvases else 0
        return replace(padding_of(self.experiment.data, detector, canvases), slots=slots)

    def _canvases(self, detector: Detector, device: torch.device) -> Canvases | None:
        grid = grid_of(self.experiment, detector, device)
        if grid is None:
            return None
        if grid not in self._chosen:
            sizes = self.data.train.annotations.sizes
            self._chosen[grid] = grid.training(sizes, self.experiment.train.micro_batch)
        return self._chosen[grid]

    def settled(self, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
        """See `Task`."""
        detector = detector_of(model)
        device = detector.pixel_mean.device
        grid, training = grid_of(self.experiment, detector, device), self._canvases(detector, device)
        if grid is None or training is None:
            return {}, []
        evaluation = grid.evaluation(self.data.val.annotations.sizes)
        words = f"batches are padded to canvases: in training {training}; in evaluation {evaluation}"
        return {"canvases": {"training": as_json(training), "evaluation": as_json(evaluation)}}, [words]

    def resolved(self, experiment: Experiment) -> DetectionTask:
        """See `Task`."""
        return type(self)(detection(experiment), self._data, self.classes)

    def versions(self) -> dict[str, dict[str, Any]]:
        """See `Task`."""
        return self.data.versions()

    # -- the model ----------------------------------------------------------------------------------------------------

    def build(self, weights: bool) -> Detector:
        """See `Task`."""
        return build_detector(self.experiment, self.classes, weights)

    def start_from(self, model: nn.Module, path: Path) -> str:
        """See `Task`."""
        return str(start_from(detector_of(model), self.experiment, self.data.classes, path))

    def size_multiple(self, model: nn.Module) -> int:
        """See `Task`."""
        return detector_of(model).size_multiple

    def strides(self, model: nn.Module) -> tuple[int, ...]:
        """See `Task`."""
        return detector_of(model).strides

    @property
    def why_eager(self) -> str:
        """See `Task`."""
        return many_sizes(self.experiment.data) or why_eager(self.experiment.backbone)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See `Task`."""
        return parameter_groups(detector_of(model), self.experiment.train)

    def checkpointed(self, model: nn.Module, which: Literal["backbone", "all"]) -> list[nn.Module]:
        """See `Task`."""
        return detector_of(model).checkpointed(which)

    def parameter_counts(self, model: nn.Module) -> str:
        """See `Task`."""
        return parameter_counts(detector_of(model))

    def prepare(self, device: torch.device) -> str:
        """See `Task`; where matches are found."""
        wanted = self.experiment.train.matching
        if wanted == "host" or (wanted == "auto" and device.type == "cpu"):
            self._on_device = False
            return "" if device.type == "cpu" else "matching on the host: train.matching=host"
        reason = refusal(device, self.experiment.head.queries)
        if reason and wanted == "device":
            raise ValueError(f"train.matching=device: {reason}. Use auto or host, which match on the host")
        self._on_device = not reason
        return f"matching on the host: {reason}" if reason else "matching on the GPU"

    # -- a step -------------------------------------------------------------------------------------------------------

    def batches(self, model: nn.Module, sampler: StepBatches, pin_memory: bool, ends: Ends) -> Iterator[Batch]:
        """See `Task`."""
        padding, workers = self.padding(model), self.experiment.data.workers
        loader = training_loader(self.data.train, sampler, padding=padding, workers=workers, pin_memory=pin_memory)
        supply = batches(loader, ends)
        return self._waste.counted(supply) if padding.canvases else supply

    def normalisers(self, batch: Batch) -> tuple[float, ...]:
        """See `Task`; of the classification and of the box losses."""
        return self._criterion.normalisers(batch.targets.counts, self.experiment.head.queries)

    def divisors(self, mine: Sequence[tuple[float, ...]], whole: Tensor, world: int) -> Tensor:
        """See `Task`."""
        return self._criterion.of_step([(weight, objects) for weight, objects in mine], whole, world)

    def forward(self, model: nn.Module, batch: Batch) -> Output:
        """See `Task`."""
        output: Output = model(batch.images, batch.sizes, batch.padded)
        return output

    def question(self, output: Output, batch: Batch) -> Tensor | None:
        """See `Task`; what matches cost, where the host finds them."""
        return None if self._on_device else self._matcher.question(output, batch.targets)

    def answer(self, asked: Tensor, batch: Batch) -> Tensor:
        """See `Task`; the matches."""
        try:
            return self._matcher.assign(asked, batch.targets)
        except NonFiniteOutputError as error:
            image = batch.image_ids[error.image]
            raise NonFiniteError(
                f"NaN or Inf in what decoder layer {error.layer} predicts for image {image}"
            ) from error

    def loss(
        self, output: Output, answer: Tensor | None, batch: Batch, divisors: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        finite = None
        if answer is None:
            answer, finite = self._matcher.on_device(output, batch.targets)
        losses = self._criterion(output, batch.targets, answer, divisors)
        extra = diagnostics(output, batch.targets, answer, self._softmax)
        none = torch.zeros_like(losses.total.detach())
        rows = [losses.terms[name][-1] for name in _TERMS]
        # Losses add up over the step; diagnostics are means.
        rows += [extra.get(name, none) * share for name in _DIAGNOSTICS]
        return losses.total if finite is None else losses.total * finite, torch.stack(rows)

    def logged(self, means: Mapping[str, float]) -> dict[str, Any]:
        """See `Task`."""
        row: dict[str, Any] = dict(means)
        losses = {name: row.pop(name) for name in _TERMS}
        if not self._softmax:
            del row["cardinality_error"]
        return {**row, "losses": losses, **self.waste()}

    def waste(self) -> dict[str, float]:
        """What canvases have added to the batches since the last line of metrics, where there are any."""
        share = self._waste.taken()
        return {} if share is None else {"padding_waste": share}

    # -- an evaluation ------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        model: nn.Module,
        run: Path,
        epoch: int,
        session: Session,
        on_batch: Callable[[int, int], None],
        ends: Ends,
    ) -> Evaluation | None:
        """See `Task`."""
        folder, data = evaluation_of(run, epoch), self.data
        detector, mine = detector_of(model), self.experiment
        scores = evaluate_to(folder, detector, data.val, data.classes, mine, session, after_batch=on_batch, ends=ends)
        if scores is None:
            return None
        metrics = {name: value for name, value in scores.to_dict().items() if name != "per_class"}
        return Evaluation(metrics, table(scores), _line(scores))

    def draw(self, run: Path, epoch: int) -> None:
        """See `Task`."""
        found = Detections.read(evaluation_of(run, epoch) / NAME)
        draw_validation(self.data.val, found, self.data.classes, run / "predictions.png")

    def discard(self, run: Path, epoch: int) -> None:
        """See `Task`."""
        if self.experiment.train.keep_detections != "all":
            (evaluation_of(run, epoch) / NAME).unlink(missing_ok=True)

    # -- what is kept -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `Task`."""
        return {"classes": [[category.id, category.name] for category in self.data.classes]}

    def state_faults(self, state: Mapping[str, Any]) -> list[str]:
        """See `Task`."""
        return class_faults(state.get("classes"), self.data.classes)

    def files(self) -> dict[str, Any]:
        """See `Task`."""
        return {"classes.json": [{"id": category.id, "name": category.name} for category in self.data.classes]}


def class_faults(found: object, classes: Sequence[Category]) -> list[str]:
    """What is wrong with the class list of a checkpoint. Raises ValueError when it is not the data set's."""
    good = isinstance(found, list) and all(
        isinstance(each, list | tuple) and len(each) == 2 and type(each[0]) is int and isinstance(each[1], str)
        for each in found
    )
    if not isinstance(found, list) or not good:
        return [f"classes is {show(found)}, not a list of ids and names"]
    theirs, ours = {tuple(each) for each in found}, {(each.id, each.name) for each in classes}
    if theirs == ours and len(found) == len(classes):
        return []
    differ = ", ".join(f"{name!r} (id {number})" for number, name in sorted(theirs ^ ours)[:6])
    raise ValueError(
        f"of other classes than the data set's: {differ or 'some stand there twice'}. Put the data back, or start "
        "another run (--run NAME) from this one with --init"
    )


def _line(scores: Scores) -> str:
    shown = {"ap": scores.ap, "ap50": scores.ap50, "ap75": scores.ap75}
    if scores.masks:
        shown["mask_ap"] = scores.masks.ap
    return " ".join(f"{name} {'-' if value is None else f'{100 * value:.1f}'}" for name, value in shown.items())


def detector_of(model: nn.Module) -> Detector:
    """A model of this task's."""
    assert isinstance(model, Detector)
    return model
