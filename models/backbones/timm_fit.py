"""What a timm model really gives: at which image sizes it works, and the maps that come out there.

What a model states of itself is not taken on trust: it is built without memory (on PyTorch's meta device), shapes are
followed through it at two sizes, and what comes out is compared with the stated channels and strides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .backbone import IMAGENET_MEAN, IMAGENET_STD, maps_up_to

ANY_SIZE = ("timm/convnext_tiny", "timm/regnety_016", "timm/vit_small_patch16_224", "timm/swin_tiny_patch4_window7_224")
"""Widely used timm models that take images of any size, for who needs another one."""
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, ArithmeticError)
"""What timm and its models raise at sizes and options that they do not take."""
# Heights and widths in multiples: not square, not multiples of each other.
_PROBES = ((2, 3), (5, 4))


@dataclass(frozen=True)
class Fit:
    """How a timm model is built so that it works.

    options: for timm.create_model; channels, strides: of its maps, checked; multiple: of both sides of its images in
    pixels; side: the one side in pixels that its square images may have, 0 where any multiple is possible;
    parameters: of what computes the maps; nhwc: whether maps come with channels last.
    """

    options: tuple[tuple[str, Any], ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    side: int
    parameters: int
    nhwc: bool


@lru_cache(maxsize=256)
def fit(name: str, stage: int = -1, stride: int = 0, canvas: int = 0) -> Fit:
    """How to build the timm model `name` up to the map that `maps_up_to` chooses.

    canvas: the longest side in pixels that an image can have, 0 where that is not known; a model that takes images of
    one size only is built for it where timm can, else it must fit the model's own size.
    Raises ValueError for a model that does not exist, gives no maps, gives others than it states, or takes no such
    images, and says which do.
    """
    check_known(name)
    # Models that are examined draw numbers, which must not change what is drawn for the one that is used.
    with torch.random.fork_rng(devices=[]), ExitStack() as end:
        end.callback(_skeleton.cache_clear)
        maps, reasons = _best_stated(name, stage, stride), list[str]()
        own = own_side(name)
        # A window of 7 positions at a stride of 32 pixels, for instance, wants multiples of 224.
        for multiple in dict.fromkeys((maps.multiple, 2 * maps.multiple, _up(own, maps.multiple))):
            wrong = _faults(name, maps, [(multiple * rows, multiple * columns) for rows, columns in _PROBES])
            if not wrong:
                return replace(maps, multiple=multiple)
            reasons.append(wrong)
        padded_sides = [_up(canvas, maps.multiple), _up(canvas, own)] if canvas and own else []
        for side in dict.fromkeys((*padded_sides, own, _up(own, maps.multiple))):
            try:
                square = _stated(name, {"img_size": side} if side != own else {}, stage, stride)
            except REFUSALS:
                # It has no such option.
                continue
            wrong = _faults(name, square, [(side, side)]) if side else "nobody says which size it takes"
            if not wrong and canvas > side:
                raise _too_large(name, side, canvas)
            if not wrong:
                return replace(square, multiple=side, side=side)
            reasons.append(wrong)
    raise _refused(name, f"{reasons[0]}; {reasons[-1]}")


def _best_stated(name: str, stage: int, stride: int) -> Fit:
    """`_stated` of the model for any image size, where there is one to ask for."""
    try:
        with suppress(TypeError):
            return _stated(name, {"dynamic_img_size": True}, stage, stride)
        return _stated(name, {}, stage, stride)
    except REFUSALS as error:
        if str(error).startswith("backbone."):
            raise
        raise _refused(name, first_line(error)) from error


def _refused(name: str, reason: str) -> ValueError:
    return ValueError(f"timm/{name} cannot be a backbone: {reason}. {_others()}")


def _too_large(name: str, side: int, canvas: int) -> ValueError:
    return ValueError(
        f"timm/{name} takes images of {side} x {side} pixels only, and these settings let images have sides of up to "
        f"{canvas} pixels: use --data.resize square --data.scales {side} --data.eval-size {side} (or "
        f"--data.max-size {side}: smaller images are padded). {_others()}"
    )


def check_known(name: str) -> None:
    """Raise ValueError, with similar names, when timm has no such model."""
    import timm

    if not timm.is_model(name):
        base = name.split(".")[0]
        near = difflib.get_close_matches(base, timm.list_models(), 8) or timm.list_models(f"*{base.split('_')[0]}*")[:8]
        raise ValueError(
            f"timm has no model {name!r}. "
            + (f"Near: {', '.join(near)}" if near else "`detr-container backbones` lists those that there are")
        )


def _others() -> str:
    return f"Some that work at any size: {', '.join(ANY_SIZE)}; `detr-container backbones PATTERN` lists others"


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def create(name: str, options: dict[str, Any], pretrained: bool = False) -> Any:
    """A timm model that gives feature maps."""
    import timm

    return timm.create_model(name, pretrained=pretrained, features_only=True, **options)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of pixels in [0, 1] that a timm model was made for."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    return (tuple(cfg.mean), tuple(cfg.std)) if cfg else (IMAGENET_MEAN, IMAGENET_STD)


@contextmanager
def making(name: str, drop_path: float) -> Iterator[None]:
    """Make a timm model within this. Raises ValueError, which says what to set, where it cannot be made."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"timm/{name} takes no backbone.drop_path={drop_path} ({error}): set it to 0") from error
    except RuntimeError as error:
        raise ValueError(f"timm/{name} cannot be made: {error}") from error
    except OSError as error:
        raise ValueError(
            f"the weights of timm/{name} could not be downloaded ({error}): fetch them where there is a network "
            f"({_address(name)}); training can also start from random ones (backbone.weights=none)"
        ) from error


