"""Settings of classification: the network, its data and the DeiT recipe, each with its default and its reason.

The defaults are the published recipe (Touvron et al. 2021, "Training data-efficient image transformers"), as the
released code of CONTAINER-LIGHT has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from pydantic import with_config

from detr_container.base.limits import Images, Many, Rate, Share, Side, Weight, Workers, between, natural, positive

from .backbones import BackboneConfig, BackboneExperiment
from .settings import STRICT, Experiment, Metric, TrainConfig
from .traits import FIXED, NO_MATTER, Topic

_INPUT_SIZE = Topic("input size")
SMALL = 32
"""Pixels: inputs up to this size are cut from a padded image in training, and not resized in evaluation."""


@with_config(STRICT)
@dataclass(frozen=True)
class ClassificationLossConfig:
    """What is learnt of a label."""

    smoothing: Share = 0.1
    """Label smoothing: this share of the target is spread evenly over all classes."""


@with_config(STRICT)
@dataclass(frozen=True)
class FoldersConfig:
    """Where the images are, and what is done to them."""

    root: Annotated[Path | None, NO_MATTER] = None
    """A folder with train/ and val/, in each of which a folder per class holds its images; or ImageNet's archives."""
    train_images: Annotated[Path | None, NO_MATTER] = None
    """The training split's folder, where it is not `root`/train."""
    val_images: Annotated[Path | None, NO_MATTER] = None
    """The validation split's folder, where it is not `root`/val."""
    make_shapes: Annotated[tuple[Images, Images, Annotated[int, natural(4096)]], NO_MATTER] = (0, 0, 0)
    """Make images of single shapes in `root` when nothing is there: training and validation images, and their side."""
    fraction: Annotated[float, positive(1), FIXED, Topic("share of the training set")] = 1.0
    """Train on this share of each class's images, which the seed chooses."""
    grey: Annotated[bool, FIXED, Topic("colour")] = False
    """Turn all images to grey (of three equal channels), before anything else."""
    size: Annotated[Side, FIXED, _INPUT_SIZE] = 224
    """The side of the network's square input in pixels, in training."""
    eval_size: Annotated[int, natural(16_384), _INPUT_SIZE] = 0
    """The same at evaluation and prediction; 0: as in training."""
    crop_ratio: Annotated[float, positive(1), _INPUT_SIZE] = 0.875
    """Evaluation resizes the shorter side to the input size divided by this, and cuts the centre out."""
    interpolation: Annotated[Literal["bicubic", "bilinear"], _INPUT_SIZE] = "bicubic"
    """How evaluation resizes; training is bicubic. Published ResNets are evaluated with bilinear."""
    area: tuple[Annotated[float, positive(1)], Annotated[float, positive(1)]] = (0.08, 1.0)
    """Least and largest share of the image that a random crop covers."""
    aspect: tuple[Annotated[float, positive(100)], Annotated[float, positive(100)]] = (3 / 4, 4 / 3)
    """Least and largest ratio of a random crop's width to its height."""
    flip: Annotated[float, between(0, 1)] = 0.5
    """Probability of a horizontal flip."""
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment or another policy in timm's spelling; empty: none."""
    color_jitter: Annotated[float, natural(1)] = 0.0
    """Strength of colour jitter; as published only where there is no `auto_augment`."""
    erasing: Annotated[float, between(0, 1)] = 0.25
    """Probability that a block of an image is replaced by noise."""
    repeats: Annotated[int, between(1, 64)] = 3
    """Repeated augmentation: an epoch shows each of its images so often, and only 1 / `repeats` of all images."""
    mixup: Weight = 0.8
    """alpha of mixup's Beta distribution; 0: no mixup."""
    cutmix: Weight = 1.0
    """alpha of cutmix's; with both, each batch draws one of the two. 0: no cutmix."""
    eval_batch: Annotated[int, positive(65_536), NO_MATTER] = 128
    """Images per process and forward pass at evaluation."""
    workers: Annotated[Workers, NO_MATTER] = 2
    """Loader processes per training process; 0 loads in the training process."""

    @property
    def evaluated_at(self) -> int:
        """The input size of an evaluation in pixels."""
        return self.eval_size or self.size

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)


