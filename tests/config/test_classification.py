"""Settings of classification: those that contradict each other are refused, those without effect are reported."""

from pathlib import Path
from typing import Any

import pytest
from classifiers import debug

from detr_container.config.classification import SMALL, ClassificationExperiment
from detr_container.config.detection import DetectionExperiment, DetectionTrainConfig
from detr_container.config.settings import flatten, validate
from detr_container.config.traits import traits_of
from detr_container.datasets import views
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.labelled import LabelledImages

LARGE = {"data__size": 64, "data__eval_size": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone__name": "resnet18", "backbone__drop_path": 0.2}, "backbone.drop_path has no effect on a ResNet"),
        ({"backbone__stage": -2}, "backbone.stage has no effect on a classifier, which reads the last feature map"),
        ({"backbone__dense": "interpolate"}, "backbone.dense has no effect on container_light_tiny"),
        ({"data__color_jitter": 0.4}, "data.color_jitter has no effect beside data.auto_augment=rand-m9-mstd0.5-inc1"),
        ({"data__area": (0.5, 1.0)}, "data.area has no effect on inputs of 32 pixels or fewer"),
        ({"data__crop_ratio": 1.0}, "data.crop_ratio has no effect on inputs of 32 pixels or fewer"),
        ({"train__warmup_steps": 5}, "train.warmup_steps has no effect with train.schedule=deit: use train.warmup_ep"),
        ({"train__schedule": "cosine", "train__min_lr": 0.0}, "train.min_lr has no effect with train.schedule=cosine"),
        ({"train__lr_drop": 1}, "train.lr_drop has no effect on the deit schedule"),
    ],
)
def test_a_setting_without_effect_is_reported(changed: dict[str, Any], message: str) -> None:
    usual = {"train__epochs": 9, "train__warmup_epochs": 5}
    warnings = validate(debug(Path("data"), **usual, **changed))
    assert [warning[: len(message)] for warning in warnings] == [message]


@pytest.mark.parametrize(
    "changed",
    [
        {"backbone__name": "resnet18"},
        {"backbone__name": "resnet18", "backbone__drop_path": 0.0},
        {**LARGE, "data__area": (0.5, 1.0), "data__crop_ratio": 1.0},
        {"data__color_jitter": 0.4, "data__auto_augment": ""},
        {"train__schedule": "step", "train__lr_drop": 1, "train__warmup_epochs": 5},
    ],
)
def test_what_has_an_effect_or_is_usual_is_not(changed: dict[str, Any]) -> None:
    assert validate(debug(Path("data"), **changed)) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone__dilation": True}, r"backbone\.dilation=True: classifiers are not dilated"),
        ({"data__area": (0.9, 0.1)}, r"data\.area=\(0\.9, 0\.1\): give the least value, then the largest"),
        ({"data__root": None, "data__make_shapes": (1, 1, 64)}, r"data\.root says in which folder"),
        ({"train__micro_batch": 1}, r"train\.micro_batch=1: mixup and cutmix pair the images .* make it even"),
        ({"train__micro_batch": 0}, r"train\.micro_batch=0: mixing pairs the images of a forward pass"),
        (
            {"train__micro_batch": 0, "data__mixup": 0.0, "data__cutmix": 0.0},
            r"train\.micro_batch=0: BatchNorm counts the images of a forward pass",
        ),
        ({"train__warmup_epochs": 2}, r"train\.warmup_epochs=2: .*\(train\.epochs=2\): lower it, to 0 for none"),
    ],
)
def test_what_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(debug(Path("data"), **changed))


def test_a_schedule_of_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.schedule=deit: detection has no such schedule: use step or cosine"):
        validate(DetectionExperiment(train=DetectionTrainConfig(schedule="deit")))


def test_every_setting_states_what_it_means_for_a_resume_and_for_fairness() -> None:
    traits = traits_of(ClassificationExperiment)
    assert list(traits) == list(flatten(ClassificationExperiment()))
    fixed = {name for name, each in traits.items() if not each.resume.may_change}
    assert {"data.size", "data.fraction", "data.grey", "loss.smoothing", "train.batch", "train.micro_batch"} <= fixed
    assert not {"data.root", "data.workers", "train.lr", "train.epochs", "data.eval_size"} & fixed
    topics = {name: each.topic.name for name, each in traits.items()}
    assert topics["data.eval_size"] == topics["data.interpolation"] == "input size"
    assert topics["data.fraction"] == "share of the training set"
    assert topics["data.mixup"] == "augmentation"
    assert topics["train.warmup_epochs"] == "schedule"


def test_what_is_stated_twice_is_the_same() -> None:
    """With the data as well, since settings do without torch."""
    assert SMALL == views.SMALL
    assert ClassificationExperiment.preloaded == LabelledImages.preloaded
    assert DetectionExperiment.preloaded == DetectionDataset.preloaded
