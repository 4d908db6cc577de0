"""A detector's weights from a file or from a folder of Hugging Face, with what stands beside them, checked whole."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from detr_container.base.checked import Schema, mistakes, read_json
from detr_container.config.detection import DetectionExperiment, detection
from detr_container.config.settings import from_file
from detr_container.datasets.annotations import Category
from detr_container.datasets.coco_classes import COCO, PANOPTIC, rows_by_id
from detr_container.engine.weight_files import load_weights
from detr_container.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from detr_container.models.backbones.resnet import MSRA, TWINS
from detr_container.models.weights.class_rows import class_rows
from detr_container.models.weights.detectors import detector_weights
from detr_container.models.weights.detectron2 import anchor_kind
from detr_container.models.weights.detectron2_resnet import ResnetFile, for_network
from detr_container.models.weights.find import Which, check_sound, find_weights

_log = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"
"""Where Hugging Face keeps what is done to images beside a model."""
_KINDS = ("detr", "table-transformer")
COCO_ROWS = (91, 92)
"""Class rows of the published heads of COCO; of any other number none is taken for one of COCO's classes."""
PANOPTIC_ROWS = 251
"""Of the published panoptic heads; so many rows of a detector without masks may be anything."""
_NEEDED = {
    "": {"query_embed.weight": 2, "class_embed.weight": 2, "class_embed.bias": 1},
    "retinanet": {"model.head.cls_score.weight": 4, "model.head.bbox_pred.weight": 4},
    "mask_rcnn": {"model.roi_heads.box_predictor.cls_score.weight": 2, "model.roi_heads.mask_head.predictor.weight": 4},
}
"""Tensors by `DetectorFile.anchors`, and their dimensions."""


class ModelConfig(Schema):
    """What is read of Hugging Face's config.json of a DETR."""

    encoder_attention_heads: Annotated[int, Field(ge=1, le=10**4)] = 8
    decoder_attention_heads: Annotated[int, Field(ge=1, le=10**4)] = 8
    activation_function: str = "relu"
    auxiliary_loss: bool | None = None
    id2label: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], str | int] | None = None
    dilation: bool | None = None
    backbone_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class DetectorFile:
    """What a file holds, under our names. experiment, classes: None where it has none of its own.

    names: class names by row, as in Hugging Face's config.json; arguments: what the published code stored
    beside its weights, or what config.json states of heads and dilation; sizes: of images, as settings of `data`, where
    Hugging Face's preprocessor_config.json has them; panoptic: whether it has a mask head, or states that it is COCO's.
    resnet: what it says of a ResNet of detectron2's in a detector of detectron2's, see `state_on`.
    """

    path: Path
    state: dict[str, Tensor]
    layout: str
    experiment: DetectionExperiment | None
    classes: tuple[Category, ...] | None
    names: dict[int, str]
    arguments: argparse.Namespace | None
    step: int
    sizes: dict[str, Any]
    panoptic: bool
    resnet: ResnetFile | None = None

    @property
    def anchors(self) -> str:
        """The `HeadConfig.kind` of RetinaNet and Mask R-CNN, "" for others."""
        return anchor_kind(self.state)

    @property
    def count(self) -> int:
        """How many classes it has rows for."""
        name, rows = next(iter(class_rows(self.state, self.softmax).items()))
        return rows.classes(self.state[name])

    @property
    def rows(self) -> int:
        """How many rows its class head has, with one of no object."""
        return self.count + next(iter(class_rows(self.state, self.softmax).values())).spare

    def twin(self, backbone: str) -> str:
        """The ResNet that it says it has, where that is the other one of a backbone's shape; else ""."""
        stated = self.experiment.backbone.name if self.experiment else getattr(self.arguments, "backbone", "")
        msra = stated in MSRA if stated in TWINS else self.resnet.msra if self.resnet else None
        return "" if msra is None or msra == (backbone in MSRA) else TWINS.get(backbone, "")

    def state_on(self, backbone: str) -> dict[str, Tensor]:
        """The tensors for a model on one of our backbones: those of a ResNet of detectron2's read red first.

        Raises ValueError where they are those of another one of the same shape.
        """
        if twin := self.twin(backbone):
            raise ValueError(
                f"{self.path} is on {twin}, whose tensors are of the same names and sizes as those of {backbone}, but "
                f"whose strides and pixels are others: use --backbone.name {twin}"
            )
        if self.resnet is None:
            return self.state
        if self.resnet.msra is None:
            _log.warning(
                "%s does not say whether its ResNet is MSRA's, as detectron2 mostly has it, or torchvision's: taken "
                "for %s, %s first",
                self.path,
                backbone,
                "blue" if self.resnet.turned(backbone in MSRA) else "red",
            )
        return for_network(self.state, self.resnet, backbone in MSRA, self.path)

    @property
    def softmax(self) -> bool:
        """Whether the last class row stands for no object."""
        if self.experiment is not None:
            return self.experiment.loss.classification == "softmax"
        return not any(name.startswith("decoder.priors.") for name in self.state)

    @property
    def known_as(self) -> tuple[Category, ...]:
        """COCO's classes where the number of class rows is that of the published heads and nothing else names them."""
        if self.classes is not None or self.names:
            return ()
        if self.layout == "detectron2" or self.anchors:
            return COCO if self.count == len(COCO) else ()
        return COCO if self.rows in COCO_ROWS else PANOPTIC if self.rows == PANOPTIC_ROWS and self.panoptic else ()

    def row_classes(self) -> tuple[Category, ...]:
        """One class per row: the file's own, config.json's, COCO's by id or in their order, or "class N"."""
        if self.classes is not None:
            return self.classes
        if self.known_as:
            return rows_by_id(self.count, self.known_as) if self.rows_by_id else self.known_as
        return tuple(Category(row, self.names.get(row, f"class {row}")) for row in range(self.count))

    @property
    def rows_by_id(self) -> bool:
        """Whether its class rows stand, or may stand, at their category ids: not where it says which they are."""
        return self.classes is None and self.layout != "detectron2" and not self.anchors

    def taken_for(self) -> str:
        """What the classes of a file without a class list are taken for, in words."""
        if not self.rows_by_id:
            return f"{self.count} classes, " + (
                "COCO's in the order of their ids" if self.known_as else 'without names: "class 0", "class 1", ...'
            )
        if self.known_as:
            return f"{self.rows} class rows by {'panoptic ' if self.known_as is PANOPTIC else ''}COCO id"
        where = "as its config.json names them" if self.names else 'without names: "class 0", "class 1", ...'
        return f"{self.rows} class rows {where}"


