"""RetinaNet and Mask R-CNN, built by detectron2, as detectors of our engine.

Images come padded and as uint8, and are normalised as for every detector here; from there on everything is computed by
detectron2's own modules. The weights lie under `model.` and detectron2's names.

Shapes: B images, H x W their padded size, n objects or detections of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detr_container.config.detection import PyramidConfig
from detr_container.datasets.batch import Targets
from detr_container.datasets.transforms import has_area
from detr_container.models.backbones.backbone import Backbone
from detr_container.models.boxes import cxcywh_to_xyxy
from detr_container.models.detector import Detector
from detr_container.models.found import Found

from .backbones import D2Backbone, pyramid_strides
from .heads import FINEST, NODES
from .losses import LOSSES
from .raster_masks import RasterMasks
from .retinanet import INITIAL, MOMENTUM, StepRetinaNet
from .workarounds import scripts_are_optimised_after_some_calls

_PREDICTORS = ("cls_score", "bbox_pred", "objectness_logits", "anchor_deltas", "predictor")


class AnchorDetector(Detector):
    """A model of detectron2's on a backbone of ours.

    per_image: the running mean of positive anchors that RetinaNet's losses are divided by; see `StepRetinaNet`.
    """

    per_image: Tensor

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__(_network_of(model))
        self.model, self.kind = model, kind
        self.losses = LOSSES[kind]
        self.strides = tuple(shape.stride for shape in model.backbone.output_shape().values())
        if kind == "retinanet":
            self.register_buffer("per_image", torch.tensor(INITIAL))

    # Not an attribute, as in other detectors: it would stand in the state dict twice.
    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """Ours, below detectron2's feature pyramid."""
        return _network_of(self.model)

    @property
    def size_multiple(self) -> int:
        """Of the backbone, and of the deepest map below the pyramid, so that its levels fit on each other."""
        return math.lcm(self.backbone.size_multiple, self.backbone.strides[-1])

    def own_precision(self) -> list[nn.Module]:
        """What predicts boxes and classes computes in float32."""
        return [module for module in self.modules() if isinstance(module, _Float32)]

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        padded: bool = True,
        targets: Targets | None = None,
        threshold: float | None = None,
    ) -> list[Found] | dict[str, Tensor]:
        """Detect objects: what was found in each image; in training, the losses by our names, for `targets`.

        images: [B, 3, H, W] uint8, or float32 already normalised, padded at the bottom and the right; sizes: [B, 2]
        int64 true (height, width); padded: False promises that no image is padded; threshold: another than the
        settings' `score_threshold`: with 0 as many are found as may be, whatever the weights.
        """
        pixels = self.normalise(images, sizes, padded)
        shapes = [(height, width) for height, width in sizes.tolist()]
        if targets is None:
            with self._thresholded(threshold):
                return [_found(each) for each in self._detect(ImageList(pixels, shapes))]
        # detectron2 counts what it samples into whatever storage is active, and fails where none is.
        with EventStorage(), scripts_are_optimised_after_some_calls():
            found = self._losses(ImageList(pixels, shapes), _objects(targets, shapes))
        return {ours: found[theirs] for ours, theirs in self.losses.items()}

    def _losses(self, images: ImageList, objects: list[Instances]) -> dict[str, Tensor]:
        model: Any = self.model
        features = model.backbone(images.tensor)
        if self.kind == "retinanet":
            model.begin(self.per_image, len(objects))
            maps = [features[name] for name in model.head_in_features]
            losses: dict[str, Tensor] = model.forward_training(images, maps, model.head(maps), objects)
            return losses
        proposals, first = model.proposal_generator(images, features, objects)
        _, second = model.roi_heads(images, features, proposals, objects)
        return {**first, **second}

    def _detect(self, images: ImageList) -> list[Instances]:
        model: Any = self.model
        features = model.backbone(images.tensor)
        if self.kind == "retinanet":
            maps = [features[name] for name in model.head_in_features]
            found: list[Instances] = model.forward_inference(images, maps, model.head(maps))
            return found
        proposals, _ = model.proposal_generator(images, features, None)
        return list(model.roi_heads(images, features, proposals, None)[0])

    @contextmanager
    def _thresholded(self, threshold: float | None) -> Iterator[None]:
        """With another threshold of scores, where there is one."""
        model: Any = self.model
        holder = model if self.kind == "retinanet" else model.roi_heads.box_predictor
        before = holder.test_score_thresh
        holder.test_score_thresh = before if threshold is None else threshold
        try:
            yield
        finally:
            holder.test_score_thresh = before

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the running mean by what the step's images had, on all processes together."""
        if not isinstance(self.model, StepRetinaNet):
            return
        taken = self.model.take().to(self.per_image.device, torch.float32)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(taken)
        self.per_image.lerp_(taken[0] / taken[1], 1 - MOMENTUM)


