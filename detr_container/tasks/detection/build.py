"""From settings to objects: the only place where a configuration meets the constructors of models and data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detr_container.base.files import sha256
from detr_container.base.optional import require_detectron2
from detr_container.base.shortage import asking
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DataConfig, DetectionExperiment
from detr_container.config.memory import for_model
from detr_container.datasets.annotations import Annotations, Category, read_annotations
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.shapes import make_shapes
from detr_container.datasets.transforms import Augmentation
from detr_container.engine.backbones import build_backbone, check_dense, known, lay_out, plain_side
from detr_container.models.backbones.plain import PLAIN
from detr_container.models.backbones.timm_fit import fit
from detr_container.models.criterion import Criterion
from detr_container.models.detector import Detector, QueryDetector
from detr_container.models.detr import Detr
from detr_container.models.matcher import Matcher
from detr_container.models.smca import SmcaDetr
from detr_container.models.weights.detectors import Loaded, fine_tune_from

from .anchors.workarounds import deprecated_functions_of_torch_are_called, torch_says_once_what_will_change
from .detector_file import read_detector
from .splits import both_splits

_log = logging.getLogger(__name__)


def longest_side(data: DataConfig) -> int:
    """The longest side in pixels that an image can have after resizing, before it is padded to a multiple."""
    side = max(*data.scales, data.eval_size) if data.resize == "square" else data.max_size
    return max(side, data.canvas)


def check_backbone(experiment: DetectionExperiment) -> str:
    """Check a backbone in a second, before anything else is done: a remark on what it makes of images, or "".

    Raises ValueError for one that cannot be built, or not for images of these sizes. Of our own only the name is
    checked; what else can be wrong with a model its constructor reports.
    """
    config = experiment.backbone
    if experiment.anchors:
        require_detectron2()
    if not config.name.startswith("timm/"):
        known(config.name)
        return _dense_remark(config, longest_side(experiment.data))
    side = fit(config.name.removeprefix("timm/"), config.stage, config.stride, longest_side(experiment.data)).side
    return f"{config.name} takes one size only: all images are padded to {side} x {side} pixels" if side else ""


def _dense_remark(config: BackboneConfig, longest: int) -> str:
    """What is to be said of dense affinities, for images of at most so many pixels to a side; "" where there are none.

    Raises ValueError for more of them than a weight can be expected to hold.
    """
    side, numbers = check_dense(config, longest, "--data.resize square --data.scales {side} --data.eval-size {side}")
    if not side:
        return ""
    if config.dense == "interpolate":
        return (
            f"{config.name} has dense affinities for {side} x {side} pixels ({numbers / 1e6:.1f} M numbers), which are "
            "interpolated for each size of image"
        )
    return (
        f"{config.name} takes one size only: all images are padded to {side} x {side} pixels, for which its dense "
        f"affinities have {numbers / 1e6:.1f} M numbers (backbone.dense=interpolate takes others)"
    )


def size_multiple(experiment: DetectionExperiment) -> int:
    """What the detector's images are padded to a multiple of, in pixels."""
    if experiment.anchors:
        return build_detector(experiment, 1, weights=False).size_multiple
    config, longest = experiment.backbone, longest_side(experiment.data)
    if config.name.startswith("timm/"):
        name = config.name.removeprefix("timm/")
        return fit(name, config.stage, config.stride, longest).multiple
    if config.name in PLAIN:
        # Not built for it: at large sizes that takes long.
        return PLAIN[config.name].patch if config.dense == "interpolate" else plain_side(config, longest)
    return build_backbone(config, weights=False).size_multiple


def build_detector(experiment: DetectionExperiment, classes: int, weights: bool = True) -> Detector:
    """The model of an experiment for a number of classes; the seed alone decides what is random in it."""
    with asking("the model", for_model(experiment)), torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        backbone = build_backbone(experiment.backbone, weights, longest_side(experiment.data))
        if experiment.anchors:
            require_detectron2()
            with deprecated_functions_of_torch_are_called():
                from .anchors.detector import build
            torch_says_once_what_will_change()
            anchored = build(experiment.head.kind, backbone, classes, experiment.pyramid, experiment.seed)
            return lay_out(anchored, backbone.memory_format)
        # What was asked for is the deepest map that was built, and both heads read one.
        backbone.at_strides(backbone.strides[-1])
        # Again, so that the head starts the same whatever the backbone has drawn.
        torch.manual_seed(experiment.seed)
        head = experiment.head
        shared: dict[str, Any] = {
            "queries": head.queries,
            "width": head.width,
            "heads": head.heads,
            "encoder_layers": head.encoder_layers,
            "decoder_layers": head.decoder_layers,
            "feedforward": head.feedforward,
            "dropout": head.dropout,
            "position": head.position,
            "auxiliary": experiment.loss.auxiliary,
        }
        logits = classes + int(experiment.loss.classification == "softmax")
        if head.kind == "detr":
            model: QueryDetector = Detr(backbone, logits, pre_norm=head.pre_norm, **shared)
        else:
            model = SmcaDetr(backbone, logits, gaussian=head.gaussian, smooth=head.smooth, **shared)
        return lay_out(model, backbone.memory_format)


