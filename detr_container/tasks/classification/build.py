"""From settings to objects: where a classification experiment meets the constructors of its model and its data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from detr_container.base.shortage import asking
from detr_container.config.classification import ClassificationExperiment, FoldersConfig
from detr_container.datasets.folders import ImageFolder, open_folder, resolve
from detr_container.datasets.labelled import LabelledImages
from detr_container.datasets.mixing import Mixing
from detr_container.datasets.single_shapes import make_single_shapes
from detr_container.datasets.views import CentreCrop, TrainingView
from detr_container.engine.backbones import lay_out
from detr_container.engine.classifiers import build_classifier
from detr_container.engine.session import Session
from detr_container.models.classifier import ImageClassifier

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Both splits of an image folder, as an experiment reads them."""

    train: LabelledImages
    val: LabelledImages

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, which labels index."""
        return self.train.folder.classes

    def versions(self) -> dict[str, dict[str, Any]]:
        """Which data this is, so that results on other data are never compared with it: its listings of files."""
        return {"train": self.train.folder.version(), "val": self.val.folder.version()}


def model_of(experiment: ClassificationExperiment, classes: int, weights: bool = True) -> ImageClassifier:
    """The model of an experiment for a number of classes; the seed alone decides what is random in it."""
    with asking("the model", experiment.memory), torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        model = build_classifier(experiment.backbone, classes, experiment.data.size, weights)
        for side in {experiment.data.size, experiment.data.evaluated_at}:
            model.check_side(side)
        return lay_out(model, model.memory_format)


def training_images(folder: ImageFolder, experiment: ClassificationExperiment) -> LabelledImages:
    """A split as training sees it."""
    data = experiment.data
    view = TrainingView(
        data.size, data.area, data.aspect, data.flip, data.auto_augment, data.color_jitter, data.erasing, data.grey
    )
    return LabelledImages(folder, view, Mixing(data.mixup, data.cutmix), experiment.seed)


def evaluation_view(data: FoldersConfig) -> CentreCrop:
    """What evaluation and prediction see of an image."""
    return CentreCrop(data.evaluated_at, data.crop_ratio, data.grey, data.interpolation)


def evaluation_images(folder: ImageFolder, experiment: ClassificationExperiment) -> LabelledImages:
    """A split as evaluation sees it."""
    return LabelledImages(folder, evaluation_view(experiment.data), seed=experiment.seed)


def open_data(experiment: ClassificationExperiment) -> Data:
    """List both splits. Raises ValueError or OSError for what cannot be trained on."""
    return data_of(experiment, *folders_of(experiment))


def data_on_all(session: Session, experiment: ClassificationExperiment) -> Data:
    """Both splits on every process, made by the main one if asked for, which alone lists a million files."""
    folders = None
    with session.together():
        if session.main:
            folders = folders_of(experiment)
    folders = session.of_main(folders)
    with session.together():
        return data_of(experiment, *folders)


def make_shapes_if_asked(config: FoldersConfig) -> None:
    """Make the images of single shapes that a configuration asks for, unless there is something in their place."""
    train, val, size = config.make_shapes
    if train and config.root and not config.root.exists():
        _log.info("making %d + %d images of single shapes in %s", train, val, config.root)
        with asking("the images", {"data.make_shapes": config.make_shapes}):
            make_single_shapes(config.root, train, val, size)


def folders_of(experiment: ClassificationExperiment) -> tuple[ImageFolder, ImageFolder]:
    """The lists of both splits, of the training split the share that is asked for."""
    data = experiment.data
    make_shapes_if_asked(data)
    paths = resolve(data.root, data.train_images, data.val_images)
    train = open_folder(paths[0])
    val = open_folder(paths[1], train.classes)
    return train if data.fraction == 1 else train.stratified(data.fraction, experiment.seed), val


def data_of(experiment: ClassificationExperiment, train: ImageFolder, val: ImageFolder) -> Data:
    """Both splits as an experiment reads them."""
    return Data(training_images(train, experiment), evaluation_images(val, experiment))
