"""Weights from elsewhere: ImageNet backbones, and detectors to fine-tune or to evaluate.

Whatever is loaded, the caller learns what was and what was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_weight

from .backbone import Backbone
from .container import ContainerLight
from .detector import Detector
from .layouts import from_container, from_hugging_face, from_published

CONTAINER_SOURCE = "https://github.com/allenai/container (container_light, ImageNet-1k)"
TORCHVISION = "IMAGENET1K_V1"
"""Which of torchvision's weights a ResNet starts from."""
# Rows of a class head, the only tensors that depend on the data set.
CLASS_ROWS = ("class_embed.weight", "class_embed.bias")


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
    return f"imagenet (torchvision's {TORCHVISION})" if name.startswith("resnet") else weights


def load_imagenet(backbone: Backbone, name: str) -> None:
    """Load the published ImageNet weights of a ResNet (torchvision's V1, downloaded once).

    Raises ValueError, saying where the file is, when it cannot be downloaded; CONTAINER-LIGHT's never can.
    """
    if isinstance(backbone, ContainerLight):
        raise ValueError(
            f"the weights of {name} are not on a server that can be asked: download the checkpoint from "
            f"{CONTAINER_SOURCE} and pass its path as backbone.weights, or start from random weights with "
            "backbone.weights=none"
        )
    weights = get_weight(f"{name.replace('resnet', 'ResNet')}_Weights.{TORCHVISION}")
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): fetch {weights.url} elsewhere and pass "
            "its path as backbone.weights, or start from random weights with backbone.weights=none"
        ) from error
    load_backbone(backbone, state, weights.url)


def load_backbone(backbone: Backbone, checkpoint: Mapping[str, Any], source: str) -> list[str]:
    """Load a backbone's weights from a classifier's checkpoint: torchvision's, CONTAINER-LIGHT's, timm's or ours.

    Returns the names that the file has and the backbone does not (its classifier). Raises ValueError when a tensor of
    the backbone is missing or has another shape.
    """
    state = weights_of(checkpoint)
    if any(name.startswith("patch_embed1.") for name in state):
        state = from_container(state)
    own = backbone.state_dict()
    prefixes = ("", "backbone.", "body.", "backbone.body.")
    best = max(prefixes, key=lambda prefix: sum(_strip(name, prefix) in own for name in state))
    places = {_strip(name, best): name for name in state}
    if best == "" and not any(name in own for name in places):
        places = {f"body.{name}": name for name in state}
    found = {place: state[name] for place, name in places.items()}
    faults = _faults(own, found)
    if faults:
        raise ValueError(
            f"{source} does not fit {type(backbone).__name__}: {'; '.join(faults[:4])}"
            f"{f' and {len(faults) - 4} more' if len(faults) > 4 else ''}. Check backbone.name and backbone.weights"
        )
    backbone.load_state_dict({name: found[name] for name in own if name in found}, strict=False)
    return [name for place, name in places.items() if place not in own]


def _strip(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) if name.startswith(prefix) else f"!{name}"


