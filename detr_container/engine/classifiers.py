"""Image classifiers from their settings, for every task that has one."""

from __future__ import annotations

import logging
from dataclasses import replace

from detr_container.config.backbones import BackboneConfig
from detr_container.models.backbones.container import Container
from detr_container.models.classifier import BackboneClassifier, ImageClassifier, TimmClassifier
from detr_container.models.layers.frozen_norm import freeze_norms
from detr_container.models.layers.sync_norm import share_norms
from detr_container.models.weights.backbones import imagenet
from detr_container.models.weights.classifiers import load_classifier

from .backbones import build_backbone, check_dense, warn_of_no_norms, weights_of

_log = logging.getLogger(__name__)


def build_classifier(config: BackboneConfig, classes: int, size: int, weights: bool = True) -> ImageClassifier:
    """A classifier with its norms and frozen stages, for square images of `size` pixels.

    weights: False leaves it random whatever `config.weights` says; otherwise weights are loaded with their classifier
    where it is of as many classes. Raises ValueError or OSError for what cannot be built or loaded.
    """
    named = config.weights if weights else "none"
    if config.name.startswith("timm/"):
        model = _of_timm(config, classes, size, named == "imagenet")
    else:
        model = _on_backbone(config, classes, size)
    if named == "imagenet" and not isinstance(model, TimmClassifier):
        _log.info("%s: %s", config.name, load_classifier(model, *imagenet(config.name)).words)
    elif named not in ("imagenet", "none"):
        with weights_of(config) as content:
            loaded = load_classifier(model, content, named, config.file_weights)
        _log.info("%s: %s", named, loaded.words)
    if weights and config.norm != "batch":
        warn_of_no_norms(model, config)
    if config.norm == "frozen":
        freeze_norms(model)
    elif config.norm == "sync":
        share_norms(model)
    return model.freeze(config.frozen_stages)


def _of_timm(config: BackboneConfig, classes: int, size: int, pretrained: bool) -> ImageClassifier:
    name = config.name.removeprefix("timm/")
    model = TimmClassifier(name, classes, config.drop_path, size, pretrained)
    published = model.published_classes
    if pretrained and published != classes:
        _log.info("%s: the classifier starts anew: the published one has %d classes", config.name, published)
    return model


def _on_backbone(config: BackboneConfig, classes: int, size: int) -> ImageClassifier:
    # It reads the last map, whatever a detector would read. Norms are frozen once weights are loaded.
    check_dense(config, size, "--data.size {side}")
    plain = replace(config, stage=-1, stride=0, dilation=False, frozen_stages=0, norm="batch")
    backbone = build_backbone(plain, weights=False, canvas=size)
    return BackboneClassifier(backbone, classes, norm=isinstance(backbone, Container))