def build(kind: str, backbone: Backbone, classes: int, settings: PyramidConfig, seed: int) -> AnchorDetector:
    """A detector of `HeadConfig.kind` on a backbone, for a number of classes.

    The seed alone decides the heads' first weights, whatever the backbone. Raises ValueError for a backbone whose maps
    make no feature pyramid.
    """
    strides = pyramid_strides(backbone, FINEST[kind])
    bottom_up = D2Backbone(backbone.at_strides(*strides), settings.map_norm)
    node = NODES[kind](L(lambda: bottom_up)(), classes, strides, backbone.mean, backbone.std, settings)
    if kind == "retinanet":
        node["_target_"] = StepRetinaNet
    model: Any = instantiate(node)
    for name in ("head", "proposal_generator", "roi_heads"):
        if name in node:
            # Once more, each from the same seed: the pyramid's weights were drawn before, as many as the backbone's
            # maps have channels.
            torch.manual_seed(seed)
            model.get_submodule(name).load_state_dict(instantiate(node[name]).state_dict())
    _predict_in_float32(model)
    return AnchorDetector(model, kind)


def _network_of(model: Any) -> Backbone:
    network: Backbone = model.backbone.bottom_up.network
    return network


def _objects(targets: Targets, sizes: Sequence[tuple[int, int]]) -> list[Instances]:
    """The objects of a batch as detectron2 has them."""
    found = []
    for place, ((height, width), count) in enumerate(zip(sizes, targets.counts, strict=True)):
        one = Instances((height, width))
        scale = targets.boxes.new_tensor([width, height, width, height])
        boxes = cxcywh_to_xyxy(targets.boxes[place, :count]) * scale
        one.gt_boxes, one.gt_classes = Boxes(boxes), targets.labels[place, :count]
        if targets.masks is not None:
            one.gt_masks = RasterMasks(targets.masks[place, :count], boxes)
        found.append(one)
    return found


def _found(instances: Instances) -> Found:
    """What detectron2 has found: boxes in [0, 1], cut at the image's edges, and none that have no area."""
    height, width = instances.image_size
    boxes = instances.pred_boxes.tensor.float()
    boxes = (boxes / boxes.new_tensor([width, height, width, height])).clamp(0, 1)
    kept = has_area(boxes)
    masks = instances.pred_masks[kept, 0].float() if instances.has("pred_masks") else None
    return Found(instances.scores[kept].float(), instances.pred_classes[kept], boxes[kept], masks)


class _Float32(nn.Module):
    """A layer that computes in float32 whatever surrounds it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class _Conv2d(_Float32, nn.Conv2d):
    pass


class _Linear(_Float32, nn.Linear):
    pass


def _predict_in_float32(model: nn.Module) -> None:
    """Let the layers that predict boxes, classes and masks compute in float32."""
    for module in list(model.modules()):
        for name in _PREDICTORS:
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.__class__ = _Conv2d if isinstance(layer, nn.Conv2d) else _Linear
