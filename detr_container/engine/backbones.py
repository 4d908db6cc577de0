"""Backbones from their settings, for every task that has one."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from detr_container.config.backbones import BackboneConfig
from detr_container.models.backbones.backbone import Backbone, maps_up_to
from detr_container.models.backbones.container import SIZES, ContainerLight
from detr_container.models.backbones.resnet import DEPTHS, DILATED, STRIDES, ResNetBackbone
from detr_container.models.backbones.timm_backbone import TimmBackbone
from detr_container.models.weights.backbones import load_backbone, load_imagenet

from .weight_files import load_weights

M = TypeVar("M", bound=nn.Module)


def known(name: str) -> None:
    """Raise ValueError for a name that is none of our own backbones'."""
    if name not in (*DEPTHS, *SIZES):
        raise ValueError(
            f"there is no backbone {name!r}: backbone.name is one of {', '.join([*DEPTHS, *SIZES])}, "
            "or timm/ and the name of a timm model (`detr-container backbones` lists them)"
        )


def build_backbone(config: BackboneConfig, weights: bool = True, canvas: int = 0) -> Backbone:
    """A backbone with its norms and frozen stages; weights: False leaves it random whatever `config.weights` says.

    canvas: the longest side in pixels that an image can have, for models that take only one size.
    """
    frozen_norm = config.norm == "frozen"
    pretrained = weights and config.weights == "imagenet"
    if config.name.startswith("timm/"):
        backbone: Backbone = TimmBackbone(
            config.name.removeprefix("timm/"),
            config.stage,
            config.stride,
            pretrained,
            frozen_norm,
            config.drop_path,
            canvas,
        )
    elif config.name in DEPTHS:
        strides = DILATED if config.dilation else STRIDES
        outputs = maps_up_to(config.name, strides, config.stage, config.stride)
        backbone = ResNetBackbone(config.name, outputs, config.dilation, frozen_norm)
    else:
        known(config.name)
        size = SIZES[config.name]
        outputs = maps_up_to(config.name, size.strides, config.stage, config.stride)
        backbone = ContainerLight(size, outputs, frozen_norm, config.drop_path)
    if pretrained and not config.name.startswith("timm/"):
        load_imagenet(backbone, config.name)
    elif weights and config.weights not in ("imagenet", "none"):
        if not Path(config.weights).exists():
            raise FileNotFoundError(
                f"backbone.weights={config.weights}: neither `imagenet` nor `none`, nor a file that is there"
            )
        load_backbone(backbone, load_weights(Path(config.weights)), config.weights, config.file_weights)
    return backbone.freeze(config.frozen_stages)


def lay_out(model: M, layout: torch.memory_format) -> M:
    """Let a model's tensors of four dimensions lie in memory as its feature maps do. Returns the model."""
    # Not `model.to`: it would ask the same of a convolution in three dimensions, which has no such layout.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)
    return model
