"""A trained detector from a run's folder or a checkpoint file, ours or a published one, ready to detect in images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig, LossConfig
from detr_container.config.experiments import FOCAL, detection_named
from detr_container.config.settings import validate
from detr_container.datasets.annotations import Category, read_categories
from detr_container.engine.run import Run
from detr_container.engine.weight_files import is_weights_folder
from detr_container.models.backbones.container import SIZES
from detr_container.models.backbones.resnet import DEPTHS, MSRA, TWINS
from detr_container.models.detector import Detector
from detr_container.models.weights.detectron2 import TRAINING_ONLY, anchor_kind
from detr_container.models.weights.find import Which
from detr_container.models.weights.fit import load_checked

from .build import build_detector
from .detector_file import DetectorFile, read_detector

_log = logging.getLogger(__name__)

GAUSSIANS: tuple[Literal["type1", "type2", "type3", "type4"], ...] = ("type1", "type2", "type3", "type4")
"""SMCA's types by their number of scales per head."""
_HIDDEN = "decoder.layers.0.ffn.linear1.weight"


@dataclass
class Trained:
    """A model in evaluation mode with what it was trained for. source: the checkpoint's path; step: 0 when unknown."""

    model: Detector
    experiment: DetectionExperiment
    classes: tuple[Category, ...]
    source: Path
    step: int
    as_published: bool = False
    """Whether the class rows are still as a file without a class list had them."""


