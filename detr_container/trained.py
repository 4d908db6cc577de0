"""A trained detector from a run's folder or a checkpoint file, ours or a published one, ready to look at pictures."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from detr_container.datasets.annotations import Category
from detr_container.datasets.coco_classes import rows_by_id
from detr_container.models.detector import Detector
from detr_container.models.layouts import to_hugging_face, to_published
from detr_container.models.pretrained import detector_weights, scatter_rows
from detr_container.models.resnet import DEPTHS

from .build import build_detector
from .checkpoint import load
from .config import BackboneConfig, Experiment, HeadConfig, LossConfig, from_dict
from .experiments import FOCAL, named
from .run import Run

_log = logging.getLogger(__name__)

GAUSSIANS: tuple[Literal["type1", "type2", "type3", "type4"], ...] = ("type1", "type2", "type3", "type4")
"""SMCA's types by their number of scales per head."""


@dataclass
class Trained:
    """A model in evaluation mode with what it was trained for. source: the checkpoint's path; step: 0 when unknown."""

    model: Detector
    experiment: Experiment
    classes: tuple[Category, ...]
    source: Path
    step: int


def open_trained(path: Path, device: torch.device, experiment: str = "") -> Trained:
    """Load the newest good checkpoint of a run, or one file; averaged weights where there are any.

    experiment: the named experiment that a published checkpoint belongs to, where it should not be guessed.
    Raises ValueError or FileNotFoundError, saying what would help.
    """
    if path.is_dir():
        run = Run(path)
        run.experiment()
        found = run.checkpoints().newest()
        if found is None:
            raise ValueError(f"{path} has no checkpoint yet: train it first, or wait for its first epoch")
        path, checkpoint = found
    else:
        checkpoint = load(path)
    state, layout = detector_weights(checkpoint)
    if layout == "ours" and "experiment" in checkpoint:
        settings = from_dict(checkpoint["experiment"])
        classes = tuple(Category(number, name) for number, name in checkpoint["classes"])
    else:
        settings, classes = _published(path, checkpoint, state, experiment)
    model = build_detector(settings, len(classes), weights=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {settings.name or 'the experiment'}: {str(error).splitlines()[1].strip()}. "
            "Name its experiment with --experiment"
        ) from error
    model.to(device).eval()
    return Trained(model, settings, classes, path, int(checkpoint.get("step", 0)))


def _published(
    path: Path, checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], experiment: str
) -> tuple[Experiment, tuple[Category, ...]]:
    """The experiment and classes of a file that has neither: from the named one, or from its tensors."""
    settings = named(experiment).experiment if experiment else guess(state, checkpoint.get("args"))
    rows = len(state["class_embed.bias"])
    classes = rows_by_id(rows - int(settings.loss.classification == "softmax"))
    if not experiment:
        _log.warning(
            "%s does not say what it is: taken for %s on %s%s, %d class rows by COCO id (--experiment overrules)",
            path,
            settings.head.kind,
            settings.backbone.name,
            " (DC5)" if settings.backbone.dilation else "",
            rows,
        )
    return settings, classes


def guess(state: Mapping[str, Tensor], arguments: argparse.Namespace | None = None) -> Experiment:
    """The experiment whose model has these tensors. Heads and dilation leave no trace: they come from the arguments.

    arguments: what the published code stored beside the weights, if it did.
    """

    def layers(side: str) -> int:
        return len({name.split(".")[2] for name in state if name.startswith(f"{side}.layers.")})

    focal = any(name.startswith("decoder.priors.") for name in state)
    heads = getattr(arguments, "nheads", 8)
    head = HeadConfig(
        kind="smca" if focal else "detr",
        queries=state["query_embed.weight"].shape[0],
        width=state["query_embed.weight"].shape[1],
        heads=heads,
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        feedforward=state["decoder.layers.0.ffn.linear1.weight"].shape[0],
        pre_norm="encoder.norm.weight" in state,
        position="learned" if "position.row_embed.weight" in state else "sine",
    )
    if focal:
        scale = state.get("decoder.priors.0.scale.bias")
        count = 0 if scale is None else len(scale) // heads
        head = replace(head, gaussian=GAUSSIANS[count])
    dilation = bool(getattr(arguments, "dilation", False))
    return Experiment(
        backbone=_guess_backbone(state, dilation), head=head, loss=FOCAL if focal else LossConfig(), name="published"
    )


def _guess_backbone(state: Mapping[str, Tensor], dilation: bool) -> BackboneConfig:
    if "backbone.embeds.0.proj.weight" in state:
        return BackboneConfig(name="container_light", weights="none", frozen_stages=0)
    blocks = len({name.split(".")[3] for name in state if name.startswith("backbone.body.layer3.")})
    deep = "backbone.body.layer1.0.conv3.weight" in state
    for name, (block, depths) in DEPTHS.items():
        if depths[2] == blocks and (block.expansion == 4) == deep:
            return BackboneConfig(name=name, weights="none", dilation=dilation)
    raise ValueError(f"no backbone here has {blocks} blocks in its third layer: name the experiment with --experiment")


def exported(trained: Trained, layout: str) -> dict[str, Tensor]:
    """The weights under the names of the published code or of Hugging Face's DETR, class rows by category id.

    Raises ValueError for a model that Hugging Face's DETR cannot be.
    """
    settings = trained.experiment
    softmax = settings.loss.classification == "softmax"
    state = scatter_rows(trained.model.state_dict(), [category.id for category in trained.classes], softmax)
    if layout == "published":
        return to_published(state)
    if settings.head.kind != "detr" or not softmax or not settings.backbone.name.startswith("resnet"):
        raise ValueError(
            f"Hugging Face's DETR has no {settings.head.kind} head on {settings.backbone.name}: only a DETR on a "
            "ResNet can be exported to it; use --layout published"
        )
    return to_hugging_face(state)