def read_detector(path: Path, which: Which = "auto", option: str = "--weights") -> DetectorFile:
    """Read a detector and check everything that does not depend on the model it is for.

    which: of averaged and raw weights; option: the setting that chooses. Raises ValueError, naming the file, for what
    is no detector's weights, is another detector, or says of itself what cannot be.
    """
    checkpoint = load_weights(path)
    try:
        found = find_weights(checkpoint, which)
        inside, state, layout = detector_weights(found, which)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_sound(state, path)
    for name, dims in _NEEDED[anchor_kind(state)].items():
        if name not in state or state[name].dim() != dims or not len(state[name]):
            shape = list(state[name].shape) if name in state else "missing"
            raise ValueError(f"{path} is not a whole detector: {name} is {shape}. Use another copy")
    for remark in inside.remarks(path, option):
        _log.warning("%s", remark)
    ours = layout in ("ours", "detectron2")
    experiment, classes, step = _own(path, checkpoint, state) if ours else (None, None, 0)
    folder = path if path.is_dir() else path.parent
    names, arguments = _model_config(folder / "config.json")
    sizes = _image_sizes(folder / PROCESSOR) if arguments else {}
    stored = checkpoint.get("args")
    if isinstance(stored, argparse.Namespace):
        arguments = stored
    elif isinstance(stored, Mapping):
        # As exports here hold them: a Namespace is not loaded by torch as it is.
        arguments = argparse.Namespace(**{str(name): value for name, value in stored.items()})
    panoptic = inside.masks or getattr(arguments, "dataset_file", "") == "coco_panoptic"
    of = DetectorFile(path, state, layout, experiment, classes, names, arguments, step, sizes, panoptic, inside.resnet)
    if of.count < 1:
        raise ValueError(f"{path} is not a whole detector: its tensors have no rows of classes. Use another copy")
    return of


