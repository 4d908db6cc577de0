"""Which backbones work, and at which image sizes: each is examined in another process, which it may end.

python -m detr_container.measure.backbones is that process, as `one_by_one` wants it; an item is the memory in bytes
that training steps may take, 0 for none to be taken.
"""

from __future__ import annotations

import difflib
import fnmatch
import gc
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .one_by_one import answer_each, found_of

LIMIT = 300.0
"""Seconds that one may take to be examined and to be tried; the largest take about a tenth of it."""
_SIZES = ((96, 128), (128, 160))
"""Pixels of the images of the steps, one each, before they are rounded up to what a backbone takes."""
_BYTES = 12
"""Of a parameter: its value, its gradient, and half of that for the maps of so few pixels."""


@dataclass(frozen=True)
class Entry:
    """One backbone: channels, strides and parameters of all its maps, and at which sizes it works.

    multiple: of both sides of its images in pixels; side: the only one of its square images, 0 for any multiple;
    steps: training steps that were taken with it; refused: why it does not work, "" where it does.
    """

    name: str
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    parameters: int = 0
    multiple: int = 0
    side: int = 0
    steps: int = 0
    untried: str = ""
    refused: str = ""


def names_of(pattern: str) -> list[str]:
    """Backbones whose name contains a pattern (with * or ?: fits it), ours first.

    Raises ValueError when there is none, with near ones.
    """
    import timm

    from detr_container.engine.backbones import OWN

    every = [*OWN, *(f"timm/{name}" for name in timm.list_models())]
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in every if any(fnmatch.fnmatch(part, glob) for part in (name, name.split("/")[-1]))]
    if not found:
        short = {name.split("/")[-1]: name for name in reversed(every)}
        near = difflib.get_close_matches(pattern.strip("*?").split("/")[-1], short, n=5, cutoff=0.5)
        raise ValueError(
            f"no backbone's name fits {pattern!r}"
            + (
                f": near are {', '.join(short[name] for name in near)}"
                if near
                else ". Without a pattern all are listed"
            )
        )
    return found


def entries(names: Sequence[str], tried: bool = False, processes: int = 1, limit: float = LIMIT) -> Iterator[Entry]:
    """Examine each, in their order. tried: also take training steps; processes: how many work at a time."""
    from detr_container.base.processes import environment_of_one
    from detr_container.base.trial_process import free_memory

    waiting, early = deque(names), dict[str, Entry]()
    items = dict.fromkeys(names, free_memory() // processes if tried else 0)
    for name, found, why in found_of(__name__, items, limit, environment_of_one(processes), processes):
        # What works instead is the same for all.
        reason = why.removeprefix(f"{name} cannot be a backbone: ").partition(". Some that work at")[0]
        early[name] = Entry(name, refused=reason) if why else Entry(**found)
        while waiting and waiting[0] in early:
            yield early[waiting.popleft()]


def table_row(entry: Entry | None, width: int) -> str:
    """A backbone as a line of a table; None: what its columns are. width: of the longest name."""
    if entry is None:
        return f"{'name':<{width}}  {'parameters':>10}  {'images':<23}  {'strides':<13}  {'channels':<23}  works"
    if entry.refused:
        return f"{entry.name:<{width}}  no: {entry.refused}"
    images = f"one size (made for {entry.side})" if entry.side else f"any size, multiple {entry.multiple}"
    strides, channels = (" ".join(map(str, numbers)) for numbers in (entry.strides, entry.channels))
    works = f"yes, {entry.steps} training steps" if entry.steps else "by its shapes"
    if entry.untried:
        works += f", not tried: {entry.untried}"
    return (
        f"{entry.name:<{width}}  {entry.parameters / 1e6:8.1f} M  {images:<23}  {strides:<13}  {channels:<23}  {works}"
    )


def _examine(name: str, room: int) -> dict[str, Any]:
    entry = _stated(name)
    if not room or entry.refused:
        return asdict(entry)
    needed = _BYTES * entry.parameters
    if needed > room:
        untried = f"steps would take {needed / 2**30:.1f} GiB, of which {room / 2**30:.1f} GiB are free"
        return asdict(replace(entry, untried=untried))
    try:
        return asdict(replace(entry, steps=_take_steps(entry)))
    finally:
        # What was written beyond a tensor's memory shows when that is given back: now, and not at the next one.
        gc.collect()


def _stated(name: str) -> Entry:
    if name.startswith("timm/"):
        from detr_container.models.backbones.timm_fit import fit

        found = fit(name.removeprefix("timm/"))
        return Entry(name, found.channels, found.strides, found.parameters, found.multiple, found.side)
    from detr_container.config.backbones import BackboneConfig
    from detr_container.engine.backbones import build_backbone

    model = build_backbone(BackboneConfig(name=name, weights="none", frozen_stages=0))
    parameters = sum(each.numel() for each in model.parameters())
    return Entry(name, tuple(model.channels), tuple(model.strides), parameters, model.size_multiple, model.side)


def _take_steps(entry: Entry) -> int:
    """Train on noise at each size; returns how many steps that were. Raises ValueError for maps other than stated."""
    import torch

    from detr_container.config.backbones import BackboneConfig
    from detr_container.engine.backbones import build_backbone, lay_out

    torch.manual_seed(0)
    config = BackboneConfig(name=entry.name, weights="none", frozen_stages=0)
    model = build_backbone(config, canvas=entry.side)
    lay_out(model, model.memory_format)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for size in _SIZES:
        height, width = (-(-side // entry.multiple) * entry.multiple for side in size)
        images = torch.randn(2, 3, height, width).contiguous(memory_format=model.memory_format)
        maps = model(images)
        for feature, channels, stride in zip(maps, entry.channels, entry.strides, strict=True):
            expected = (2, channels, height // stride, width // stride)
            if tuple(feature.shape) != expected:
                raise ValueError(
                    f"in training its map of stride {stride} is {list(feature.shape)}, not {list(expected)}"
                )
            if not feature.isfinite().all():
                raise ValueError(f"from random weights, its map of stride {stride} of noise is not finite")
        # As shares of the largest: with weights that nobody has trained, some models make values beyond 1e15.
        loss = torch.stack([(feature / (feature.detach().abs().max() + 1)).mean() for feature in maps]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(_SIZES)


if __name__ == "__main__":
    sys.exit(answer_each(_examine, (ValueError, OSError, RuntimeError)))
