"""Backbones from their settings, for every task that has one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from detr_container.config.backbones import BackboneConfig
from detr_container.models.backbones.backbone import Backbone, maps_up_to
from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.backbones.plain import PLAIN, PlainBackbone
from detr_container.models.backbones.resnet import DEPTHS, MSRA, NARROW, TWINS, ResNetBackbone, strides_of
from detr_container.models.backbones.timm_backbone import TimmBackbone
from detr_container.models.layers.sync_norm import several_processes, share_norms
from detr_container.models.weights.backbones import load_backbone, load_imagenet

from .weight_files import load_weights, of_backbone

_log = logging.getLogger(__name__)

OWN = (*DEPTHS, *MSRA, *NARROW, *SIZES, *PLAIN)
"""The names of our own backbones."""

DENSE_LIMIT = 1_000_000_000
"""Numbers in dense affinities above which they are refused: with gradients and AdamW's moments 16 GB."""

M = TypeVar("M", bound=nn.Module)


def known(name: str) -> None:
    """Raise ValueError for a name that is none of our own backbones'."""
    if name not in OWN:
        raise ValueError(
            f"there is no backbone {name!r}: backbone.name is one of {', '.join(OWN)}, "
            "or timm/ and the name of a timm model (`detr-container backbones` lists them)"
        )


def plain_side(config: BackboneConfig, canvas: int = 0) -> int:
    """The side in pixels that a plain network's affinities are built for, 0 for other networks; canvas: see below."""
    size = PLAIN.get(config.name)
    return size.built_side(canvas, config.dense == "interpolate") if size else 0


def check_dense(config: BackboneConfig, canvas: int, smaller: str) -> tuple[int, int]:
    """The side in pixels that dense affinities are built for, and how many numbers they are; 0 where there are none.

    smaller: the settings of smaller images, with {side} for the usual one.
    Raises ValueError for more numbers than a weight can be expected to hold.
    """
    side = plain_side(config, canvas)
    numbers = PLAIN[config.name].static(side) if side else 0
    if numbers > DENSE_LIMIT:
        raise ValueError(
            f"{config.name} for images of {side} x {side} pixels has {numbers / 1e9:.1f} billion numbers in its dense "
            f"affinities: use smaller images, as with {smaller.format(side=PLAIN[config.name].side)}, or interpolate "
            "affinities of that size with --backbone.dense interpolate"
        )
    return side, numbers


def build_backbone(config: BackboneConfig, weights: bool = True, canvas: int = 0) -> Backbone:
    """A backbone with its norms and frozen stages; weights: False leaves it random whatever `config.weights` says.

    canvas: the longest side in pixels that an image can have, for models that take only one size.
    """
    pretrained = weights and config.weights == "imagenet"
    backbone = _bare(config, pretrained, canvas)
    if pretrained and not config.name.startswith("timm/"):
        load_imagenet(backbone, config.name)
    elif weights and config.weights not in ("imagenet", "none"):
        with weights_of(config) as content:
            load_backbone(backbone, content, config.weights, config.file_weights)
    if config.norm == "sync":
        if weights:
            warn_of_no_norms(backbone, config)
        share_norms(backbone)
    return backbone.freeze(config.frozen_stages)


def warn_of_no_norms(model: nn.Module, config: BackboneConfig) -> None:
    """Say that `backbone.norm` does nothing to a network without BatchNorm, as transformers are."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        _log.warning("backbone.norm=%s has no effect on %s, which has no BatchNorm", config.norm, config.name)


@contextmanager
def weights_of(config: BackboneConfig) -> Iterator[dict[str, Any]]:
    """What is in the file, or the newest checkpoint of the run, that the settings name. Raises OSError, ValueError.

    A ValueError that is raised within, for weights that do not fit, names the network that a checkpoint is of.
    """
    content = load_weights(of_backbone(config.weights))
    if _stated_network(content) == TWINS.get(config.name, "none"):
        raise ValueError(
            f"backbone.weights={config.weights} is of backbone.name={TWINS[config.name]}, whose tensors are of the "
            f"same names and sizes as those of {config.name}, but whose strides and pixels are others: use that"
        )
    try:
        yield content
    except ValueError as error:
        stated = _stated_network(content)
        if stated in ("", config.name):
            raise
        raise ValueError(f"{error}: it is of backbone.name={stated}, not of {config.name}") from error


def _stated_network(content: Mapping[str, Any]) -> str:
    """The backbone of the run that a checkpoint is of; "" where it says none."""
    experiment = content.get("experiment")
    backbone = experiment.get("backbone") if isinstance(experiment, dict) else None
    name = backbone.get("name") if isinstance(backbone, dict) else None
    return name if isinstance(name, str) else ""


def _bare(config: BackboneConfig, pretrained: bool, canvas: int) -> Backbone:
    """A backbone with random weights, or timm's; see `build_backbone`."""
    name, frozen_norm = config.name, config.norm == "frozen"
    if name.startswith("timm/"):
        timm = name.removeprefix("timm/")
        return TimmBackbone(timm, config.stage, config.stride, pretrained, frozen_norm, config.drop_path, canvas)
    known(name)
    if name in PLAIN:
        # It has one map; another that is asked for is refused.
        maps_up_to(name, (PLAIN[name].patch,), config.stage, config.stride)
        return PlainBackbone(name, plain_side(config, canvas), config.dense == "interpolate", config.drop_path)
    if name in SIZES:
        outputs = maps_up_to(name, SIZES[name].strides, config.stage, config.stride)
        return Container(SIZES[name], outputs, frozen_norm, config.drop_path)
    outputs = maps_up_to(name, strides_of(name, config.dilation), config.stage, config.stride)
    return ResNetBackbone(name, outputs, config.dilation, frozen_norm)


def why_eager(config: BackboneConfig) -> str:
    """Why steps with such a backbone cannot be recorded as CUDA graphs here, in words; empty where they can be."""
    # Sums over processes within a forward pass.
    shared = config.norm == "sync" and several_processes()
    return "backbone.norm=sync shares batch statistics between processes" if shared else ""


def lay_out(model: M, layout: torch.memory_format) -> M:
    """Let a model's tensors of four dimensions lie in memory as its feature maps do. Returns the model."""
    # Not `model.to`: it would ask the same of a convolution in three dimensions, which has no such layout.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)
    return model