@with_config(STRICT)
@dataclass(frozen=True)
class ClassificationTrainConfig(TrainConfig):
    """The schedule, the optimizer and what is kept."""

    epochs: Annotated[int, positive(1_000_000)] = 300
    """Passes over the training set, of which repeated augmentation shows a part (`data.repeats`)."""
    batch: Annotated[int, positive(65_536), FIXED] = 1024
    """Images per optimizer step, over all processes; views of them, where augmentation is repeated."""
    micro_batch: Annotated[int, natural(65_536), FIXED, Topic("images per forward pass")] = 128
    """Images per process in one forward pass, which is what BatchNorm and mixing see; gradients accumulate until
    `batch` is reached."""
    lr: Annotated[float, positive(1e30)] = 5e-4
    """Learning rate for `lr_batch` images per step: it grows with the batch."""
    lr_batch: Annotated[Many, Topic("schedule")] = 512
    """The rate is lr x batch / lr_batch; 0: it is `lr` whatever the batch."""
    weight_decay: Rate = 0.05
    """AdamW's decoupled weight decay, of weights with two dimensions or more."""
    clip: Annotated[float, natural(1e9)] = 0.0
    """Largest L2 norm of the gradient; 0 turns clipping off."""
    schedule: Literal["step", "cosine", "deit"] = "deit"
    """`deit`: as published, one rate per epoch: warm-up, then half a cosine to `min_lr`; `cosine` and `step`: as in
    detection."""
    warmup_epochs: Many = 5
    """`deit` only: epochs over which the learning rate rises from `warmup_lr`."""
    warmup_lr: Rate = 1e-6
    """`deit` only: the first epochs' learning rate, whatever the batch."""
    min_lr: Rate = 1e-5
    """`deit` only: the learning rate that the cosine ends at, whatever the batch."""
    keep_predictions: Annotated[Literal["newest_and_best", "all"], NO_MATTER] = "newest_and_best"
    """Of which epochs the predictions stay on disk; the metrics of all do."""

    schedules: ClassVar[tuple[str, ...]] = ("step", "cosine", "deit")

    def at_full_rate(self) -> Self:
        """See `TrainConfig`."""
        return replace(super().at_full_rate(), warmup_epochs=0)

    @property
    def peak(self) -> float:
        """The learning rate that the schedule starts from, for this batch."""
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr


