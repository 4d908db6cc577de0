"""Detection by RetinaNet and Mask R-CNN, whose models and losses are detectron2's, as a task of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.batch import Batch
from detr_container.engine.task import NonFiniteError, Task

from ..build import Data
from ..task import DetectionTask, detector_of
from .losses import LOSSES

if TYPE_CHECKING:
    from .detector import AnchorDetector


class AnchorTask(DetectionTask):
    """A detector of detectron2's, its losses and its data."""

    def __init__(self, experiment: DetectionExperiment, data: Data | None, classes: int = 0) -> None:
        """See `DetectionTask`."""
        super().__init__(experiment, data, classes)
        self.meters = tuple(LOSSES[experiment.head.kind])

    @property
    def why_eager(self) -> str:
        """See `Task`."""
        return "detectron2 waits for the GPU within its losses"

    def prepare(self, device: torch.device) -> str:
        """See `Task`."""
        del device
        return ""

    # -- a step -------------------------------------------------------------------------------------------------------

    # What losses are divided by is a part of the models.
    normalisers = Task.normalisers
    divisors = Task.divisors

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """See `Task`; the losses by name. Raises NonFiniteError."""
        try:
            return model(batch.images, batch.sizes, batch.padded, targets=batch.targets)
        except FloatingPointError as error:
            images = ", ".join(map(str, batch.image_ids))
            raise NonFiniteError(f"NaN or Inf in what is predicted for one of the images {images}") from error

    def question(self, output: Any, batch: Batch) -> None:
        """See `Task`; nothing is asked of the host."""
        del output, batch

    def loss(
        self, output: Any, answer: Tensor | None, batch: Batch, divisors: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """See `Task`; a mean over the micro batches of a step, as of processes of the published code."""
        del answer, batch, divisors
        losses: Mapping[str, Tensor] = output
        rows = torch.stack([losses[name].float() for name in self.meters]) * share
        return rows.sum(), rows.detach()

    def after_step(self, model: nn.Module, step: int) -> None:
        """See `Task`."""
        del step
        _anchor(model).after_step()

    def logged(self, means: Mapping[str, float]) -> dict[str, Any]:
        """See `Task`."""
        row = dict(means)
        losses = {name: row.pop(name) for name in self.meters}
        return {**row, "losses": losses, **self.waste()}


def _anchor(model: nn.Module) -> AnchorDetector:
    from .detector import AnchorDetector

    found = detector_of(model)
    assert isinstance(found, AnchorDetector)
    return found
