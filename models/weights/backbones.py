"""ImageNet weights, and any other file that has a backbone's weights in it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..backbones.backbone import Backbone
from ..backbones.resnet import DEPTHS
from .find import Which, check_sound, find_weights
from .fit import listed, state_faults
from .layouts import from_container, from_published

CONTAINER_SOURCE = "https://github.com/allenai/container (container_light, ImageNet-1k)"
TORCHVISION = "IMAGENET1K_V1"
"""Which of torchvision's weights a ResNet starts from."""

_log = logging.getLogger(__name__)


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
    named = "" if name == "container" else f" --backbone.name {name}"
    return f"were never released: train some with `detr-container train container_in1k{named}`"


def load_imagenet(backbone: Backbone, name: str) -> None:
    """Load the published ImageNet weights of a ResNet (torchvision's V1, downloaded once).

    Raises ValueError, saying where the file is, when it cannot be downloaded; those of the
    CONTAINER family never can, and only CONTAINER-LIGHT's were released.
    """
    if name not in DEPTHS:
        raise ValueError(
            f"the ImageNet weights of {name} {not_on_a_server(name)} and pass its path as backbone.weights, or start "
            "from random weights with backbone.weights=none"
        )
    from torchvision.models import get_weight

    weights = get_weight(f"{name.replace('resnet', 'ResNet')}_Weights.{TORCHVISION}")
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): fetch {weights.url} elsewhere and pass "
            "its path as backbone.weights, or start from random weights with backbone.weights=none"
        ) from error
    load_backbone(backbone, state, weights.url)


def load_backbone(backbone: Backbone, checkpoint: Mapping[str, Any], source: str, which: Which = "auto") -> list[str]:
    """Load a backbone's weights from a checkpoint: torchvision's, CONTAINER-LIGHT's, timm's, a detector's or ours.

    which: of averaged and raw weights. Returns the names that the file has and the backbone does not (its classifier).
    Raises ValueError, before anything is loaded, when a tensor of the backbone is missing or is another's.
    """
    try:
        kept = find_weights(checkpoint, which)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    for remark in kept.remarks(source, "backbone.file_weights"):
        _log.warning("%s", remark)
    state = kept.state
    first = next((name for name in state if f".{name}".split(".patch_embed1.")[0] != f".{name}"), None)
    if first is not None:
        start = f".{first}".split(".patch_embed1.")[0].removeprefix(".")
        start = f"{start}." if start else ""
        if not start.endswith("backbone.0.body."):
            state = from_container({name.removeprefix(start): value for name, value in state.items()})
        else:
            state = from_published(state)
    own = backbone.state_dict()
    # Files of a body alone leave out `body.`, and anything may stand before the names.
    ends = {name.removeprefix("body."): name for name in own}
    starts = Counter(
        name[: len(name) - len(end)]
        for name in state
        for end in _endings(name)
        if end in ends and f"{name[: len(name) - len(end)]}" != "body"
    )
    best = max(starts, key=lambda start: (starts[start], -len(start)), default="")
    places = {
        ends.get(name.removeprefix(best), f"!{name}") if name.startswith(best) else f"!{name}": name for name in state
    }
    found = backbone.fitted({place: state[name] for place, name in places.items() if place in own}, source)
    faults = state_faults(own, found, optional=("num_batches_tracked",))
    if faults:
        raise ValueError(
            f"{source} does not fit {type(backbone).__name__}: {listed(faults)}. "
            "Check backbone.name and backbone.weights"
        )
    check_sound(found, source)
    backbone.load_state_dict(found, strict=False)
    return [name for place, name in places.items() if place not in own]


def _endings(name: str) -> Iterator[str]:
    """The name, and whatever is left of it after one dot or more."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))
