"""Settings of detection: the backbone, the head, its loss and the data, each with its default and its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import with_config

from detr_container.base.limits import Images, Rate, Share, Side, Weight, Workers, natural, positive

from .backbones import BackboneExperiment
from .memory import for_step
from .settings import STRICT, Experiment, Metric, TrainConfig
from .traits import FIXED, NO_MATTER, Topic

COCO_SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
_INPUT_SIZE = Topic("input size")


@with_config(STRICT)
@dataclass(frozen=True)
class HeadConfig:
    """The transformer and what it predicts."""

    kind: Literal["detr", "smca"] = "detr"
    """DETR (Carion et al. 2020) or single-scale SMCA-DETR (Gao et al. 2021)."""
    queries: Annotated[int, positive(10_000)] = 100
    """Detections per image: more than any image has objects."""
    width: Annotated[int, positive(8192)] = 256
    """Features per query and position, a multiple of `heads`."""
    heads: Annotated[int, positive(1024)] = 8
    """Attention heads."""
    encoder_layers: Annotated[int, natural(100)] = 6
    """Self-attention layers over the feature map; 0: none."""
    decoder_layers: Annotated[int, positive(100)] = 6
    """Layers that turn queries into objects, each supervised."""
    feedforward: Annotated[int, positive(65_536)] = 2048
    """Hidden features of every layer's two-layer network."""
    dropout: Share = 0.1
    """Drop probability within the transformer."""
    pre_norm: bool = False
    """DETR only: LayerNorm before each block rather than after it."""
    position: Literal["sine", "learned"] = "sine"
    """Position encoding of the feature map: fixed sine waves, or learned rows and columns."""
    gaussian: Literal["type1", "type2", "type3", "type4"] = "type3"
    """SMCA only: no scale, one per head, one per head and axis (published), and that with a cross term."""
    smooth: Annotated[float, positive(1e6)] = 8.0
    """SMCA only: the Gaussian's constant beta."""


@with_config(STRICT)
@dataclass(frozen=True)
class LossConfig:
    """Weights of the matching costs and of the losses."""

    classification: Literal["softmax", "focal"] = "softmax"
    """Softmax cross-entropy with a no-object class (DETR) or sigmoid focal loss (SMCA)."""
    class_weight: Weight = 1.0
    """Weight of the classification loss."""
    l1_weight: Weight = 5.0
    """Weight of the L1 distance between boxes (cx, cy, w, h in [0, 1])."""
    giou_weight: Weight = 2.0
    """Weight of 1 - generalised IoU."""
    cost_class: Weight = 1.0
    """Weight of the class in the matching cost."""
    cost_l1: Weight = 5.0
    """Weight of the L1 distance in the matching cost."""
    cost_giou: Weight = 2.0
    """Weight of the generalised IoU in the matching cost."""
    no_object_weight: Weight = 0.1
    """Softmax only: the weight of the no-object class."""
    focal_alpha: Share = 0.25
    """Focal only: weight of an object against 1 minus it for the background."""
    focal_gamma: Weight = 2.0
    """Focal only: how strongly what is already right is discounted."""
    auxiliary: bool = True
    """Supervise every decoder layer, not only the last."""
    normalise: Literal["global", "process"] = "global"
    """What losses are divided by. `global`: the targets of the whole batch, so that accumulation and the number of
    processes change nothing. `process`, as published: each micro batch stands for a process of the published code,
    also where gradients accumulate. It divides DETR's softmax loss by the weight of its own targets, boxes (and focal
    loss) by the mean number of objects of a micro batch, but no fewer than one; gradients are averaged."""