@with_config(STRICT)
@dataclass(frozen=True)
class ClassificationExperiment(BackboneExperiment):
    """A classifier: what is trained, on what, and how."""

    task: Annotated[Literal["classification"], tyro.conf.Suppress, FIXED] = "classification"
    """What is learnt."""
    backbone: Annotated[BackboneConfig, FIXED, Topic("backbone settings")] = field(
        default_factory=lambda: BackboneConfig(
            name="container_light", weights="none", frozen_stages=0, norm="batch", drop_path=0.1
        )
    )
    loss: Annotated[ClassificationLossConfig, FIXED, Topic("loss")] = field(default_factory=ClassificationLossConfig)
    data: Annotated[FoldersConfig, Topic("augmentation")] = field(default_factory=FoldersConfig)
    train: Annotated[ClassificationTrainConfig, Topic("schedule")] = field(default_factory=ClassificationTrainConfig)
    name: Annotated[str, tyro.conf.Suppress, NO_MATTER] = "container_light_in1k"
    """The named experiment this one derives from."""

    module: ClassVar[str] = "detr_container.tasks.classification.task"
    trials: ClassVar[str] = "detr_container.tasks.classification.trials:ClassificationTrials"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("top1", "top-1"), Metric("top5", "top-5"))
    preloaded: ClassVar[str] = "detr_container.datasets.preloaded_views"
    metrics_title: ClassVar[str] = "Accuracy, %"
    usual_classes: ClassVar[int] = 1000

    @property
    def usual_sizes(self) -> tuple[tuple[int, int], ...]:
        """See `Experiment`."""
        return ((self.data.size, self.data.size),)

    @property
    def model_label(self) -> str:
        """See `Experiment`."""
        return f"classifier, {self.data.size} pixels, on {self.backbone.label}"

    @property
    def memory(self) -> dict[str, Any]:
        """See `Experiment`."""
        return super().memory | {"data.size": self.data.size}

    @property
    def loader_workers(self) -> int:
        """See `Experiment`."""
        return self.data.workers

    @property
    def evaluation_batch(self) -> int:
        """See `Experiment`."""
        return self.data.eval_batch

    @property
    def data_folders(self) -> list[Path]:
        """See `Experiment`."""
        folders = (self.data.root, self.data.train_images, self.data.val_images)
        return [folder for folder in folders if folder is not None]

    def check_data(self) -> None:
        """See `Experiment`."""
        from detr_container.datasets.folders import resolve

        data = self.data
        if not any(data.make_shapes):
            resolve(data.root, data.train_images, data.val_images)

    def idle(self) -> Iterator[tuple[str, bool, str]]:
        """See `Experiment`."""
        data, schedule = self.data, self.train.schedule
        small = f"on inputs of {SMALL} pixels or fewer"
        yield from super().idle()
        yield "data.color_jitter", bool(data.auto_augment), f"beside data.auto_augment={data.auto_augment}"
        yield "data.area data.aspect", data.size <= SMALL, f"{small}, cut from a padded image"
        yield "data.crop_ratio data.interpolation", data.evaluated_at <= SMALL, small
        yield "train.warmup_epochs train.warmup_lr train.min_lr", schedule != "deit", f"with train.schedule={schedule}"
        yield "train.warmup_steps", schedule == "deit", "with train.schedule=deit: use train.warmup_epochs"
        yield "backbone.stage backbone.stride", True, "on a classifier, which reads the last feature map"

    def check_together(self) -> list[str]:
        """See `Experiment`."""
        _check_together(self)
        return super().check_together()


def _check_together(experiment: ClassificationExperiment) -> None:
    """Settings that contradict each other."""
    backbone, data, train = experiment.backbone, experiment.data, experiment.train
    if backbone.dilation:
        raise ValueError("backbone.dilation=True: classifiers are not dilated; leave it out")
    for name in ("area", "aspect"):
        least, most = getattr(data, name)
        if least > most:
            raise ValueError(f"data.{name}={getattr(data, name)}: give the least value, then the largest")
    if any(data.make_shapes) and data.root is None:
        raise ValueError(f"data.make_shapes={data.make_shapes}: data.root says in which folder to make them")
    if data.mixes and train.micro_batch % 2:
        raise ValueError(
            f"train.micro_batch={train.micro_batch}: mixup and cutmix pair the images of a forward pass: make it even, "
            "or turn both off (data.mixup=0 data.cutmix=0)"
        )
    if not train.micro_batch and (data.mixes or backbone.norm != "frozen"):
        why = "mixing pairs the images" if data.mixes else "BatchNorm counts the images"
        raise ValueError(
            f"train.micro_batch=0: {why} of a forward pass, whose number would follow from the machine's memory: give "
            "a number"
        )
    if train.schedule == "deit" and train.warmup_epochs >= train.epochs:
        raise ValueError(
            f"train.warmup_epochs={train.warmup_epochs}: the warm-up must end before the run does "
            f"(train.epochs={train.epochs}): lower it, to 0 for none"
        )


def classification(experiment: Experiment) -> ClassificationExperiment:
    """The same experiment, for what works with classifiers alone. Raises ValueError for one of another task."""
    if not isinstance(experiment, ClassificationExperiment):
        name = experiment.name or "this"
        raise ValueError(f"{name} is an experiment of {experiment.task}: this is for classification alone")
    return experiment
