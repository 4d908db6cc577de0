"""Which of a classifier's parameters train, and on which of them weight decay acts."""

from __future__ import annotations

from typing import Any

from detr_container.config.classification import ClassificationTrainConfig
from detr_container.models.classifier import ImageClassifier


def parameter_groups(model: ImageClassifier, train: ClassificationTrainConfig) -> list[dict[str, Any]]:
    """Two groups of one learning rate, as published: biases and what has one dimension are not decayed.

    Raises ValueError when nothing is left to train.
    """
    decayed, bare = model.decayed_or_not()
    if not decayed and not bare:
        raise ValueError("every parameter is frozen, so there is nothing to train: lower backbone.frozen_stages")
    return [
        {"params": list(decayed.values()), "name": "decayed", "base_lr": train.peak},
        {
            "params": list(bare.values()),
            "name": "undecayed",
            "base_lr": train.peak,
            "weight_decay": 0.0,
            "decays": False,
        },
    ]


def parameter_counts(model: ImageClassifier) -> str:
    """How many parameters are trained and frozen, stage by stage, in words."""
    rows = [f"{name} {trained:,} trained, {frozen:,} frozen" for name, trained, frozen in model.count_parameters()]
    return f"parameters: {'; '.join(rows)}"
