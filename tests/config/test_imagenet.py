"""The experiments on ImageNet are the published recipe, setting by setting, and claim what was published."""

from typing import Any

import pytest

from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.experiments import named, names
from detr_container.config.settings import flatten, validate

BACKBONES = {
    "container_in1k": "container",
    "container_light_in1k": "container_light",
    "container_pam_in1k": "container_pam",
    "deit_s_in1k": "timm/deit_small_patch16_224",
    "resnet50_in1k": "resnet50",
}
RECIPE: dict[str, Any] = {
    "backbone.weights": "none",
    "backbone.norm": "batch",
    "backbone.frozen_stages": 0,
    "data.fraction": 1.0,
    "data.size": 224,
    "data.area": [0.08, 1.0],
    "data.aspect": [3 / 4, 4 / 3],
    "data.flip": 0.5,
    "data.auto_augment": "rand-m9-mstd0.5-inc1",
    "data.color_jitter": 0.0,
    "data.erasing": 0.25,
    "data.repeats": 3,
    "data.mixup": 0.8,
    "data.cutmix": 1.0,
    "data.eval_size": 0,
    "data.crop_ratio": 0.875,
    "data.interpolation": "bicubic",
    "loss.smoothing": 0.1,
    "train.epochs": 300,
    "train.batch": 8 * 128,
    "train.micro_batch": 128,
    "train.lr": 5e-4,
    "train.lr_batch": 512,
    "train.schedule": "deit",
    "train.warmup_epochs": 5,
    "train.warmup_lr": 1e-6,
    "train.min_lr": 1e-5,
    "train.weight_decay": 0.05,
    "train.clip": 0.0,
    "train.ema_decay": 0.0,
}
"""DeiT's defaults with 128 images on each of 8 processes; its averages are never evaluated, and so on request."""


def of(name: str) -> ClassificationExperiment:
    return classification(named(name).experiment)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_recipe(name: str) -> None:
    settings = flatten(of(name))
    assert {key: settings[key] for key in RECIPE} == RECIPE
    assert (settings["name"], settings["backbone.name"]) == (name, BACKBONES[name])
    # torchvision's ResNets cannot drop paths.
    assert settings["backbone.drop_path"] == (0.0 if name == "resnet50_in1k" else 0.1)
    assert of(name).train.peak == pytest.approx(1e-3)
    assert validate(of(name)) == []


def test_the_rate_grows_with_the_batch_and_stays_where_it_is_asked_to() -> None:
    train = of("container_light_in1k").train
    for batch, lr_batch, peak in ((512, 512, 5e-4), (4096, 512, 4e-3), (128, 256, 2.5e-4), (64, 0, 5e-4)):
        changed = type(train)(batch=batch, lr_batch=lr_batch)
        assert changed.peak == pytest.approx(peak)


def test_only_what_is_published_is_claimed() -> None:
    found = {
        name: [(one.value, one.top5) for one in named(name).published]
        for name in names()
        if isinstance(named(name).experiment, ClassificationExperiment)
    }
    assert found == {
        "container_in1k": [(82.7, None)],
        "container_light_in1k": [(82.26, 96.2), (82.0, None)],
        "container_pam_in1k": [],
        "deit_s_in1k": [(79.85, 94.97), (79.9, None)],
        "resnet50_in1k": [(76.13, 92.862)],
        "classify_debug": [],
        "classify_demo": [],
        "classify_small": [],
    }
