"""Files of a ResNet's weights as others write them: under detectron2's names, and under Caffe2's."""

import pickle
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model


@cache
def state_of(name: str, classes: int = 5) -> dict[str, Tensor]:
    """torchvision's names and sizes, with random numbers."""
    with torch.device("meta"):
        names = get_model(name.removesuffix("_msra"), num_classes=classes).state_dict()
    return {each: torch.rand(value.shape) for each, value in names.items() if not each.endswith("num_batches_tracked")}


def as_converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the published converter makes them, by replacing parts one after the other."""
    named = {}
    for name, value in state.items():
        new = name if "layer" in name else f"stem.{name}"
        for number in (1, 2, 3, 4):
            new = new.replace(f"layer{number}", f"res{number + 1}")
        for number in (1, 2, 3):
            new = new.replace(f"bn{number}", f"conv{number}.norm")
        named[new.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return named


def as_caffe2(state: dict[str, Tensor], statistics: bool = True) -> dict[str, Tensor]:
    """As MSRA's networks are named in Caffe2; statistics: or only scales and shifts, in the older words for them."""
    words = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    if not statistics:
        words = {"weight": "s", "bias": "b"}
    named = {}
    for name, value in state.items():
        *parts, kind = name.split(".")
        if kind == "num_batches_tracked" or ("running" in kind and not statistics):
            continue
        if parts == ["fc"]:
            named[f"fc1000_{kind[0]}"] = value
        elif parts == ["conv1"]:
            named["conv1_w"] = value
        elif parts == ["bn1"]:
            named[f"res_conv1_bn_{words[kind]}"] = value
        else:
            layer, block, module, *rest = parts
            branch = "1" if module == "downsample" else f"2{'abc'[int(module[-1]) - 1]}"
            is_norm = rest == ["1"] or module.startswith("bn")
            named[f"res{int(layer[-1]) + 1}_{block}_branch{branch}{f'_bn_{words[kind]}' if is_norm else '_w'}"] = value
    return named


def pickled(path: Path, state: dict[str, Tensor], **entries: object) -> Path:
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, **entries} if entries else arrays, protocol=2))
    return path
