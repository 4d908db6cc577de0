"""The runs of a comparison: heads x backbones x seeds, alike in everything else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from detr_container.base.optional import require_detectron2
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, LossConfig, detection
from detr_container.config.experiments import FOCAL, detection_named
from detr_container.config.settings import validate
from detr_container.jobs.submit import PlannedRun
from detr_container.jobs.sweep import limit_runs, pair, with_settings
from detr_container.models.weights.backbones import not_on_a_server
from detr_container.tasks.detection.build import size_multiple
from detr_container.tasks.detection.canvases import grid_step

Head = Literal["detr", "smca", "retinanet", "mask_rcnn"]
HEADS: tuple[Head, ...] = ("detr", "smca")
"""What is compared unless other heads are named."""
PUBLISHED = {
    "detr": "detr_r50_50e",
    "smca": "smca_r50_50e",
    "retinanet": "retinanet_r50_1x",
    "mask_rcnn": "mask_rcnn_r50_1x",
}


def runs_of(
    home: Path,
    heads: Sequence[Head],
    backbones: Sequence[str],
    seeds: Sequence[int],
    base: str = "",
    settings: Sequence[str] = (),
) -> list[PlannedRun]:
    """Every combination in a folder of its own within `home`, seeds outermost, so that all arms advance together.

    backbones: names, each with =WEIGHTS where its weights are a file; base: a named experiment, default: each head's
    published one; settings: `setting=value` for all. Unless settings say otherwise, every stage of every backbone is
    trained, since stages of different backbones are different shares of them, and all detections are kept. Raises
    ValueError for what is not known, does not fit or is named twice.
    """
    check_axes({"heads": heads, "backbones": backbones, "seeds": seeds})
    pairs = common_settings(settings, ("backbone.name", "head.kind", "seed"), "--heads, --backbones or --seeds")
    runs = []
    for seed in seeds:
        for head in heads:
            for backbone in backbones:
                name, _, weights = backbone.partition("=")
                experiment = on_backbone(with_head(base, head), name, weights)
                # While none is finished, runs are evaluated after an epoch that all have reached, which is no longer
                # the newest of most of them.
                experiment = replace(experiment, train=replace(experiment.train, keep_detections="all"))
                experiment = replace(detection(with_settings(experiment, pairs)), seed=seed)
                runs.append(PlannedRun(folder_of(home, head, name, f"seed{seed}"), experiment))
    return runs


def check_axes(axes: Mapping[str, Sequence[object]]) -> None:
    """Raise ValueError unless every option has values, each once, and their combinations are not too many."""
    names = [f"--{name}" for name in axes]
    if not all(axes.values()):
        raise ValueError(f"a comparison needs at least one each of {', '.join(names[:-1])} and {names[-1]}")
    for name, values in axes.items():
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} {' '.join(map(str, values))}: name each once")
    limit_runs(math.prod(len(values) for values in axes.values()), "--backbones or --seeds")


def common_settings(settings: Sequence[str], own: Sequence[str], options: str) -> list[tuple[str, str]]:
    """Settings of all runs as pairs. Raises ValueError for those of the comparison's `own`, which `options` give."""
    pairs = [pair(entry) for entry in settings]
    for name, _ in pairs:
        if name.replace("-", "_") in own:
            raise ValueError(f"--setting {name}: the comparison sets it; use {options}")
    return pairs


def folder_of(home: Path, *words: str) -> Path:
    """A run's folder, named by what distinguishes it."""
    return home / re.sub(r"[^\w.=+-]", "_", "-".join(words))


def with_head(base: str, head: Head) -> DetectionExperiment:
    """A base experiment with a head: its own, or another one with that one's published loss.

    RetinaNet and Mask R-CNN bring theirs, and read all maps of a backbone, whichever of them the base chose.
    """
    experiment = detection_named(base or PUBLISHED[head])
    if experiment.head.kind == head:
        return experiment
    loss = FOCAL if head == "smca" else LossConfig()
    experiment = replace(experiment, head=replace(experiment.head, kind=head), loss=loss)
    if not experiment.anchors:
        return experiment
    return replace(experiment, backbone=replace(experiment.backbone, stage=-1, stride=0, dilation=False))


def on_backbone(base: DetectionExperiment, name: str, weights: str = "") -> DetectionExperiment:
    """The same experiment on another backbone, every stage of it trained."""
    backbone = replace(base.backbone, name=name, weights=weights or base.backbone.weights, frozen_stages=0)
    return replace(base, backbone=backbone)


def on_one_grid(experiments: Sequence[DetectionExperiment]) -> int:
    """The `data.canvas_multiple` with which all of these have the same canvases; 0 where they have them anyway.

    Raises ValueError for one that is set and does not suit a backbone.
    """
    multiples, steps = set(), set()
    for experiment in experiments:
        if experiment.data.canvases != "off":
            own = size_multiple(experiment)
            multiples.add(experiment.data.canvas_multiple or own)
            steps.add(grid_step(experiment.data, own))
    return math.lcm(*multiples) if len(steps) > 1 else 0


def check_arm(experiment: DetectionExperiment) -> None:
    """Raise ValueError for settings that do not go together, for what is not installed, and as `check_weights`."""
    validate(experiment)
    if experiment.anchors:
        require_detectron2()
    check_weights(experiment.backbone)


def check_weights(backbone: BackboneConfig) -> None:
    """Raise ValueError for weights that a person has to fetch."""
    missing = not_on_a_server(backbone.name) if backbone.weights == "imagenet" else ""
    if missing:
        raise ValueError(
            f"the ImageNet weights of {backbone.name} {missing}, and name the file, as in "
            f"--backbones {backbone.name}={backbone.name}.pth, or start all backbones from random weights with "
            "--setting backbone.weights=none"
        )
