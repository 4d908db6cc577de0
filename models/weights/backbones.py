"""ImageNet weights, and any other file that has a backbone's weights in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..backbones.backbone import Backbone
from ..backbones.resnet import DEPTHS, MSRA, ResNetBackbone
from .detectron2_resnet import for_network
from .find import Which, check_sound
from .fit import listed, state_faults
from .match import Match, match

_log = logging.getLogger(__name__)

CONTAINER_SOURCE = "https://github.com/allenai/container (container_light, ImageNet-1k)"
MSRA_SOURCE = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-{}.pkl"
"""Where detectron2 has the weights of MSRA's ResNets; {}: the number of layers."""
TORCHVISION = "IMAGENET1K_V1"
"""Which of torchvision's weights a ResNet starts from."""
CHECK = "Check backbone.name and backbone.weights"
"""What to do about weights that do not fit, where settings name them."""
_OPTIONAL = ("num_batches_tracked",)
"""Frozen norms have none."""


def origin(name: str, weights: str) -> str:
    """What a backbone starts from, in words: of `imagenet`, which of the weights that were published.

    They differ in data (ImageNet-1k, or 22k before it) and recipe, by which a detector gains or loses points.
    """
    if weights != "imagenet":
        return weights
    if name.startswith("timm/"):
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        return f"imagenet (timm's {config.tag})" if config is not None and config.tag else weights
    return f"imagenet (torchvision's {TORCHVISION})" if name in DEPTHS else weights


def not_on_a_server(name: str) -> str:
    """Of ImageNet weights that no program can download, how to get a file with some; "" where one can."""
    if name in DEPTHS or name.startswith("timm/"):
        return ""
    if name == "container_light":
        return f"are not on a server that can be asked: download the checkpoint from {CONTAINER_SOURCE}"
    if name in MSRA:
        source = MSRA_SOURCE.format(name.removeprefix("resnet").removesuffix("_msra"))
        return f"are not among torchvision's: download detectron2's file of them from {source}"
    named = "" if name == "container" else f" --backbone.name {name}"
    return f"were never released: train some with `detr-container train container_in1k{named}`"


def load_imagenet(backbone: Backbone, name: str) -> None:
    """Load the published ImageNet weights of a ResNet; raises as `imagenet`."""
    state, source = imagenet(name)
    load_backbone(backbone, state, source)


def imagenet(name: str) -> tuple[Mapping[str, Any], str]:
    """The published ImageNet weights of a ResNet (torchvision's V1, downloaded once), its classifier with them.

    Returns them and their address. Raises ValueError, saying where the file is, when it cannot be downloaded; those of
    the CONTAINER family never can, and only CONTAINER-LIGHT's were released.
    """
    if name not in DEPTHS:
        raise ValueError(
            f"the ImageNet weights of {name} {not_on_a_server(name)} and pass its path as backbone.weights, or start "
            "from random weights with backbone.weights=none"
        )
    from torchvision.models import get_weight

    weights = get_weight(f"{name.replace('resnet', 'ResNet')}_Weights.{TORCHVISION}")
    try:
        return weights.get_state_dict(progress=False, check_hash=True), weights.url
    except OSError as error:
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): fetch {weights.url} elsewhere and pass "
            "its path as backbone.weights, or start from random weights with backbone.weights=none"
        ) from error


def load_backbone(backbone: Backbone, checkpoint: Mapping[str, Any], source: str, which: Which = "auto") -> list[str]:
    """Load a backbone's weights from a checkpoint: ours, a detector's, or published ones, see `match`.

    which: of averaged and raw weights. Returns the names that the file has and the backbone does not (its classifier).
    Raises ValueError, before anything is loaded, when a tensor of the backbone is missing or is another's.
    """
    matched = match(backbone.state_dict(), checkpoint, source, which)
    take(backbone, matched, source)
    return list(matched.rest)


def take(backbone: Backbone, matched: Match, source: str, remedy: str = CHECK) -> None:
    """Load what of a file is the backbone's; raises as `load_backbone`, with the remedy where it does not fit."""
    own, msra = backbone.state_dict(), isinstance(backbone, ResNetBackbone) and backbone.msra
    found = backbone.fitted(matched.found, source)
    if matched.resnet is not None:
        found = for_network(found, matched.resnet, msra, source)
    elif msra and not matched.start.endswith("body."):
        _log.warning(
            "%s has torchvision's names and does not say whose they are: right for MSRA's ResNet only if it was "
            "trained as one, with strides in the 1 x 1 convolutions and pixels of 0 .. 255",
            source,
        )
    faults = state_faults(own, found, _OPTIONAL)
    if faults:
        raise ValueError(f"{source} does not fit {type(backbone).__name__}: {listed(faults)}. {remedy}")
    check_sound(found, source)
    backbone.load_state_dict(found, strict=False)
