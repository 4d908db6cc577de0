"""Whole timm models, their classifier with them: how they are built for an input size, and what else they take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .timm_fit import REFUSALS, check_known, first_line, fit, own_side, skeleton


@dataclass(frozen=True)
class Whole:
    """How a timm model is built for images of one side. options: for timm.create_model; any_side: it takes others."""

    options: tuple[tuple[str, Any], ...]
    any_side: bool


@lru_cache(maxsize=64)
def whole(name: str, size: int) -> Whole:
    """How to build the timm model `name` for square images of `size` pixels.

    Raises ValueError for a model that there is not, and for one that takes no such images, with a size that it takes.
    """
    check_known(name)
    reason = ""
    # For other sizes a transformer interpolates its positions where it can; others have no such options.
    for options in ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}):
        try:
            reason = fault(name, options, size)
        except TypeError:
            # It has no such option.
            continue
        if not reason:
            return Whole(tuple(options.items()), not fault(name, options, 2 * size))
    own = own_side(name)
    remedy = f"; it was made for data.size={own}" if own and own != size else ""
    raise ValueError(f"timm/{name} takes no images of {size} x {size} pixels ({reason}){remedy}")


def fault(name: str, options: dict[str, Any], size: int) -> str:
    """Why the model fails on images of this size, "" where it does not. Raises TypeError for unknown options."""
    # Models that are examined draw numbers, which must not change what is drawn for the one that is used.
    with torch.random.fork_rng(devices=[]):
        reason = _fault(name, options, size, "meta")
        # A model that reads values on its way cannot be followed without them.
        return _fault(name, options, size, "cpu") if "meta" in reason or "item()" in reason else reason


def _fault(name: str, options: dict[str, Any], size: int, device: str) -> str:
    with torch.device(device), torch.no_grad():
        try:
            model = create_whole(name, 2, options).eval()
        except TypeError:
            raise
        except REFUSALS as error:
            return first_line(error)
        try:
            model(torch.zeros(1, 3, size, size))
        except REFUSALS as error:
            return first_line(error)
    return ""


def create_whole(name: str, classes: int, options: dict[str, Any], pretrained: bool = False) -> Any:
    """A timm model with a classifier of so many classes."""
    import timm

    return timm.create_model(name, pretrained=pretrained, num_classes=classes, **options)


@lru_cache(maxsize=64)
def ends(name: str) -> tuple[str, ...]:
    """The modules after which the model, as a backbone, gives a feature map; none where it cannot be one."""
    try:
        found = fit(name)
    except ValueError:
        return ()
    with torch.random.fork_rng(devices=[]):
        body = skeleton(name, found.options)
    return tuple(module.replace(".", "_") for module in body.feature_info.module_name())
