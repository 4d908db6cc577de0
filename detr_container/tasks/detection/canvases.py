"""Where batches are padded to few sizes, and to which: from an experiment, its images' sizes and its backbone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from detr_container.config.detection import DataConfig, DetectionExperiment
from detr_container.datasets.canvas import STEP, Canvases, for_evaluation, for_training
from detr_container.datasets.padding import Padding, up
from detr_container.datasets.sizes import Sides
from detr_container.models.detector import Detector

from .build import evaluation_augmentation, training_augmentation

TRAINING, EVALUATION = 48, 16
"""Most canvases of either: 64 sizes in a run."""


def active(data: DataConfig, device: torch.device) -> bool:
    """Whether canvases are used on a device: on a GPU every new size costs seconds."""
    return not data.canvas and (data.canvases == "on" or (data.canvases == "auto" and device.type == "cuda"))


def many_sizes(data: DataConfig) -> str:
    """Why most batches on a GPU are of a new size, in words; empty where there are few sizes."""
    one = data.canvas or (data.resize == "square" and len(set(data.scales)) == 1)
    return "" if one or data.canvases != "off" else "data.canvases=off, so that most batches are of a new size"


@dataclass(frozen=True)
class Grid:
    """What canvases of an experiment can be; multiple: the detector's `size_multiple`; side: its backbone's.

    The sizes of images are [I, 2], on disk, in pixels. Both raise ValueError when the backbone cannot have sides that
    are multiples of data.canvas_multiple.
    """

    experiment: DetectionExperiment
    multiple: int
    side: int = 0

    def training(self, sizes: Sides, batch: int, most: int = TRAINING) -> Canvases:
        """Those of training with so many images in a forward pass."""
        step = grid_step(self.experiment.data, self.multiple)
        return for_training(sizes, training_augmentation(self.experiment.data), batch, step, self.side, most)

    def evaluation(self, sizes: Sides, most: int = EVALUATION) -> Canvases:
        """Those of an evaluation of images in this order."""
        data = self.experiment.data
        step, augmentation = grid_step(data, self.multiple), evaluation_augmentation(data)
        return for_evaluation(sizes, augmentation, data.eval_batch, step, self.side, most)


def grid_of(experiment: DetectionExperiment, model: Detector, device: torch.device) -> Grid | None:
    """The grid of a detector; None where no canvases are used."""
    return Grid(experiment, model.size_multiple, model.backbone.side) if active(experiment.data, device) else None


def grid_step(data: DataConfig, multiple: int) -> int:
    """What canvases' sides are multiples of, for a detector's `size_multiple`; the same for most of them."""
    if data.canvas_multiple % multiple:
        raise ValueError(
            f"data.canvas_multiple={data.canvas_multiple}: this backbone takes images whose sides are multiples of "
            f"{multiple} pixels, so give a multiple of that, or 0"
        )
    return up(STEP, data.canvas_multiple or multiple)


def padding_of(data: DataConfig, model: Detector, canvases: Canvases | None) -> Padding:
    """What batches are padded to."""
    return Padding(model.size_multiple, data.canvas, canvases.sizes if canvases else ())


def as_json(canvases: Canvases) -> dict[str, Any]:
    """As provenance and scores have them."""
    return {"sizes": [list(size) for size in canvases.sizes], "waste": canvases.waste}


def name_of(noted: dict[str, Any]) -> str:
    """A few letters for what `as_json` gave, others for other canvases."""
    sizes = noted["sizes"]
    return f"{len(sizes)} canvases ({hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:8]})"
