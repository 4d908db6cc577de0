"""Detectors under detectron2's names, both ways: DETR as its authors wrap it for detectron2, and detectron2's own.

DETR in that form reads red first (INPUT.FORMAT RGB) and has torchvision's weights, so that no colours change places. Of
its backbone the names are detectron2's where that has the network, a ResNet; below `network.` are those of any other of
ours, as `D2Backbone` has it. detectron2's own detectors lie below `model.` in ours, see `AnchorDetector`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .detectron2_resnet import ResnetFile, as_torchvision, resnet_rules
from .layouts import PUBLISHED, Rules, rename, reverse

_DETR = "detr."
META_ARCH = "detector."
"""What stands before our names where detectron2 trains our DETR or SMCA-DETR."""
_WRAPPED = "backbone.0.backbone."
_RESNET: Rules = resnet_rules("backbone.body.", _WRAPPED)
_NETWORK: Rules = [("backbone.{rest}", f"{_WRAPPED}network.{{rest}}")]
_BOTTOM_UP = "backbone.bottom_up."
_BODY = f"{_BOTTOM_UP}network.body."
OWN = "model."
"""What stands before detectron2's names in ours."""
CLASS_SCORES = {"retinanet": "head.cls_score.weight", "mask_rcnn": "roi_heads.box_predictor.cls_score.weight"}
"""By `HeadConfig.kind`: the tensor that every file of such a detector has."""
_WHOLE = {
    "retinanet": ("head.bbox_pred.weight", "head.bbox_subnet.0.weight"),
    "mask_rcnn": ("roi_heads.mask_head.predictor.weight", "proposal_generator.rpn_head.conv.weight"),
}
_OTHERS = re.compile(r"(^|\.)(ctrness|keypoint_head|sem_seg_head)\.")
"""Parts of other detectors that have all of these besides."""
# What follows from settings, and was kept with the weights in older versions.
_SETTLED = re.compile(r"(^|\.)(anchor_generator\.cell_anchors\.\d+|pixel_mean|pixel_std)")
TRAINING_ONLY = ("per_image",)
"""Of ours, and in no file of detectron2's: it changes no detection."""


def is_wrapped(names: Iterable[str]) -> bool:
    """Whether they are those of DETR in detectron2's form, without `detr.`."""
    return any(name.startswith(_WRAPPED) for name in names)


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DETR's or SMCA-DETR's tensors, without `detr.` before their names, under our names."""
    return rename(rename(state, reverse([*_RESNET, *_NETWORK])), reverse(PUBLISHED))


def to_detectron2(state: Mapping[str, Tensor], resnet: bool) -> dict[str, Tensor]:
    """Our detector's state dict in the form that detectron2 has of DETR. resnet: detectron2 has its backbone."""
    named = rename(rename(state, _RESNET if resnet else _NETWORK), PUBLISHED)
    return {_DETR + name: value for name, value in named.items()}


def in_meta_arch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of our own meta-architectures; what is not in that form, as it is."""
    wrapped = {name.removeprefix(_DETR): value for name, value in state.items() if name.startswith(_DETR)}
    rest = {name: value for name, value in state.items() if not name.startswith(_DETR)}
    return rest | {META_ARCH + name: value for name, value in from_detectron2(wrapped).items()}


def anchor_kind(names: Iterable[str]) -> str:
    """The `HeadConfig.kind` of one of detectron2's own detectors, under its names or ours; "" where it is none."""
    plain = {name.removeprefix(OWN) for name in names}
    if any(map(_OTHERS.search, plain)):
        return ""
    return next((kind for kind, name in CLASS_SCORES.items() if {name, *_WHOLE[kind]} <= plain), "")


def from_anchors(state: Mapping[str, Tensor], author: str) -> tuple[dict[str, Tensor], ResnetFile | None]:
    """One of detectron2's own detectors under our names, and what the file says of a ResNet of detectron2's in it.

    author: its `__author__`. Such a ResNet's colours stay as they are: `for_network` turns them.
    """
    kept, resnet = as_torchvision(state, author)
    kept = {name: value for name, value in kept.items() if not _SETTLED.search(name)}
    if resnet is not None:
        kept = {_BODY + name.removeprefix(_BOTTOM_UP) if _of_resnet(name) else name: kept[name] for name in kept}
    return {OWN + name: value for name, value in kept.items()}, resnet


def to_anchors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of one of detectron2's own detectors under its names: what its checkpoints have as `model`."""
    return {name.removeprefix(OWN): value for name, value in state.items() if name.startswith(OWN)}


def _of_resnet(name: str) -> bool:
    return name.startswith(_BOTTOM_UP) and not name.startswith((f"{_BOTTOM_UP}network.", f"{_BOTTOM_UP}norms."))