def _faults(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What stands in the way of loading `found` into `own`; a count of seen batches is no weight."""
    faults = []
    for name, value in own.items():
        if name not in found:
            if not name.endswith("num_batches_tracked"):
                faults.append(f"{name} is missing")
        elif found[name].shape != value.shape:
            faults.append(f"{name} is {list(found[name].shape)}, not {list(value.shape)}")
    return faults


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, wherever it keeps them; averaged weights are preferred.

    Raises ValueError when it holds none.
    """
    for key in ("ema", "model", "state_dict", "model_state_dict"):
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            checkpoint = inner
            break
    state = {name.removeprefix("module."): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"the file holds no weights (its entries: {', '.join(map(str, list(checkpoint)[:8]))})")
    return state


def detector_weights(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """A detector's weights under our names, and the layout they were in: `ours`, `published` or `hugging face`."""
    state = weights_of(checkpoint)
    if any(name.startswith("transformer.") for name in state):
        return from_published(state), "published"
    # Not by the encoder, which need not have a layer.
    if any(name.startswith("model.decoder.") for name in state):
        return from_hugging_face(state), "hugging face"
    if any(name.startswith("decoder.layers.") for name in state):
        return state, "ours"
    raise ValueError(
        f"not a detector's weights (first names: {', '.join(list(state)[:4])}): a checkpoint of this program, of DETR, "
        "of SMCA-DETR or of Hugging Face's DETR is needed"
    )


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint's tensors. classes: names whose rows were kept; fresh: those that start anew."""

    tensors: int
    classes: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"loaded {self.tensors} tensors"]
        if self.classes or self.fresh:
            lines.append(f"class rows kept for {len(self.classes)}: {', '.join(self.classes) or 'none'}")
            lines.append(f"class rows started anew for {len(self.fresh)}: {', '.join(self.fresh) or 'none'}")
        if self.unused:
            lines.append(f"not used from the file: {', '.join(self.unused)}")
        return "\n".join(lines)


@torch.no_grad()
def fine_tune_from(
    model: Detector, state: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str], softmax: bool
) -> Loaded:
    """Load everything but the class rows, and those of the classes that both know by name.

    theirs, ours: class names in the order of the rows; with softmax, a last row for no object follows and is kept.
    Raises ValueError naming what does not fit, and the setting that makes it fit.
    """
    own = model.state_dict()
    faults = [fault for fault in _faults(own, state) if not fault.startswith("class_embed.")]
    if faults:
        queries = own["query_embed.weight"].shape[0], len(state.get("query_embed.weight", ()))
        hint = f" (the file has {queries[1]} queries: head.queries)" if queries[0] != queries[1] else ""
        raise ValueError(
            f"the checkpoint does not fit this model: {'; '.join(faults[:4])}{hint}. "
            "Make head.* and backbone.* those of the checkpoint"
        )
    rows = len(state["class_embed.bias"])
    if rows < len(theirs):
        raise ValueError(f"the checkpoint has {rows} class rows for {len(theirs)} class names")
    place = {name.lower(): row for row, name in enumerate(theirs)}
    kept = [name for name in ours if name.lower() in place]
    loaded = {name: value for name, value in state.items() if name in own and name not in CLASS_ROWS}
    for name in CLASS_ROWS:
        target = own[name].clone()
        for row, label in enumerate(ours):
            if label.lower() in place:
                target[row] = state[name][place[label.lower()]]
        if softmax:
            target[len(ours)] = state[name][rows - 1]
        loaded[name] = target
    model.load_state_dict(loaded, strict=False)
    fresh = tuple(name for name in ours if name.lower() not in place)
    return Loaded(len(loaded), tuple(kept), fresh, tuple(name for name in state if name not in own))


def scatter_rows(state: Mapping[str, Tensor], ids: Sequence[int], softmax: bool) -> dict[str, Tensor]:
    """Class rows at the place of their category id, as the published heads have them; ids without a class never win.

    Softmax: the no-object row comes last, at the largest id plus one. A head with a row for every id stays as it is.
    """
    if list(ids) == list(range(len(state["class_embed.bias"]) - int(softmax))):
        return dict(state)
    size = max(ids) + 1 + int(softmax)
    result = dict(state)
    for name in CLASS_ROWS:
        rows = state[name].new_zeros(size, *state[name].shape[1:])
        if rows.dim() == 1:
            rows -= 1e4
        rows[list(ids)] = state[name][: len(ids)]
        if softmax:
            rows[-1] = state[name][-1]
        result[name] = rows
    if not softmax:
        # The published focal heads carry one more row, which stands for nothing.
        result = {
            name: nn.functional.pad(value, (0, 0, 0, 1)) if name == "class_embed.weight" else value
            for name, value in result.items()
        }
        result["class_embed.bias"] = nn.functional.pad(result["class_embed.bias"], (0, 1), value=-1e4)
    return result