@with_config(STRICT)
@dataclass(frozen=True)
class DataConfig:
    """Where the images are, and what is done to them."""

    root: Annotated[Path | None, NO_MATTER] = None
    """A folder in COCO's layout: train2017/, val2017/, annotations/instances_{train,val}2017.json."""
    train_images: Annotated[Path | None, NO_MATTER] = None
    """Training images, where they are not in `root`."""
    train_annotations: Annotated[Path | None, NO_MATTER] = None
    """Training annotations in COCO's format, where they are not in `root`."""
    val_images: Annotated[Path | None, NO_MATTER] = None
    """Validation images, where they are not in `root`."""
    val_annotations: Annotated[Path | None, NO_MATTER] = None
    """Validation annotations in COCO's format, where they are not in `root`."""
    make_shapes: Annotated[tuple[Images, Images, Annotated[int, natural(4096)]], NO_MATTER] = (0, 0, 0)
    """Make the shapes data set in `root` when nothing is there: training and validation images, and their side."""
    apply_orientation: Annotated[bool, Topic("orientation of images")] = False
    """Turn images as their orientation tags (EXIF) say, everywhere; default: as stored, as COCO's tools take them."""
    augment: Literal["detr", "flip", "none"] = "detr"
    """`detr`: flip, resize, and half the time a random crop; `flip`: flip and resize; `none`: resize."""
    resize: Annotated[Literal["shortest", "square"], _INPUT_SIZE] = "shortest"
    """Scale the shorter side to the drawn size, or make every image a square of that size."""
    scales: Annotated[tuple[Side, ...], _INPUT_SIZE] = COCO_SCALES
    """Sizes in pixels of which one is drawn for every training image."""
    max_size: Annotated[Side, _INPUT_SIZE] = 1333
    """The longer side's limit in pixels."""
    crop_resize: tuple[Side, ...] = (400, 500, 600)
    """Sizes of the shorter side before a crop."""
    crop_range: tuple[Side, Side] = (384, 600)
    """Least and largest side of a crop in pixels."""
    eval_size: Annotated[Side, _INPUT_SIZE] = 800
    """The shorter side (or the square's) in pixels at evaluation and prediction."""
    canvas: Annotated[int, natural(16_384), Topic("padding")] = 0
    """Pad every batch to a square of so many pixels, so that no output depends on an image's neighbours; 0: do not."""
    canvases: Annotated[Literal["auto", "on", "off"], Topic("padding")] = "auto"
    """Pad every batch to the smallest of a few sizes that follow from the data set's: `auto` where each new size costs
    seconds, on a GPU."""
    canvas_multiple: Annotated[int, natural(16_384), Topic("padding")] = 0
    """What the sides of canvases are multiples of, in pixels, so that backbones have the same; 0: as this one needs."""
    eval_batch: Annotated[int, positive(65_536), Topic("evaluation batch")] = 2
    """Images per process and forward at evaluation; recorded with the result, since outputs depend on padding."""
    workers: Annotated[Workers, NO_MATTER] = 2
    """Loader processes per training process; 0 loads in the training process."""


@with_config(STRICT)
@dataclass(frozen=True)
class DetectionTrainConfig(TrainConfig):
    """The schedule, the optimizer and what is kept."""

    lr_backbone: Rate = 1e-5
    """Learning rate of the backbone's stages that are trained; `lr` is that of everything else."""
    matching: Annotated[Literal["auto", "device", "host"], NO_MATTER] = "auto"
    """Where predictions are matched with objects: on a GPU, which then never waits for the host (`device`, needs
    Triton), or on the host; `auto`: on the GPU where there is one that passes a trial at the start. The matches are the
    same, but for those of equal cost."""
    keep_detections: Annotated[Literal["newest_and_best", "all"], NO_MATTER] = "newest_and_best"
    """Of which epochs the detections stay on disk; the metrics of all do."""


