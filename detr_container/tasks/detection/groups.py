"""Which of a detector's parameters train at which learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from detr_container.config.detection import DetectionTrainConfig
from detr_container.models.detector import Detector


def parameter_groups(model: Detector, config: DetectionTrainConfig) -> list[dict[str, Any]]:
    """One group for the backbone and one for the rest, weight decay on everything, as published.

    What stands beside the backbone (learned positions) trains with it, and stands after it.
    Raises ValueError when the backbone is to be trained and has nothing to train.
    """
    backbone = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    beside = nn.ModuleList(model.beside_backbone())
    slow = [*backbone, *(parameter for parameter in beside.parameters() if parameter.requires_grad)]
    inside = set(map(id, slow))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    stages = len(model.backbone.stages())
    if not backbone and config.lr_backbone and model.backbone.frozen_stages < stages:
        raise ValueError(
            f"the backbone is to be trained (train.lr_backbone={config.lr_backbone}, {model.backbone.frozen_stages} of "
            f"{stages} stages frozen) but has no parameter to train: freeze all stages or set train.lr_backbone=0"
        )
    return [
        {"params": rest, "name": "head", "base_lr": config.lr},
        {"params": slow, "name": "backbone", "base_lr": config.lr_backbone},
    ]


def parameter_counts(model: Detector) -> str:
    """How many parameters are trained and frozen, stage by stage, in words."""
    rows = [
        f"{name} {trained:,} trained, {frozen:,} frozen" for name, trained, frozen in model.backbone.count_parameters()
    ]
    inside = set(map(id, model.backbone.parameters()))
    head = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return f"parameters: head {head:,} trained; backbone: {'; '.join(rows)}"
