"""ResNets under detectron2's and Caffe2's names: whose they are, in which order they read colours, and as ours.

There are two kinds of one shape, and their tensors do not tell which: MSRA's (He et al. 2016), with its strides in the
1 x 1 convolutions, which reads blue, green and red of 0 .. 255, and torchvision's, converted. What a file says decides
where it says anything, else the network that it is for. Here everything reads red, green and blue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .layouts import Rules, rename, reverse

EPSILON = 1e-5
"""Of every norm."""
_STEM, _BLOCK = "stem.conv1.weight", "res2.0.conv1.weight"
_FIRST = ".body.conv1.weight"
"""The convolution that reads pixels, here."""
_CAFFE2 = "res2_0_branch2a_w"
_MSRA, _CONVERTED = ("Caffe2", "Detectron2 Model Zoo"), ("torchvision",)
"""What `__author__` is in files of either kind."""
_LAYERS = {"1": "downsample.0", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_NORMS = {"1": "downsample.1", "2a": "bn1", "2b": "bn2", "2c": "bn3"}
_VALUES = {
    **dict.fromkeys(("w", "s", "gamma"), "weight"),
    **dict.fromkeys(("b", "beta"), "bias"),
    **dict.fromkeys(("rm", "running_mean"), "running_mean"),
    **dict.fromkeys(("riv", "running_var"), "running_var"),
}
_OF_CAFFE2 = re.compile(r"(?:res(\d)_(\d+)_branch(1|2a|2b|2c)|(?:res_)?conv1)(_bn)?_([a-z_]+)")


def resnet_rules(ours: str, theirs: str) -> Rules:
    """Names of a ResNet here, which are torchvision's, and in detectron2; ours, theirs: what stands before them."""
    rules = [("bn1", "stem.conv1.norm"), ("conv1", "stem.conv1")]
    for layer in (1, 2, 3, 4):
        here, there = f"layer{layer}.{{i}}", f"res{layer + 1}.{{i}}"
        rules += [(f"{here}.downsample.1", f"{there}.shortcut.norm"), (f"{here}.downsample.0", f"{there}.shortcut")]
        rules += [(f"{here}.bn{number}", f"{there}.conv{number}.norm") for number in (1, 2, 3)]
        rules += [(f"{here}.conv{number}", f"{there}.conv{number}") for number in (1, 2, 3)]
    return [(f"{ours}{a}.{{rest}}", f"{theirs}{b}.{{rest}}") for a, b in rules]


@dataclass(frozen=True)
class ResnetFile:
    """What a file says of the ResNet in it. start: what stands before its names; author: `__author__`, or "".

    caffe2: whether names are Caffe2's; means, stds: of pixels, in the order of the colours, where the file has them.
    """

    start: str = ""
    author: str = ""
    caffe2: bool = False
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()

    @property
    def msra(self) -> bool | None:
        """Whether it is MSRA's; None where nothing says."""
        if self.caffe2 or self.author in _MSRA or self.author in _CONVERTED:
            return self.caffe2 or self.author in _MSRA
        # MSRA's are not scaled.
        return max(self.stds) < 2 if self.stds else None

    @property
    def blue_first(self) -> bool | None:
        """Whether it reads blue, green and red; None where nothing says."""
        if self.start.endswith("backbone.0.backbone."):
            # DETR for detectron2 reads red first (INPUT.FORMAT RGB): its ResNets are torchvision's.
            return False
        if len(self.means) == 3 and self.means[0] != self.means[2]:
            # ImageNet's images have more red than blue.
            return self.means[0] < self.means[2]
        return self.msra

    def turned(self, msra: bool) -> bool:
        """Whether it reads blue first, taken for MSRA's or not where nothing says."""
        return msra if self.blue_first is None else self.blue_first

    @property
    def said(self) -> str:
        """Why it is taken for what it is."""
        if self.caffe2:
            return "it has Caffe2's names"
        return f"its __author__ is {self.author!r}" if self.author else f"its pixel_std is {list(self.stds)}"


