"""Image classifiers and files of weights: a network, and its classifier where the number of classes agrees.

Ours and other people's names, both ways: the published CONTAINER-LIGHT's, torchvision's ResNets', timm's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..backbones.resnet import ResNetBackbone
from ..classifier import BackboneClassifier, ImageClassifier, TimmClassifier
from .backbones import CHECK, take
from .detectron2_resnet import for_network
from .find import Which, check_sound
from .fit import listed, state_faults
from .layouts import to_container
from .match import Match, match

_log = logging.getLogger(__name__)
_COUNT = "num_batches_tracked"
_HEADS = ("head", "fc")
"""What our linear layer is called, here and in other people's files."""


class Became(NamedTuple):
    """What became of a classifier. kept: it is the file's; words: that, or why it starts anew."""

    kept: bool
    words: str


def load_classifier(
    model: ImageClassifier, checkpoint: Mapping[str, Any], source: str, which: Which = "auto", remedy: str = CHECK
) -> Became:
    """Load a network's weights, and its classifier where the file has one of as many classes.

    The file may be of a whole classifier, ours or published, or of a network within another, see `match`; which: of
    averaged and raw weights. Raises ValueError with the remedy, before anything is loaded, when a tensor of the network
    is missing or is another's.
    """
    if isinstance(model, TimmClassifier):
        return _load_timm(model, match(model.state_dict(), checkpoint, source, which), source, remedy)
    assert isinstance(model, BackboneClassifier)
    matched = match(model.backbone.state_dict(), checkpoint, source, which)
    take(model.backbone, matched, source, remedy)
    # Beside the network, whatever stands before its names.
    start = matched.start.removesuffix("body.").removesuffix("backbone.")
    beside = {name.removeprefix(start): value for name, value in matched.rest.items() if name.startswith(start)}
    head = next((part for each in _HEADS if (part := _part(beside, each, "head"))), {})
    if model.norm.state_dict() and not _taken(model, _part(beside, "norm", "norm"), source):
        _log.warning("%s has no norm before the classifier, as the network ends in here: it starts anew", source)
    return _became(_taken(model, head, source), head.get("head.weight"), len(model.head.weight))


def _load_timm(model: TimmClassifier, matched: Match, source: str, remedy: str) -> Became:
    own, found = model.state_dict(), model.fitted(matched.found, source)
    if matched.resnet is not None:
        found = for_network(found, matched.resnet, False, source)
    last = model.last_names()
    head = {name: value for name, value in found.items() if name in last}
    kept = not state_faults({name: own[name] for name in last}, head)
    rest = {name: value for name, value in found.items() if name not in last}
    faults = state_faults({name: value for name, value in own.items() if name not in last}, rest, (_COUNT,))
    if faults:
        raise ValueError(f"{source} does not fit timm/{model.name}: {listed(faults)}. {remedy}")
    loaded = rest | (head if kept else {})
    check_sound(loaded, source)
    model.load_state_dict(loaded, strict=False)
    weight = next((value for name, value in head.items() if name.endswith("weight")), None)
    return _became(kept, weight, len(own[last[0]]) if last else 0)


def _became(kept: bool, theirs: Tensor | None, classes: int) -> Became:
    """theirs: the weights of the file's classifier, if it has one."""
    if kept:
        return Became(kept, f"the classifier of {classes} classes is the file's")
    there = "the file has none" if theirs is None else f"the file's has {len(theirs)} classes, not {classes}"
    return Became(kept, f"the classifier starts anew: {there}")


def _part(state: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """The tensors of one module, under our name for it."""
    return {
        f"{ours}.{name.removeprefix(f'{theirs}.')}": value
        for name, value in state.items()
        if name.startswith(f"{theirs}.")
    }


def _taken(model: BackboneClassifier, part: dict[str, Tensor], source: str) -> bool:
    """Load a module's tensors if they are all there and fit."""
    if not part:
        return False
    module = next(iter(part)).split(".")[0]
    own = {name: value for name, value in model.state_dict().items() if name.startswith(f"{module}.")}
    found = {name: value for name, value in part.items() if name in own or not name.endswith(_COUNT)}
    if state_faults(own, found, (_COUNT,)):
        return False
    check_sound(found, source)
    model.load_state_dict(found, strict=False)
    return True


def as_published(model: ImageClassifier) -> dict[str, Tensor]:
    """A classifier's weights as other programs have them.

    A timm model's under timm's names, a ResNet's under torchvision's (which are timm's, too), and those of the
    CONTAINER family under the names of the released CONTAINER-LIGHT, as far as it has any.
    """
    state = model.state_dict()
    if isinstance(model, TimmClassifier):
        return {name.removeprefix("body."): value for name, value in state.items()}
    if isinstance(model, BackboneClassifier) and isinstance(model.backbone, ResNetBackbone):
        names = {name: name.replace("head.", "fc.") for name in state if name.startswith("head.")}
        return {names.get(name, name.removeprefix("backbone.body.")): value for name, value in state.items()}
    return to_container(state)