def _address(name: str) -> str:
    """Where a timm model's pretrained weights are."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:
        return "timm names no address"
    return f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else str(cfg.url)


@lru_cache(maxsize=1)
def _skeleton(name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return skeleton(name, options)


def skeleton(name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The model without memory; with it where it cannot be made otherwise. options: for timm.create_model."""
    try:
        with torch.device("meta"):
            return create(name, dict(options)).eval()
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        return create(name, dict(options)).eval()


def own_side(name: str) -> int:
    """The side of the square images that the model was made for; 0 where they are not square or nobody says."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    height, width = cfg.input_size[-2:] if cfg is not None else (0, 0)
    return height if height == width else 0


def _stated(name: str, options: dict[str, Any], stage: int, stride: int) -> Fit:
    """What the model states of its maps up to the chosen one, and the options that leave out what comes after it."""
    from timm.layers.format import Format

    body = _skeleton(name, tuple(options.items()))
    indices = tuple(body.feature_info.out_indices)
    count = maps_up_to(f"timm/{name}", body.feature_info.reduction(), stage, stride)
    if count < len(indices):
        options = options | {"out_indices": indices[:count]}
        body = _skeleton(name, tuple(options.items()))
    info, parameters = body.feature_info, sum(each.numel() for each in body.parameters())
    channels, strides = tuple(info.channels()), tuple(info.reduction())
    # Transformers such as Swin give channels last.
    nhwc = getattr(body, "output_fmt", None) == Format.NHWC
    return Fit(tuple(options.items()), channels, strides, max(strides), 0, parameters, nhwc)


def _faults(name: str, stated: Fit, sizes: Sequence[tuple[int, int]]) -> str:
    """What is wrong with the maps at these sizes, "" for nothing."""
    why = ""
    for whole in (False, True):
        body = create(name, dict(stated.options)).eval() if whole else _skeleton(name, stated.options)
        for size in sizes:
            try:
                with torch.no_grad():
                    wrong = _wrong_maps(body, stated, size)
            except REFUSALS as error:
                why = str(error)
                wrong = f"it fails on {size[0]} x {size[1]} pixels ({first_line(error)})"
            if wrong:
                break
        # A model that reads values on its way cannot be followed without them.
        if not ("meta" in why or "item()" in why):
            return wrong
    return wrong


def _wrong_maps(body: Any, stated: Fit, size: tuple[int, int]) -> str:
    height, width = size
    device = next(body.parameters()).device
    maps: list[Tensor] = list(body(torch.zeros(1, 3, height, width, device=device)))
    if len(maps) != len(stated.strides):
        return f"it states {len(stated.strides)} maps and gives {len(maps)}"
    for feature, channels, stride in zip(
        channels_first(maps, stated.nhwc), stated.channels, stated.strides, strict=True
    ):
        expected = (1, channels, height // stride, width // stride)
        if tuple(feature.shape) != expected:
            return (
                f"on {height} x {width} pixels its map of stride {stride} is {_by(feature.shape[1:])} "
                f"where it states {_by(expected[1:])} (channels, rows, columns)"
            )
        if height % stride or width % stride:
            return f"it states a map of stride {stride}, of which {height} x {width} pixels are no multiple"
    return ""


def channels_first(maps: Sequence[Tensor], nhwc: bool) -> list[Tensor]:
    """Feature maps as [B, C, h, w]."""
    return [feature.permute(0, 3, 1, 2) for feature in maps] if nhwc else list(maps)


def _by(lengths: Sequence[int]) -> str:
    return " x ".join(map(str, lengths))


def first_line(error: Exception) -> str:
    """The first line of its message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160] or type(error).__name__
