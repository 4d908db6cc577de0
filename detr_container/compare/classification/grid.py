"""The runs of a comparison of classifiers: backbones x seeds, alike in everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.experiments import named
from detr_container.config.settings import validate
from detr_container.engine.classifiers import build_classifier
from detr_container.jobs.submit import PlannedRun
from detr_container.jobs.sweep import with_settings

from ..grid import check_axes, check_weights, common_settings, folder_of

BASE = "container_light_in1k"


def runs_of(
    home: Path, backbones: Sequence[str], seeds: Sequence[int], base: str = "", settings: Sequence[str] = ()
) -> list[PlannedRun]:
    """Every combination in a folder of its own within `home`, seeds outermost, so that all arms advance together.

    backbones: names, each with =WEIGHTS where its weights are a file; base: a named experiment, default: `BASE`;
    settings: `setting=value` for all. Unless settings say otherwise every stage is trained and the predictions of all
    epochs are kept. Raises ValueError for what is not known, does not fit or is named twice.
    """
    check_axes({"backbones": backbones, "seeds": seeds})
    pairs = common_settings(settings, ("backbone.name", "seed"), "--backbones or --seeds")
    runs = []
    for seed in seeds:
        for backbone in backbones:
            name, _, weights = backbone.partition("=")
            experiment = on_backbone(classification(named(base or BASE).experiment), name, weights)
            # While none is finished, runs are evaluated after an epoch that all have reached, which is no longer the
            # newest of most of them.
            experiment = replace(experiment, train=replace(experiment.train, keep_predictions="all"))
            experiment = replace(classification(with_settings(experiment, pairs)), seed=seed)
            runs.append(PlannedRun(folder_of(home, name, f"seed{seed}"), experiment))
    return runs


def on_backbone(base: ClassificationExperiment, name: str, weights: str = "") -> ClassificationExperiment:
    """The same experiment on another backbone, every stage of it trained.

    A ResNet has no stochastic depth: its settings say so, and the report that they differ.
    """
    drop_path = 0.0 if name.startswith("resnet") else base.backbone.drop_path
    backbone = replace(base.backbone, name=name, weights=weights or base.backbone.weights, frozen_stages=0)
    return replace(base, backbone=replace(backbone, drop_path=drop_path))


def check_arm(experiment: ClassificationExperiment) -> None:
    """Raise ValueError for settings that do not go together, a network that cannot be built or not for this size."""
    validate(experiment)
    check_weights(experiment.backbone)
    data = experiment.data
    # Some seconds for the largest; what a network of one size says of another stands in its own words.
    model = build_classifier(experiment.backbone, 2, data.size, weights=False)
    for side in dict.fromkeys((data.size, data.evaluated_at)):
        model.check_side(side)
