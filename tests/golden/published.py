"""The published models that the reference outputs beside this file belong to: their weights, inputs and settings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from golden import pattern
from torch import Tensor

from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named
from detr_container.datasets.batch import Targets
from detr_container.models.detector import Detector
from detr_container.models.weights.layouts import from_published
from detr_container.tasks.detection.build import build_detector

FOLDER = Path(__file__).parent
DETECTORS = ("detr_r50", "detr_r50_dc5", "smca_r50", "smca_r50_type1", "smca_r50_type2", "smca_r50_type4")
KEY_LISTS = (*DETECTORS, "container_light")


def shapes(name: str) -> dict[str, list[int]]:
    """Every published key and the shape of its tensor."""
    return json.loads((FOLDER / f"{name}_keys.json").read_text())


def weights(name: str) -> dict[str, Tensor]:
    """The state dict that the reference outputs were made with, under its published names."""
    empty = {
        key: torch.zeros(shape, dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
        for key, shape in shapes(name).items()
    }
    return pattern.fill(empty)


def arrays(name: str) -> dict[str, Tensor]:
    """The reference outputs."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: torch.from_numpy(np.asarray(value)) for key, value in stored.items()}


def experiment(name: str) -> DetectionExperiment:
    """The named experiment of a published detector, without pretrained weights to wait for."""
    base = named({"detr_r50": "detr_r50_50e", "detr_r50_dc5": "detr_r50_dc5_50e"}.get(name, "smca_r50_50e")).experiment
    gaussian = f"type{name[-1]}" if "type" in name else "type3"
    return replace(base, head=replace(base.head, gaussian=gaussian), backbone=replace(base.backbone, weights="none"))


def classes(settings: DetectionExperiment) -> int:
    """How many classes the published heads of 92 rows have."""
    return 91 if settings.loss.classification == "softmax" else 92


def detector(name: str, settings: DetectionExperiment | None = None) -> Detector:
    """Our model with the published weights."""
    settings = settings or experiment(name)
    model = build_detector(settings, classes(settings), weights=False)
    model.load_state_dict(from_published(weights(name)), strict=True)
    return model


def images() -> tuple[Tensor, Tensor]:
    """The two images in one padded batch, already normalised, and their true sizes."""
    images = torch.zeros(2, 3, 192, 256)
    images[0] = pattern.image(192, 256)
    images[1, :, :160, :224] = pattern.image(160, 224)
    return images, torch.tensor([[192, 256], [160, 224]])


def targets() -> Targets:
    """Their objects."""
    boxes = [[0.5, 0.5, 0.3, 0.4], [0.25, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.35]]
    boxes += [[0.4, 0.55, 0.5, 0.3], [0.8, 0.2, 0.15, 0.15]]
    return Targets.of_images(torch.tensor([1, 18, 44, 3, 90]).split((3, 2)), torch.tensor(boxes).split((3, 2)))
