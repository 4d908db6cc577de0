"""DETR and SMCA-DETR as detectron2's meta-architectures: its inputs and outputs around our detectors and losses.

Shapes: B images, T slots for the objects of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DataConfig, DetectionExperiment, HeadConfig, LossConfig
from detr_container.config.settings import validate
from detr_container.datasets.batch import Batch, Sample, Targets, collate
from detr_container.datasets.padding import Padding
from detr_container.datasets.transforms import normalise_boxes
from detr_container.models.criterion import diagnostics
from detr_container.models.detector import Output
from detr_container.models.device import to_device
from detr_container.models.matcher import NonFiniteOutputError
from detr_container.models.postprocess import postprocess
from detr_container.models.weights.detectron2 import in_meta_arch
from detr_container.tasks.detection.build import build_criterion, build_detector, build_matcher

from .settings import backbone_config, check_input, head_config, loss_config

_log = logging.getLogger(__name__)


class QueryMetaArch(nn.Module):
    """One of our detectors with queries, its matcher and its criterion, as detectron2 calls a model.

    From yacs: `build_model(cfg)`; from LazyConfig: with the arguments below.
    """

    kind: ClassVar[Literal["detr", "smca"]]

    @configurable
    def __init__(
        self,
        *,
        backbone: BackboneConfig,
        head: HeadConfig,
        loss: LossConfig,
        num_classes: int = 80,
        input_format: str = "RGB",
        longest_side: int = 1333,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ) -> None:
        """input_format: the order of channels of the images, RGB or BGR.

        head: its `kind` is this class's. longest_side: of images in pixels, for backbones that take one size only.
        pixel_mean, pixel_std: None, or what the backbone's must be, see `check_input`. Random weights follow from
        torch's global generator. Raises ValueError for settings that contradict each other.
        """
        super().__init__()
        if head.kind not in (self.kind, HeadConfig().kind):
            raise ValueError(f"head.kind={head.kind}: {type(self).__name__} is {self.kind}; leave head.kind out")
        experiment = DetectionExperiment(
            backbone=backbone,
            head=replace(head, kind=self.kind),
            loss=loss,
            data=DataConfig(max_size=longest_side),
            seed=int(torch.randint(2**31, ())),
        )
        for warning in validate(experiment):
            _log.warning("%s", warning)
        if self.kind == "smca" and loss.classification != "focal":
            _log.warning(
                "SMCA-DETR was published with focal loss, 300 queries and a class weight and cost of 2: set "
                "loss.classification=focal, loss.class_weight=2, loss.cost_class=2, head.queries=300 "
                "(MODEL.DETR_CONTAINER.LOSS.CLASSIFICATION, ...)"
            )
        self.detector = build_detector(experiment, num_classes)
        network = self.detector.backbone
        check_input(input_format, network.mean, network.std, pixel_mean, pixel_std)
        self.matcher, self.criterion = build_matcher(experiment), build_criterion(experiment)
        self.num_classes, self.input_format, self.queries = num_classes, input_format, head.queries

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that yacs settings stand for; see `settings.py`."""
        return {
            "backbone": backbone_config(cfg),
            "head": head_config(cfg),
            "loss": loss_config(cfg),
            "num_classes": cfg.MODEL.DETR_CONTAINER.NUM_CLASSES,
            "input_format": cfg.INPUT.FORMAT,
            "longest_side": max(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """See `Module`; also of weights in the form that DETR's authors have for detectron2, as `export` writes it."""
        named = in_meta_arch(state_dict)
        own = self.state_dict()
        for name in [each for each in named if not strict and each in own and own[each].shape != named[each].shape]:
            # As detectron2's checkpointer does where the names are the model's.
            _log.warning("%s is %s, not %s: not loaded", name, *map(list, (named.pop(name).shape, own[name].shape)))
        return super().load_state_dict(named, strict, assign)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.detector.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Losses in training; else what was found in each image.

        batched_inputs: of each image `image`, [3, h, w] of 0 to 255, channels in `input_format`; in training its
        `instances`; else `height` and `width`, to which boxes are scaled (default: the image's).
        Returns in training loss_class, loss_l1 and loss_giou, weighted, of all decoder layers, which add up to the
        criterion's total; else [{"instances": Instances}] with pred_boxes, scores and pred_classes of every query, the
        surest first. Raises ValueError for inputs that do not fit, FloatingPointError when something is not finite.
        """
        batch = self._batch(batched_inputs)
        output: Output = self.detector(batch.images, batch.sizes, batch.padded)
        with torch.autocast(self.device.type, enabled=False):
            if self.training:
                return self._losses(output, batch.targets)
            return self._found(output, batch)

    def _batch(self, inputs: Sequence[Mapping[str, Any]]) -> Batch:
        samples = [self._sample(each) for each in inputs]
        return collate(samples, Padding(self.detector.size_multiple)).to(self.device)

    def _sample(self, given: Mapping[str, Any]) -> Sample:
        image: Tensor = given["image"]
        if image.is_floating_point():
            # As `DefaultPredictor` has them, which are whole numbers all the same.
            image = image.round().clamp(0, 255).to(torch.uint8)
        if self.input_format == "BGR":
            image = image.flip(0)
        size = (image.shape[1], image.shape[2])
        boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        if self.training:
            if "instances" not in given:
                raise ValueError("an image without `instances` in training: call model.eval() to detect objects")
            boxes, labels = self._objects(given["instances"], size)
        shown = (int(given.get("height", size[0])), int(given.get("width", size[1])))
        return Sample(image, boxes, labels, 0, shown)

    def _objects(self, instances: Instances, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes [n, 4] cxcywh in [0, 1] and labels [n] of an image's objects."""
        labels = instances.gt_classes.cpu()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"an object of class {int(labels.max())}, counted from 0, and the model has {self.num_classes}: set "
                "num_classes (MODEL.DETR_CONTAINER.NUM_CLASSES) to the data set's number of classes"
            )
        return normalise_boxes(instances.gt_boxes.tensor.cpu().float(), size), labels

    def _losses(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        try:
            matches = self.matcher(output, targets)
        except NonFiniteOutputError as error:
            raise FloatingPointError(
                f"{error}: nothing was changed since the last checkpoint; a lower learning rate, or float32 instead of "
                "mixed precision, usually helps"
            ) from error
        divisors, scale = self._divisors(targets.counts)
        losses = self.criterion.of_layers(output, targets, matches, divisors)
        if has_event_storage():
            softmax = self.criterion.classification == "softmax"
            for name, value in diagnostics(output, targets, matches, softmax).items():
                get_event_storage().put_scalar(name, value)
        weights = self.criterion.weights
        return {f"loss_{name}": scale * weights[name] * loss.sum() for name, loss in losses.items()}

    def _divisors(self, counts: Sequence[int]) -> tuple[Tensor, int]:
        """What losses are divided by, as `Criterion.of_step` has it for all processes, and what they are times by.

        The criterion's losses add up over processes, and DistributedDataParallel takes the mean of their gradients.
        """
        mine, world = self.criterion.normalisers(counts, self.queries), comm.get_world_size()
        whole = to_device(mine, self.device, torch.float32)
        if world > 1:
            torch.distributed.all_reduce(whole)
        return self.criterion.of_step([mine], whole, world)[0], world

    def _found(self, output: Output, batch: Batch) -> list[dict[str, Instances]]:
        ranked = postprocess(output, batch.original_sizes, self.criterion.classification)
        return [
            {
                "instances": Instances(
                    size,
                    pred_boxes=Boxes(ranked.boxes[index]),
                    scores=ranked.scores[index],
                    pred_classes=ranked.labels[index],
                )
            }
            for index, size in enumerate(batch.original_sizes)
        ]


@META_ARCH_REGISTRY.register()
class DETR(QueryMetaArch):
    """DETR (Carion et al. 2020)."""

    kind = "detr"


@META_ARCH_REGISTRY.register()
class SMCADETR(QueryMetaArch):
    """Single-scale SMCA-DETR (Gao et al. 2021)."""

    kind = "smca"