def as_torchvision(state: Mapping[str, Tensor], author: str) -> tuple[dict[str, Tensor], ResnetFile | None]:
    """A state with the ResNet in it under torchvision's names, wherever it stands, and what the file says of it.

    author: its `__author__`, or "". None, and the state as it is, where there is no ResNet under such names.
    """
    pixels = _three(state, "pixel_mean"), _three(state, "pixel_std")
    if _CAFFE2 in state:
        named = {_of_caffe2(name): value for name, value in state.items()}
        return _with_statistics(named, ""), ResnetFile("", author, True, *pixels)
    first = next((name for name in state if f".{name}".endswith(f".{_STEM}")), "")
    start = first.removesuffix(_STEM)
    if not first or f"{start}{_BLOCK}" not in state:
        return dict(state), None
    # A converted classifier stands in the stem; detectron2's own beside it.
    also = [(f"{start}fc.{{rest}}", f"{start}{each}.{{rest}}") for each in ("stem.fc", "linear")]
    named = rename(state, reverse([*resnet_rules(start, start), *also]))
    return _with_statistics(named, start), ResnetFile(start, author, False, *pixels)


def for_network(found: Mapping[str, Tensor], of: ResnetFile, msra: bool, source: object) -> dict[str, Tensor]:
    """Its tensors, under our names, for one of our ResNets: with red first. msra: whether the network is MSRA's.

    Raises ValueError where the file says that it is of the other kind.
    """
    if of.msra is not None and of.msra != msra:
        deep = len({name.split("layer3.")[1].split(".")[0] for name in found if "layer3." in name}) > 6
        kind = ("MSRA", "_msra") if of.msra else ("torchvision", "")
        raise ValueError(
            f"{source} is {kind[0]}'s ResNet ({of.said}), which has its strides in other convolutions and reads other "
            f"pixels than this one: use --backbone.name resnet{101 if deep else 50}{kind[1]}"
        )
    flipped = of.turned(msra)
    return {
        name: value.flip(1) if flipped and f".{name}".endswith(_FIRST) and value.dim() == 4 else value
        for name, value in found.items()
    }


def _three(state: Mapping[str, Tensor], end: str) -> tuple[float, ...]:
    """The three numbers of a tensor whose name ends so; () where there is none."""
    found = next((each for name, each in state.items() if name.split(".")[-1] == end and each.numel() == 3), None)
    return () if found is None else tuple(found.flatten().tolist())


def _of_caffe2(name: str) -> str:
    """One of Caffe2's names as torchvision's; what is no part of a ResNet keeps it."""
    if name in ("fc1000_w", "fc1000_b", "pred_w", "pred_b"):
        return f"fc.{_VALUES[name[-1]]}"
    match = _OF_CAFFE2.fullmatch(name)
    if not match or match[5] not in _VALUES or bool(match[4]) == (match[5] == "w"):
        return name
    stage, block, branch, norm, value = match.groups()
    if stage is None:
        return f"{'bn1' if norm else 'conv1'}.{_VALUES[value]}"
    return f"layer{int(stage) - 1}.{block}.{(_NORMS if norm else _LAYERS)[branch]}.{_VALUES[value]}"


def _with_statistics(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """With the statistics that change nothing, where the file has none at all: they are in scale and shift already."""
    inside = [name for name in state if name.startswith(start)]
    if any(name.endswith((".running_mean", ".running_var")) for name in inside):
        return state
    norm = re.compile(rf"{re.escape(start)}(?:.*\.)?(?:bn\d|downsample\.1)\.weight")
    for name in filter(norm.fullmatch, inside):
        weight, module = state[name], name.removesuffix("weight")
        state[f"{module}running_mean"] = torch.zeros(weight.shape)
        # A norm adds its epsilon to them.
        state[f"{module}running_var"] = torch.ones(weight.shape) - EPSILON
    return state
