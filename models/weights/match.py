"""Which of a file's tensors are a network's, whatever stands before their names, and under other people's names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .detectron2_resnet import ResnetFile, as_torchvision
from .find import Which, find_weights
from .layouts import from_container, from_published

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """What of a file is a network's.

    found: by the network's names; rest: what else the file has, by its own; start: what stands before the network's;
    resnet: what a file in detectron2's format says of the ResNet in it.
    """

    found: dict[str, Tensor]
    rest: dict[str, Tensor]
    start: str
    resnet: ResnetFile | None = None


def match(own: Iterable[str], checkpoint: Mapping[str, Any], source: str, which: Which = "auto") -> Match:
    """Find the tensors `own` in a checkpoint of a network or of a model that has it: ours, or a published one.

    Published are torchvision's, CONTAINER-LIGHT's, timm's, and detectron2's and Caffe2's ResNets.

    which: of averaged and raw weights. Raises ValueError when there are no weights, or not those that are asked for.
    """
    try:
        kept = find_weights(checkpoint, which)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    for remark in kept.remarks(source, "backbone.file_weights"):
        _log.warning("%s", remark)
    own = set(own)
    # Files of a body alone leave out `body.`, and anything may stand before the names.
    ends = {name.removeprefix("body."): name for name in own}
    state, resnet = kept.state, None
    if any(end.endswith("layer1.0.conv1.weight") for end in ends):
        state, resnet = as_torchvision(state, kept.author)
    state = _as_timm(_as_ours(state, ends), ends)
    starts = Counter(name[: len(name) - len(end)] for name in state for end in _endings(name) if end in ends)
    best = max(starts, key=lambda start: (starts[start], -len(start)), default="")
    places = {name: ends.get(name.removeprefix(best), "") if name.startswith(best) else "" for name in state}
    found = {place: state[name] for name, place in places.items() if place}
    return Match(found, {name: state[name] for name, place in places.items() if not place}, best, resnet)


def _as_ours(state: dict[str, Tensor], ends: Iterable[str]) -> dict[str, Tensor]:
    """Published names of CONTAINER-LIGHT, alone or in a detector, as ours.

    ends: the network's names; timm has networks of whose names some are the same.
    """
    first = next((name for name in state if ".patch_embed1." in f".{name}"), None)
    if first is None or any(end.startswith("patch_embed1.") for end in ends):
        return state
    start = first[: f".{first}".index(".patch_embed1.")]
    if start.endswith("backbone.0.body."):
        return from_published(state)
    return from_container({name.removeprefix(start): value for name, value in state.items()})


def _as_timm(state: dict[str, Tensor], ends: Iterable[str]) -> dict[str, Tensor]:
    """A timm model as a classifier and as a backbone has the same modules under two spellings: make it that of `ends`.

    As a backbone it is flattened (`stages_0` for `stages.0`) or wrapped (`model.blocks` for `blocks`).
    """
    ends = set(ends)
    spellings = Counter(map(_plain, ends))
    spelled = {_plain(end): end for end in ends if spellings[_plain(end)] == 1}
    renamed = {}
    for name, value in state.items():
        end = next((each for each in _endings(name) if each in ends), "")
        other = "" if end else next((each for each in _endings(name) if _plain(each) in spelled), "")
        renamed[name.removesuffix(other) + spelled[_plain(other)] if other else name] = value
    return renamed


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace("_", ".")


def _endings(name: str) -> Iterator[str]:
    """The name, and whatever is left of it after one dot or more."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))
