"""Image classifiers from their settings, for every task that has one."""

from __future__ import annotations

from dataclasses import replace

from detr_container.config.backbones import BackboneConfig
from detr_container.models.backbones.container import Container
from detr_container.models.classifier import BackboneClassifier, ImageClassifier, TimmClassifier
from detr_container.models.layers.frozen_norm import freeze_norms
from detr_container.models.layers.sync_norm import share_norms

from .backbones import build_backbone


def build_classifier(config: BackboneConfig, classes: int, size: int, weights: bool = True) -> ImageClassifier:
    """A classifier with its norms and frozen stages, for square images of `size` pixels.

    weights: False leaves it random whatever `config.weights` says.
    """
    if config.name.startswith("timm/"):
        pretrained = weights and config.weights == "imagenet"
        name = config.name.removeprefix("timm/")
        whole = TimmClassifier(name, classes, config.drop_path, size, pretrained, config.norm == "frozen")
        if config.norm == "sync":
            share_norms(whole)
        return whole.freeze(config.frozen_stages)
    # It reads the last map, whatever a detector would read.
    backbone = build_backbone(replace(config, stage=-1, stride=0, dilation=False), weights, canvas=size)
    model = BackboneClassifier(backbone, classes, norm=isinstance(backbone, Container))
    # Those of the backbone are so already.
    if config.norm == "frozen":
        freeze_norms(model)
    elif config.norm == "sync":
        share_norms(model)
    return model