def build_matcher(experiment: DetectionExperiment) -> Matcher:
    """The matcher with the experiment's costs."""
    loss = experiment.loss
    return Matcher(
        loss.classification, loss.cost_class, loss.cost_l1, loss.cost_giou, loss.focal_alpha, loss.focal_gamma
    )


def build_criterion(experiment: DetectionExperiment) -> Criterion:
    """The criterion with the experiment's weights."""
    loss = experiment.loss
    return Criterion(
        loss.classification,
        loss.class_weight,
        loss.l1_weight,
        loss.giou_weight,
        loss.no_object_weight,
        loss.focal_alpha,
        loss.focal_gamma,
        loss.normalise,
    )


@dataclass(frozen=True)
class Data:
    """Both splits of a data set, as an experiment reads them."""

    train: DetectionDataset
    val: DetectionDataset

    @property
    def classes(self) -> tuple[Category, ...]:
        """The class list, which labels index."""
        return self.train.annotations.categories

    def versions(self) -> dict[str, dict[str, Any]]:
        """Which data this is, so that results on other data are never compared with it: its annotation files."""
        versions = {}
        for name, split in (("train", self.train), ("val", self.val)):
            path = split.annotations.path
            versions[name] = {"annotations": str(path), "sha256": sha256(path), "images": len(split)}
        return versions


def training_augmentation(config: DataConfig) -> Augmentation:
    """What training does to images."""
    return Augmentation(
        config.scales, config.max_size, config.crop_resize, config.crop_range, config.augment, config.resize
    )


def evaluation_augmentation(config: DataConfig) -> Augmentation:
    """What evaluation and prediction do to images: one size, nothing random."""
    return Augmentation((config.eval_size,), config.max_size, augment="none", resize=config.resize)


def open_data(experiment: DetectionExperiment) -> Data:
    """Read both annotation files. Raises ValueError for what cannot be trained on."""
    config = experiment.data
    make_shapes_if_asked(config)
    train, val = both_splits(config)
    masks = experiment.masks
    annotations = [read_annotations(path, images, segmentations=masks) for images, path in (train, val)]
    same_classes(annotations[0].categories, annotations[1])
    return Data(
        DetectionDataset(
            annotations[0], training_augmentation(config), experiment.seed, config.apply_orientation, masks
        ),
        DetectionDataset(annotations[1], evaluation_augmentation(config), experiment.seed, config.apply_orientation),
    )


def make_shapes_if_asked(config: DataConfig) -> None:
    """Make the shapes data set that a configuration asks for, unless there is something in its place."""
    train, val, size = config.make_shapes
    if train and config.root and not config.root.exists():
        _log.info("making %d + %d images of shapes in %s", train, val, config.root)
        with asking("the images", {"data.make_shapes": config.make_shapes}):
            make_shapes(config.root, train, val, size)


def same_classes(classes: Sequence[Category], other: Annotations) -> None:
    """Raise ValueError unless `other` has these classes under the same ids."""
    ours, theirs = {(c.id, c.name) for c in classes}, {(c.id, c.name) for c in other.categories}
    if ours != theirs:
        differ = ", ".join(f"{name!r} (id {number})" for number, name in sorted(ours ^ theirs)[:6])
        raise ValueError(f"{other.path} has other categories than the training set or the checkpoint: {differ}")


def start_from(model: Detector, experiment: DetectionExperiment, classes: Sequence[Category], path: Path) -> Loaded:
    """Load a detector's checkpoint to fine-tune from; class rows are carried over where names agree."""
    file = read_detector(path, experiment.init_weights, "init_weights")
    theirs = [category.name for category in file.row_classes()]
    if file.classes is None:
        guess = file.taken_for()
        _log.warning("%s has no class list: taken for a detector under %s names, %s", path, file.layout, guess)
        if not file.known_as and not file.names:
            _log.warning("%s has %d class rows and no class list, so none is taken for one of ours", path, file.rows)
            theirs = []
    softmax = experiment.loss.classification == "softmax"
    ours = [category.name for category in classes]
    state = file.state_on(experiment.backbone.name)
    return fine_tune_from(model, state, theirs, ours, softmax, file.softmax)