def _own(
    path: Path, checkpoint: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[DetectionExperiment | None, tuple[Category, ...] | None, int]:
    """What a checkpoint of this program says of itself: experiment, classes and step; None, None, 0 where it does not.

    Raises ValueError, naming the file, for what it cannot be.
    """
    experiment = None
    if "experiment" in checkpoint:
        experiment = detection(from_file(checkpoint["experiment"], f"{path}: its experiment"))
    classes = _classes(path, checkpoint["classes"]) if "classes" in checkpoint else None
    softmax = (False, True) if experiment is None else (experiment.loss.classification == "softmax",)
    counts = []
    for each in softmax:
        name, rows = next(iter(class_rows(state, each).items()))
        counts.append(rows.classes(state[name]))
    if classes is not None and len(classes) not in counts:
        raise ValueError(f"{path}: rows of {counts[0]} classes do not belong to its {len(classes)}. Use another copy")
    step = checkpoint.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"{path}: its step is {step!r}, not a number of steps. Use another copy")
    return experiment, classes, step


def _classes(path: Path, values: Any) -> tuple[Category, ...]:
    pairs = values if isinstance(values, (list, tuple)) else ()
    classes = tuple(
        Category(pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, (list, tuple))
        and len(pair) == 2
        and isinstance(pair[0], int)
        and not isinstance(pair[0], bool)
        and isinstance(pair[1], str)
    )
    if not classes or len(classes) != len(pairs) or len({c.id for c in classes}) != len(classes):
        raise ValueError(f"{path}: its class list must be pairs of an id, each once, and a name. Use another copy")
    return classes


def _model_config(path: Path) -> tuple[dict[int, str], argparse.Namespace | None]:
    """What a config.json of Hugging Face says: class names by row, and the model's settings; None for any other.

    Raises ValueError for a model that cannot be loaded here.
    """
    config = read_json(path, Schema) if path.is_file() else {}
    if "model_type" not in config:
        return {}, None
    kind = config["model_type"]
    if kind not in _KINDS:
        raise ValueError(f"{path} is of model_type {kind!r}: of Hugging Face's, {' and '.join(_KINDS)} can be loaded")
    if wrong := mistakes(config, ModelConfig):
        raise ValueError(f"{path}: {wrong}. Download it again")
    heads = config.get("encoder_attention_heads", 8)
    if config.get("decoder_attention_heads", heads) != heads or config.get("activation_function", "relu") != "relu":
        raise ValueError(f"{path}: a DETR with other heads in its decoder, or another activation, cannot be loaded")
    if config.get("auxiliary_loss"):
        raise ValueError(
            f"{path}: with auxiliary_loss their decoder hands normalised features from layer to layer, unlike DETR, so "
            "that its weights would give other detections here"
        )
    names = {int(row): str(name) for row, name in (config.get("id2label") or {}).items()}
    stride = (config.get("backbone_config") or {}).get("output_stride")
    return names, argparse.Namespace(nheads=heads, dilation=bool(config.get("dilation")) or stride == 16)


def _image_sizes(path: Path) -> dict[str, Any]:
    """The settings of `data` that a preprocessor_config.json of Hugging Face stands for; none where there is no such.

    Raises ValueError for images that are not normalised as the published code does it.
    """
    values = read_json(path, Schema) if path.is_file() else {}
    for key, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        if values.get(key, list(usual)) != list(usual):
            raise ValueError(f"{path}: {key} is {values[key]!r}, and images are normalised here by {list(usual)} alone")
    size = values.get("size", {})
    # Older files have one number, and the limit beside it.
    size = size if isinstance(size, Mapping) else {"shortest_edge": size, "longest_edge": values.get("max_size", 1333)}
    height, shortest, longest = size.get("height"), size.get("shortest_edge"), size.get("longest_edge", 1333)
    if _pixels(height) and size.get("width") == height:
        return {"resize": "square", "eval_size": height}
    if _pixels(shortest) and _pixels(longest):
        return {"eval_size": shortest, "max_size": longest}
    if values:
        _log.warning("%s does not say a size that is known here, so images are resized as DETR's are", path)
    return {}


def _pixels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
