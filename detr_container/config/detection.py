"""Settings of detection: the backbone, the head, its loss and the data, each with its default and its reason."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
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
    """The transformer and what it predicts; RetinaNet and Mask R-CNN have none of it, see `PyramidConfig`."""

    kind: Literal["detr", "smca", "retinanet", "mask_rcnn"] = "detr"
    """DETR (Carion et al. 2020), single-scale SMCA-DETR (Gao et al. 2021), or what detectron2 builds: RetinaNet (Lin et
    al. 2017) or Mask R-CNN (He et al. 2017) on a feature pyramid."""
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
class PyramidConfig:
    """RetinaNet and Mask R-CNN: the feature pyramid, detectron2's heads on it, and which detections they keep."""

    channels: Annotated[int, positive(8192)] = 256
    """Of every level of the feature pyramid (FPN, Lin et al. 2017)."""
    map_norm: Literal["none", "layer"] = "none"
    """A norm on each of the backbone's maps before the pyramid: `none`, or a LayerNorm over channels."""
    convolutions: Annotated[int, natural(16)] = 4
    """3 x 3 convolutions before the predictions: of both towers of RetinaNet, and of Mask R-CNN's mask head."""
    hidden: Annotated[int, positive(65_536)] = 1024
    """Mask R-CNN only: features of the two hidden layers of its box head."""
    anchor_size: Annotated[int, natural(4096)] = 0
    """Side in pixels of the anchors on the finest level (RetinaNet: of the smallest of three), which doubles with each
    further one; 0: 32, as published. Less for small images."""
    proposals: Annotated[int, positive(100_000)] = 1000
    """Mask R-CNN only: proposals of an image that its heads see at most."""
    samples: Annotated[int, positive(100_000)] = 512
    """Mask R-CNN only: of how many of them its heads learn at most, a quarter of which may hold objects."""
    score_threshold: Share = 0.05
    """Detections of a lower score are dropped."""
    nms: Share = 0.5
    """Of two detections of a class with a larger IoU the surer one stays."""
    detections: Annotated[int, positive(100_000)] = 100
    """The most that an image has, the surest first."""


@with_config(STRICT)
@dataclass(frozen=True)
class LossConfig:
    """Weights of the matching costs and of the losses; RetinaNet and Mask R-CNN have detectron2's own, unweighted."""

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
    d2_dataset: Annotated[str, NO_MATTER] = ""
    """Instead of all of these, a data set of detectron2's catalog: NAME for NAME_train and NAME_val, or two names as in
    a,b. One that is no file in COCO's format becomes one in data/detectron2/."""
    d2_import: Annotated[str, NO_MATTER] = ""
    """The Python module that registers it there, which is imported first; none for detectron2's own."""
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
    pyramid: Annotated[PyramidConfig, FIXED, Topic("head", compared=True)] = field(default_factory=PyramidConfig)
    loss: Annotated[LossConfig, FIXED, Topic("loss", compared=True)] = field(default_factory=LossConfig)
    data: Annotated[DataConfig, Topic("augmentation")] = field(default_factory=DataConfig)
    train: Annotated[DetectionTrainConfig, Topic("schedule")] = field(default_factory=DetectionTrainConfig)
    name: Annotated[str, tyro.conf.Suppress, NO_MATTER] = "detr_r50_50e"
    """The named experiment this one derives from."""

    module: ClassVar[str] = "detr_container.tasks.detection.task"
    trials: ClassVar[str] = "detr_container.tasks.detection.trials:DetectionTrials"
    splits: ClassVar[str] = "detr_container.tasks.detection.splits"
    """The module that finds its data; it needs numpy, which `--help` need not wait for."""
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("ap", "AP"), Metric("ap50", "AP50"), Metric("mask_ap", "mask AP"))
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
        queries = "" if self.anchors else f", {self.head.queries} queries,"
        return f"{self.head.kind}{queries} on {self.backbone.label}"

    @property
    def anchors(self) -> bool:
        """Whether the head classifies anchors, and detectron2 builds it."""
        return self.head.kind in ("retinanet", "mask_rcnn")

    @property
    def masks(self) -> bool:
        """Whether it predicts masks."""
        return self.head.kind == "mask_rcnn"

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
        found: list[Path] = importlib.import_module(self.splits).folders(self.data)
        return found

    def check_data(self) -> None:
        """See `Experiment`."""
        if not any(self.data.make_shapes):
            importlib.import_module(self.splits).both_splits(self.data)

    def idle(self) -> Iterator[tuple[str, bool, str]]:
        """See `Experiment`."""
        data, softmax = self.data, self.loss.classification == "softmax"
        yield from super().idle()
        yield from _idle_of_heads(self)
        yield "head.gaussian head.smooth", self.head.kind == "detr", "on DETR: it is SMCA-DETR's (head.kind=smca)"
        focal, softmax = not softmax and not self.anchors, softmax and not self.anchors
        yield "loss.no_object_weight", focal, "on focal loss, which has no no-object class"
        yield "loss.focal_alpha loss.focal_gamma", softmax, "on softmax cross-entropy: it belongs to focal loss"
        yield "data.crop_resize data.crop_range", data.augment != "detr", f"with data.augment={data.augment}"
        alone = f"with data.canvas={data.canvas}, the only one then"
        yield "data.canvases data.canvas_multiple", bool(data.canvas), alone
        yield "data.canvas_multiple", not data.canvas and data.canvases == "off", "with data.canvases=off"
        yield "data.d2_import", not data.d2_dataset, "without data.d2_dataset"
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
    head, data = experiment.head, experiment.data
    _check_micro_batch(experiment)
    _check_maps(experiment)
    if head.kind == "smca" and head.pre_norm:
        raise ValueError("head.pre_norm=True: SMCA-DETR is defined with post-norm layers only; use head.kind=detr")
    if head.width % head.heads:
        raise ValueError(f"head.width={head.width} cannot be shared by head.heads={head.heads}: make it a multiple")
    if head.position == "sine" and head.width % 4:
        raise ValueError(f"head.width={head.width}: sine positions need a multiple of 4; or use head.position=learned")
    one_source(data)
    if any(data.make_shapes) and data.root is None:
        raise ValueError(f"data.make_shapes={data.make_shapes}: data.root says in which folder to make them")
    for name in ("scales", "crop_resize"):
        sizes = getattr(data, name)
        if not 0 < len(sizes) <= 1000:
            raise ValueError(f"data.{name}={sizes[:10]}: give one or more sizes in pixels, 1,000 at most")
    if data.crop_range[0] > data.crop_range[1]:
        raise ValueError(f"data.crop_range={data.crop_range}: give the least side of a crop, then the largest")