def open_trained(
    path: Path, device: torch.device, experiment: str = "", which: Which = "auto", classes: Path | None = None
) -> Trained:
    """Load the newest good checkpoint of a run, one file, or a folder of Hugging Face.

    experiment: the named experiment that a published checkpoint belongs to, where it should not be guessed; which: of
    averaged and raw weights; classes: a COCO annotation file that says what the class rows of a file are.
    Raises ValueError or FileNotFoundError, saying what would help.
    """
    if path.is_dir() and not is_weights_folder(path):
        run = Run(path)
        run.experiment()
        found = run.checkpoints().newest()
        if found is None:
            raise ValueError(f"{path} has no checkpoint yet: train it first, or wait for its first epoch")
        path = found[0]
    file = read_detector(path, which)
    settings = file.experiment
    if settings is None:
        try:
            settings = detection_named(experiment) if experiment else guess(file.state, file.arguments)
            if not experiment:
                settings = replace(settings, data=replace(settings.data, **file.sizes))
            settings = _as_said(settings, file)
            validate(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not experiment:
            _log.warning(
                "%s does not state what it is: taken for %s on %s%s, %s names, %s (--experiment overrules)",
                path,
                settings.head.kind,
                settings.backbone.name,
                " (DC5)" if settings.backbone.dilation else "",
                file.layout,
                _named_by(file, classes),
            )
    count = _count(file, settings)
    rows = named_rows(classes, count) if classes is not None else file.row_classes()
    model = build_detector(settings, count, weights=False)
    own = model.state_dict()
    # Frozen norms count no batches, though files may have the count.
    state = file.state_on(settings.backbone.name)
    state = {name: v for name, v in state.items() if name in own or not name.endswith("num_batches_tracked")}
    state |= {name: own[name] for name in TRAINING_ONLY if name in own and name not in state}
    refusal = f"{path} does not fit {settings.name or 'the experiment'}"
    load_checked(model, state, refusal, "Name its experiment with --experiment")
    model.to(device).eval()
    return Trained(model, settings, rows, path, file.step, file.rows_by_id)


def _as_said(settings: DetectionExperiment, file: DetectorFile) -> DetectionExperiment:
    """The same on the ResNet that the file says it has, where a named experiment has the other of the same shape.

    Raises ValueError for an experiment of another kind of detector.
    """
    if (settings.head.kind if settings.anchors else "") != file.anchors:
        raise ValueError(
            f"it is {file.anchors or 'a detector with queries'}, and {settings.name} is an experiment of "
            f"{settings.head.kind}: name another with --experiment"
        )
    twin = file.twin(settings.backbone.name)
    if not twin:
        return settings
    _log.warning("%s is on %s, as it says, not on %s", file.path, twin, settings.backbone.name)
    return replace(settings, backbone=replace(settings.backbone, name=twin))


def _count(file: DetectorFile, settings: DetectionExperiment) -> int:
    """How many classes a file has, as an experiment takes its rows."""
    if settings.anchors or file.anchors:
        return file.count
    return len(file.state["class_embed.bias"]) - int(settings.loss.classification == "softmax")


def _named_by(file: DetectorFile, classes: Path | None) -> str:
    """Where the names of a file's classes come from, in words."""
    if classes is not None:
        return f"classes as {classes} names them"
    if file.classes is not None:
        return "with its own classes"
    named = file.names or file.known_as
    return file.taken_for() + ("" if named else " (--classes ANNOTATIONS names them)")


def named_rows(path: Path, count: int) -> tuple[Category, ...]:
    """The classes of so many rows as `read_categories` reads them: in the order of their ids, or each at its id.

    Raises ValueError when the file has other classes than rows.
    """
    categories = read_categories(path)
    if len(categories) == count:
        return categories
    by_id = {category.id: category for category in categories}
    if len(categories) < count and min(by_id) >= 0 and max(by_id) < count:
        return tuple(by_id.get(row, Category(row, f"class {row}")) for row in range(count))
    raise ValueError(f"{path} has {len(categories)} categories up to id {max(by_id)}, the weights {count} classes")


def guess(state: Mapping[str, Tensor], arguments: argparse.Namespace | None = None) -> DetectionExperiment:
    """The experiment whose model has these tensors.

    Heads, dilation and SMCA-DETR's constant leave no trace: they come from the arguments.

    arguments: what the published code stored beside the weights, if it did. Raises ValueError for detectron2's own
    detectors, whose anchors and thresholds leave no trace.
    """
    if kind := anchor_kind(state):
        raise ValueError(
            f"it is {kind}, of whose settings too many leave no trace in its tensors: name the experiment, as in "
            f"--experiment {kind}_r50_1x"
        )

    def layers(side: str) -> int:
        return len({name.split(".")[2] for name in state if name.startswith(f"{side}.layers.")})

    focal = any(name.startswith("decoder.priors.") for name in state)
    shapes = {name: state[name].dim() for name in ("query_embed.weight", _HIDDEN) if name in state}
    if shapes != {"query_embed.weight": 2, _HIDDEN: 2}:
        raise ValueError(f"no whole detector: {_HIDDEN} or query_embed.weight is missing or no matrix")
    heads, width = getattr(arguments, "nheads", 8), state["query_embed.weight"].shape[1]
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"it states that it has {heads!r} heads, which cannot share a width of {width}")
    head = HeadConfig(
        kind="smca" if focal else "detr",
        queries=state["query_embed.weight"].shape[0],
        width=width,
        heads=heads,
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        feedforward=state[_HIDDEN].shape[0],
        pre_norm="encoder.norm.weight" in state,
        position="learned" if "position.row_embed.weight" in state else "sine",
    )
    if focal:
        scale = state.get("decoder.priors.0.scale.bias")
        count = 0 if scale is None else scale.numel() // heads
        if count >= len(GAUSSIANS):
            raise ValueError(f"SMCA-DETR has at most 3 scales per head, not {count}")
        smooth = getattr(arguments, "smooth", HeadConfig.smooth)
        if isinstance(smooth, bool) or not isinstance(smooth, int | float):
            raise ValueError(f"it states that SMCA-DETR's constant is {smooth!r}, which is no number")
        head = replace(head, gaussian=GAUSSIANS[count], smooth=float(smooth))
    dilation = bool(getattr(arguments, "dilation", False))
    return DetectionExperiment(
        backbone=_guess_backbone(state, dilation, str(getattr(arguments, "backbone", ""))),
        head=head,
        loss=FOCAL if focal else LossConfig(),
        name="published",
    )


def _guess_backbone(state: Mapping[str, Tensor], dilation: bool, stated: str) -> BackboneConfig:
    """stated: the name that a file of ours has beside its weights, where they leave no trace of it."""
    if "backbone.embeds.0.proj.weight" in state:
        return BackboneConfig(name=stated if stated in SIZES else "container_light", weights="none", frozen_stages=0)
    blocks = len({name.split(".")[3] for name in state if name.startswith("backbone.body.layer3.")})
    deep = "backbone.body.layer1.0.conv3.weight" in state
    for name, (block, depths) in DEPTHS.items():
        if depths[2] == blocks and (block.expansion == 4) == deep:
            name = stated if stated in MSRA and stated == TWINS.get(name) else name
            return BackboneConfig(name=name, weights="none", dilation=dilation)
    raise ValueError(f"no backbone here has {blocks} blocks in its third layer: name the experiment with --experiment")
