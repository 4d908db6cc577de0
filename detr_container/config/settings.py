"""Every setting of an experiment, typed, with its default and its reason, once.

An experiment is one frozen `Experiment`. The command line is generated from it, a run folder stores it as JSON,
and a checkpoint carries it, so the three can never disagree. Nothing here imports torch: `--help` is instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from detr_container.base.checked import read_plain
from detr_container.base.limits import (
    Many,
    Pictures,
    Rate,
    Seed,
    Share,
    Side,
    Weight,
    Workers,
    between,
    check,
    natural,
    positive,
    told,
)

_STRICT = ConfigDict(extra="forbid")
COCO_SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


@with_config(_STRICT)
@dataclass(frozen=True)
class BackboneConfig:
    """The feature extractor. Freezing and learning rates go by stage, never by parameter name."""

    name: str = "resnet50"
    """resnet18/34/50/101, container_light, container_light_small, container_light_tiny, or timm/<any timm model>."""
    weights: str = "imagenet"
    """`imagenet` (the published classification weights), `none` (random), or the path of a checkpoint file."""
    file_weights: Literal["auto", "ema", "model"] = "auto"
    """Of a checkpoint file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    dilation: bool = False
    """ResNet only: stride 1 and dilation 2 in the last stage (DC5), so that its features have stride 16."""
    frozen_stages: Annotated[int, natural(1000)] = 2
    """How many leading stages keep their weights. A ResNet's stages are stem, layer1 .. layer4; CONTAINER has four."""
    norm: Literal["frozen", "batch"] = "frozen"
    """BatchNorm layers: `frozen` keeps statistics and scales fixed, `batch` trains them."""
    drop_path: Share = 0.0
    """Stochastic depth: the largest drop probability, reached in the last block (CONTAINER and timm)."""
    stage: Annotated[int, between(-1000, 1000)] = -1
    """Which feature map the head reads, counted from the end: -1 is the last, -2 has half its stride."""
    stride: Annotated[int, natural(1024)] = 0
    """The feature map by its stride in pixels instead, the same one for every backbone; 0: as `stage` says."""

    @property
    def label(self) -> str:
        """The backbone as tables name it."""
        return self.name + (" DC5" if self.dilation else "")


@with_config(_STRICT)
@dataclass(frozen=True)
class HeadConfig:
    """The transformer and what it predicts."""

    kind: Literal["detr", "smca"] = "detr"
    """DETR (Carion et al. 2020) or single-scale SMCA-DETR (Gao et al. 2021)."""
    queries: Annotated[int, positive(10_000)] = 100
    """Detections per picture: more than any picture has objects."""
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


@with_config(_STRICT)
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


@with_config(_STRICT)
@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are, and what is done to them."""

    root: Path | None = None
    """A folder in COCO's layout: train2017/, val2017/, annotations/instances_{train,val}2017.json."""
    train_images: Path | None = None
    """Training pictures, where they are not in `root`."""
    train_annotations: Path | None = None
    """Training annotations in COCO's format, where they are not in `root`."""
    val_images: Path | None = None
    """Validation pictures, where they are not in `root`."""
    val_annotations: Path | None = None
    """Validation annotations in COCO's format, where they are not in `root`."""
    make_shapes: tuple[Pictures, Pictures, Annotated[int, natural(4096)]] = (0, 0, 0)
    """Make the shapes data set in `root` when nothing is there: training and validation pictures, and their side."""
    apply_orientation: bool = False
    """Turn images as their orientation tags (EXIF) say, everywhere; default: as stored, as COCO's tools take them."""
    augment: Literal["detr", "flip", "none"] = "detr"
    """`detr`: flip, resize, and half the time a random crop; `flip`: flip and resize; `none`: resize."""
    resize: Literal["shortest", "square"] = "shortest"
    """Scale the shorter side to the drawn size, or make every picture a square of that size."""
    scales: tuple[Side, ...] = COCO_SCALES
    """Sizes in pixels of which one is drawn for every training picture."""
    max_size: Side = 1333
    """The longer side's limit in pixels."""
    crop_resize: tuple[Side, ...] = (400, 500, 600)
    """Sizes of the shorter side before a crop."""
    crop_range: tuple[Side, Side] = (384, 600)
    """Least and largest side of a crop in pixels."""
    eval_size: Side = 800
    """The shorter side (or the square's) in pixels at evaluation and prediction."""
    canvas: Annotated[int, natural(16_384)] = 0
    """Pad every batch to a square of so many pixels, so that no output depends on a picture's neighbours; 0: do not."""
    eval_batch: Annotated[int, positive(65_536)] = 2
    """Pictures per process and forward at evaluation; recorded with the result, since outputs depend on padding."""
    workers: Workers = 2
    """Loader processes per training process; 0 loads in the training process."""