def one_source(data: DataConfig) -> None:
    """Raise ValueError for data of detectron2's catalog and of a folder at once."""
    others = ("root", "train_images", "train_annotations", "val_images", "val_annotations")
    given = [f"data.{name}={getattr(data, name)}" for name in others if getattr(data, name) is not None]
    if any(data.make_shapes):
        given.append(f"data.make_shapes={data.make_shapes}")
    if data.d2_dataset and given:
        raise ValueError(
            f"data.d2_dataset={data.d2_dataset} and {', '.join(given)} name different data: leave one out (an "
            "experiment's own go with --data.root None and --data.make-shapes 0 0 0)"
        )


def _check_maps(experiment: DetectionExperiment) -> None:
    """Which feature maps a head can read."""
    backbone, head = experiment.backbone, experiment.head
    if experiment.anchors and (backbone.stage != -1 or backbone.stride or backbone.dilation):
        raise ValueError(
            f"backbone.stage={backbone.stage}, backbone.stride={backbone.stride}, backbone.dilation="
            f"{backbone.dilation}: {head.kind} reads all of the backbone's maps, each of twice the stride of the one "
            "before; leave them as they are"
        )
    if backbone.dilation and not backbone.name.startswith("resnet"):
        raise ValueError(f"backbone.dilation=True: only a ResNet can be dilated, not {backbone.name}")
    if backbone.stride and backbone.stage != -1:
        raise ValueError(
            f"backbone.stride={backbone.stride} and backbone.stage={backbone.stage} both choose a feature map: give one"
        )


def _idle_of_heads(experiment: DetectionExperiment) -> Iterator[tuple[str, bool, str]]:
    """What is of detectors with queries alone, and of those with a feature pyramid alone; see `Experiment.idle`."""
    kind, anchors = experiment.head.kind, experiment.anchors
    theirs = f"on {kind}: it is of detectors with queries (head.kind=detr or smca)"
    yield _names(HeadConfig, "head", without=("kind",)), anchors, theirs
    yield "train.matching", anchors, theirs
    yield _names(LossConfig, "loss"), anchors, f"on {kind}, whose losses are detectron2's"
    yield _names(PyramidConfig, "pyramid"), not anchors, f"on {kind}: it is of head.kind=retinanet or mask_rcnn"
    ours = "pyramid.hidden pyramid.proposals pyramid.samples"
    yield ours, kind == "retinanet", "on RetinaNet: it is Mask R-CNN's"


def _names(section: type[Any], name: str, without: tuple[str, ...] = ()) -> str:
    """The names of a section's settings, as `idle` has them."""
    return " ".join(f"{name}.{each.name}" for each in fields(section) if each.name not in without)


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