@with_config(STRICT)
@dataclass(frozen=True)
class DetectionExperiment(BackboneExperiment):
    """A detector: what is trained, on what, and how."""

    task: Annotated[Literal["detection"], tyro.conf.Suppress, FIXED] = "detection"
    """What is learnt."""
    head: Annotated[HeadConfig, FIXED, Topic("head", compared=True)] = field(default_factory=HeadConfig)
    loss: Annotated[LossConfig, FIXED, Topic("loss", compared=True)] = field(default_factory=LossConfig)
    data: Annotated[DataConfig, Topic("augmentation")] = field(default_factory=DataConfig)
    train: Annotated[DetectionTrainConfig, Topic("schedule")] = field(default_factory=DetectionTrainConfig)
    name: Annotated[str, tyro.conf.Suppress, NO_MATTER] = "detr_r50_50e"
    """The named experiment this one derives from."""

    module: ClassVar[str] = "detr_container.tasks.detection.task"
    trials: ClassVar[str] = "detr_container.tasks.detection.trials:DetectionTrials"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("ap", "AP"), Metric("ap50", "AP50"))
    metrics_title: ClassVar[str] = "Average precision, %"
    in_float32: ClassVar[str] = "positions, boxes, matching and losses"
    shows_objects: ClassVar[bool] = True

    @property
    def usual_sizes(self) -> tuple[tuple[int, int], ...]:
        """See `Experiment`."""
        return ((480, 640), (800, 1066), (800, 1333))

    @property
    def model_label(self) -> str:
        """See `Experiment`."""
        return f"{self.head.kind}, {self.head.queries} queries, on {self.backbone.label}"

    @property
    def parts(self) -> dict[str, str]:
        """See `Experiment`."""
        return {"backbone": self.backbone.name, "head": self.head.kind}

    @property
    def memory(self) -> dict[str, Any]:
        """See `Experiment`."""
        return for_step(self)

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
        return [self.data.root] if self.data.root else []

    def check_data(self) -> None:
        """See `Experiment`."""
        # Reading data needs numpy, which `--help` need not wait for.
        from detr_container.datasets.annotations import resolve

        data = self.data
        if not any(data.make_shapes):
            resolve(data.root, data.train_images, data.train_annotations, data.val_images, data.val_annotations)

    def idle(self) -> Iterator[tuple[str, bool, str]]:
        """See `Experiment`."""
        data, softmax = self.data, self.loss.classification == "softmax"
        yield from super().idle()
        yield "head.gaussian head.smooth", self.head.kind == "detr", "on DETR: it is SMCA-DETR's (head.kind=smca)"
        yield "loss.no_object_weight", not softmax, "on focal loss, which has no no-object class"
        yield "loss.focal_alpha loss.focal_gamma", softmax, "on softmax cross-entropy: it belongs to focal loss"
        yield "data.crop_resize data.crop_range", data.augment != "detr", f"with data.augment={data.augment}"
        alone = f"with data.canvas={data.canvas}, the only one then"
        yield "data.canvases data.canvas_multiple", bool(data.canvas), alone
        yield "data.canvas_multiple", not data.canvas and data.canvases == "off", "with data.canvases=off"
        yield "data.max_size", data.resize == "square", "on square images"

    def check_together(self) -> list[str]:
        """See `Experiment`."""
        _check_together(self)
        warnings = super().check_together()
        if self.head.position == "learned" and not self.train.lr_backbone:
            warnings.append(
                "train.lr_backbone=0 also stops the learned positions (head.position=learned), which the published "
                "code trains with the backbone: to freeze the backbone alone, set backbone.frozen_stages to all of "
                "its stages"
            )
        return warnings


def _check_together(experiment: DetectionExperiment) -> None:
    """Settings that contradict each other."""
    backbone, head, data = experiment.backbone, experiment.head, experiment.data
    _check_micro_batch(experiment)
    if head.kind == "smca" and head.pre_norm:
        raise ValueError("head.pre_norm=True: SMCA-DETR is defined with post-norm layers only; use head.kind=detr")
    if head.width % head.heads:
        raise ValueError(f"head.width={head.width} cannot be shared by head.heads={head.heads}: make it a multiple")
    if head.position == "sine" and head.width % 4:
        raise ValueError(f"head.width={head.width}: sine positions need a multiple of 4; or use head.position=learned")
    if backbone.dilation and not backbone.name.startswith("resnet"):
        raise ValueError(f"backbone.dilation=True: only a ResNet can be dilated, not {backbone.name}")
    if backbone.stride and backbone.stage != -1:
        raise ValueError(
            f"backbone.stride={backbone.stride} and backbone.stage={backbone.stage} both choose a feature map: give one"
        )
    if any(data.make_shapes) and data.root is None:
        raise ValueError(f"data.make_shapes={data.make_shapes}: data.root says in which folder to make them")
    for name in ("scales", "crop_resize"):
        sizes = getattr(data, name)
        if not 0 < len(sizes) <= 1000:
            raise ValueError(f"data.{name}={sizes[:10]}: give one or more sizes in pixels, 1,000 at most")
    if data.crop_range[0] > data.crop_range[1]:
        raise ValueError(f"data.crop_range={data.crop_range}: give the least side of a crop, then the largest")


def _check_micro_batch(experiment: DetectionExperiment) -> None:
    """What results would follow from the memory of a machine with."""
    given = {"loss.normalise": experiment.loss.normalise, "backbone.norm": experiment.backbone.norm}
    for name, otherwise in (("loss.normalise", "global"), ("backbone.norm", "frozen")):
        if not experiment.train.micro_batch and given[name] != otherwise:
            raise ValueError(
                f"train.micro_batch=0: with {name}={given[name]} results follow from the size of a micro batch, which "
                f"would follow from the machine's memory: give a number, or use {name}={otherwise}"
            )


def detection(experiment: Experiment) -> DetectionExperiment:
    """The same experiment, for what works with detectors alone. Raises ValueError for one of another task."""
    if not isinstance(experiment, DetectionExperiment):
        name = experiment.name or "this"
        raise ValueError(f"{name} is an experiment of {experiment.task}: this is for detection alone")
    return experiment
