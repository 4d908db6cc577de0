"""The keys that our models add to detectron2's yacs settings, and what detectron2's own keys are for them.

`MODEL.DETR_CONTAINER.BACKBONE.*`, `.HEAD.*` and `.LOSS.*` are the settings of `BackboneConfig`, `HeadConfig` and
`LossConfig` in capitals, with their defaults; what each means stands with its field there. Beside them:
`MODEL.DETR_CONTAINER.NUM_CLASSES`, and `MODEL.DETR_CONTAINER.LR_BACKBONE`, the learning rate of the backbone
(`SOLVER.BASE_LR` is that of the rest); for detectron2's own models `MODEL.DETR_CONTAINER.MAP_NORM`, a norm on the
backbone's maps (`PyramidConfig.map_norm`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from detectron2.config import CfgNode

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import COCO_SCALES, DataConfig, HeadConfig, LossConfig
from detr_container.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

T = TypeVar("T")
FORMATS = ("RGB", "BGR")
IMAGES, EPOCHS, DROP, BATCH = 118_287, 50, 40, 16
"""COCO's training images, those without objects included, as DETR's published code shows them; and its schedule."""


@dataclass(frozen=True)
class Section:
    """A node of the settings: the dataclass that it mirrors, and the fields that something else decides."""

    kind: type[Any]
    without: tuple[str, ...] = ()

    def node(self) -> CfgNode:
        """The keys with the fields' defaults."""
        return CfgNode({name.upper(): getattr(self.kind(), name) for name in self.names()})

    def read(self, node: CfgNode) -> Any:
        """The dataclass with what stands in a node."""
        return self.kind(**{name: node[name.upper()] for name in self.names()})

    def names(self) -> list[str]:
        """The fields, in order."""
        return [field.name for field in fields(self.kind) if field.name not in self.without]


# MODEL.META_ARCHITECTURE says which head it is.
_SECTIONS = {"BACKBONE": Section(BackboneConfig), "HEAD": Section(HeadConfig, ("kind",)), "LOSS": Section(LossConfig)}


def add_keys(cfg: CfgNode) -> None:
    """Add `MODEL.DETR_CONTAINER` and leave all other keys as they are: for detectron2's models on our backbones."""
    cfg.MODEL.DETR_CONTAINER = CfgNode({"NUM_CLASSES": 80, "LR_BACKBONE": 1e-5, "MAP_NORM": "none"})
    for name, section in _SECTIONS.items():
        cfg.MODEL.DETR_CONTAINER[name] = section.node()


def add_detr_container_config(cfg: CfgNode) -> None:
    """Add the keys of DETR and SMCA-DETR to `get_cfg()`, and give detectron2's own keys the values that both need.

    Those are the published recipe on COCO: RGB images normalised as the backbone wants it; DETR's sizes and crops;
    images without objects shown, and not grouped by their shape; AdamW at 1e-4 (the backbone: 1e-5) with weight decay
    1e-4, which falls after 40 of 50 epochs; the gradient of the whole model clipped to an L2 norm of 0.1
    (`full_model`, which `Trainer` here knows, and detectron2's own refuses); a checkpoint and an evaluation an epoch.
    """
    add_keys(cfg)
    data, epoch = DataConfig(), IMAGES / BATCH
    cfg.MODEL.META_ARCHITECTURE = "DETR"
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = in_255(IMAGENET_MEAN), in_255(IMAGENET_STD)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = COCO_SCALES, data.max_size
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = data.eval_size, data.max_size
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute_range", list(data.crop_range)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = BATCH, 1e-4, 1e-4
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = round(EPOCHS * epoch), (round(DROP * epoch),)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 0, 1.0
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = round(epoch)
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE, clipping.NORM_TYPE = True, "full_model", 0.1, 2.0


def backbone_config(cfg: CfgNode) -> BackboneConfig:
    """What `MODEL.DETR_CONTAINER.BACKBONE` says."""
    return _read(cfg, "BACKBONE", BackboneConfig)


def head_config(cfg: CfgNode) -> HeadConfig:
    """What `MODEL.DETR_CONTAINER.HEAD` says; which head it is, `MODEL.META_ARCHITECTURE` does."""
    return _read(cfg, "HEAD", HeadConfig)


def loss_config(cfg: CfgNode) -> LossConfig:
    """What `MODEL.DETR_CONTAINER.LOSS` says."""
    return _read(cfg, "LOSS", LossConfig)


def check_input(
    input_format: str,
    mean: Sequence[float],
    std: Sequence[float],
    given_mean: Sequence[float] | None,
    given_std: Sequence[float] | None,
) -> None:
    """Raise ValueError unless settings agree with how the backbone wants its images.

    input_format: the order of channels in what the model is given; mean, std: the backbone's, RGB, for pixels in
    [0, 1]; given_mean, given_std: what settings say, in that order and for pixels to 255, None where they do not.
    """
    if input_format not in FORMATS:
        raise ValueError(f"INPUT.FORMAT={input_format}: images are RGB or BGR; set one of these (input_format)")
    for key, values, given in (("PIXEL_MEAN", mean, given_mean), ("PIXEL_STD", std, given_std)):
        expected = in_255(values if input_format == "RGB" else values[::-1])
        wrong = given is not None and (
            len(given) != len(expected) or any(abs(a - b) > 0.01 for a, b in zip(given, expected, strict=True))
        )
        if wrong:
            raise ValueError(
                f"MODEL.{key}={list(given or ())}: this backbone was made for {expected} of {input_format} images "
                f"(INPUT.FORMAT); set MODEL.{key} to that"
            )


def in_255(values: Sequence[float]) -> list[float]:
    """A mean or deviation of pixels in [0, 1] as detectron2 has it, rounded as it does."""
    return [round(255 * value, 3) for value in values]


def _read(cfg: CfgNode, name: str, kind: type[T]) -> T:
    if "DETR_CONTAINER" not in cfg.MODEL:
        raise ValueError(
            "MODEL.DETR_CONTAINER is missing: call detr_container.d2.settings.add_detr_container_config(cfg) after "
            "get_cfg(), before settings are read from files"
        )
    found = _SECTIONS[name].read(cfg.MODEL.DETR_CONTAINER[name])
    assert isinstance(found, kind)
    return found