@with_config(_STRICT)
@dataclass(frozen=True)
class TrainConfig:
    """The schedule, the optimiser and what is kept."""

    epochs: Annotated[int, positive(1_000_000)] = 50
    """Passes over the training set."""
    batch: Annotated[int, positive(65_536)] = 16
    """Pictures per optimiser step, over all processes."""
    micro_batch: Annotated[int, positive(65_536)] = 2
    """Pictures per process in one forward pass; gradients accumulate until `batch` is reached."""
    lr: Annotated[float, positive(1e30)] = 1e-4
    """Learning rate of everything but the backbone."""
    lr_backbone: Rate = 1e-5
    """Learning rate of the backbone's stages that are trained."""
    weight_decay: Rate = 1e-4
    """AdamW's decoupled weight decay, of every weight."""
    clip: Annotated[float, natural(1e9)] = 0.1
    """Largest L2 norm of the gradient; 0 turns clipping off."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rates fall once by a factor of ten, or along half a cosine to zero."""
    lr_drop: Many = 40
    """`step` only: the epoch after which every learning rate is divided by ten."""
    warmup_steps: Many = 0
    """Steps over which the learning rates rise linearly from zero."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone and transformer; boxes, matching and losses are always float32."""
    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated; 0: none."""
    log_every: Annotated[int, positive(2**31)] = 50
    """Steps between two lines of metrics."""
    checkpoint_minutes: Annotated[float, natural(1e6)] = 15.0
    """Minutes between two checkpoints within an epoch; one is written at an epoch's end, and after a start's first step
    unless this is 0."""
    keep_checkpoints: Annotated[int, positive(1_000_000)] = 2
    """How many of the newest checkpoints stay; with 1 there is none to fall back on."""
    eval_every: Many = 1
    """Epochs between two evaluations; the last epoch is always evaluated. 0: never."""
    max_steps: Many = 0
    """Stop after this many steps, as if interrupted (a few steps of a long schedule); 0: run the whole schedule."""


@with_config(_STRICT)
@dataclass(frozen=True)
class Experiment:
    """One experiment: what is trained, on what, and how."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    name: Annotated[str, tyro.conf.Suppress] = "detr_r50_50e"
    """The named experiment this one derives from."""
    seed: Seed = 0
    """Fixes the data order and augmentation whatever the model, and the model's initial weights."""
    init: str = ""
    """A detector's checkpoint, ours or a published one, or a folder of Hugging Face, to start (fine-tune) from."""
    init_weights: Literal["auto", "ema", "model"] = "auto"
    """Of an `init` that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


_ADAPTER: TypeAdapter[Experiment] = TypeAdapter(Experiment)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON has it."""
    return _ADAPTER.dump_python(experiment, mode="json")


def from_dict(values: dict[str, Any]) -> Experiment:
    """The experiment that `to_dict` described. Raises ValueError naming each setting that does not fit."""
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ValueError(
            f"not a configuration of this version: {told(error)}. Use the version that wrote it "
            "(provenance.jsonl says which), or correct the file"
        ) from error


def load(path: Path) -> Experiment:
    """Read a run's config.json. Raises ValueError for what is not one, or has settings that no run can have."""
    values = read_plain(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a run's settings: copy it again")
    return from_file(values, f"{path}")


def from_file(values: dict[str, Any], source: str) -> Experiment:
    """As `from_dict`, by the same rules as an experiment on the command line. source: what errors begin with."""
    try:
        experiment = from_dict(values)
        validate(experiment)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return experiment


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Every setting by its name on the command line: {"train.lr": 1e-4, ...}."""
    flat: dict[str, Any] = {}
    for name, value in to_dict(experiment).items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def difference(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """The settings in which two experiments differ: name to (value in a, value in b)."""
    left, right = flatten(a), flatten(b)
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


def validate(experiment: Experiment) -> list[str]:
    """Warnings about settings that have no effect. Raises ValueError for values that no run can have."""
    check(experiment)
    _check_together(experiment)
    train = experiment.train
    flat, usual = flatten(experiment), flatten(Experiment())
    warnings = [
        f"{name} has no effect {why}"
        for names, idle, why in _idle(experiment)
        for name in names.split()
        if idle and flat[name] != usual[name]
    ]
    if experiment.head.position == "learned" and not train.lr_backbone:
        warnings.append(
            "train.lr_backbone=0 also stops the learned positions (head.position=learned), which the published code "
            "trains with the backbone: to freeze the backbone alone, set backbone.frozen_stages to all of its stages"
        )
    if train.schedule == "step" and train.lr_drop >= train.epochs:
        warnings.append(
            f"train.lr_drop={train.lr_drop} has no effect: it is not before the end (train.epochs={train.epochs})"
        )
    return warnings


def _idle(experiment: Experiment) -> Iterator[tuple[str, bool, str]]:
    """Settings that something else turns off: their names, whether it does, and why."""
    backbone, data = experiment.backbone.name, experiment.data
    softmax = experiment.loss.classification == "softmax"
    yield "head.gaussian head.smooth", experiment.head.kind == "detr", "on DETR: it is SMCA-DETR's (head.kind=smca)"
    yield "backbone.drop_path", backbone.startswith("resnet"), "on a ResNet"
    yield "loss.no_object_weight", not softmax, "on focal loss, which has no no-object class"
    yield "loss.focal_alpha loss.focal_gamma", softmax, "on softmax cross-entropy: it belongs to focal loss"
    yield "data.crop_resize data.crop_range", data.augment != "detr", f"with data.augment={data.augment}"
    yield "data.max_size", data.resize == "square", "on square pictures"
    yield "train.lr_drop", experiment.train.schedule == "cosine", "on the cosine schedule"


def _check_together(experiment: Experiment) -> None:
    """Settings that contradict each other."""
    backbone, head, data = experiment.backbone, experiment.head, experiment.data
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
