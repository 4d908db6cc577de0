"""Which backbones work, and at which image sizes: each is looked at in another process, which it may end.

python -m detr_container.backbones is that process, as `one_by_one` wants it; an item is nothing but its name.
"""

from __future__ import annotations

import difflib
import fnmatch
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .one_by_one import answer_each, found_of

LIMIT = 120.0
"""Seconds that one may take to be looked at; the largest take about a tenth of it."""


@dataclass(frozen=True)
class Entry:
    """One backbone: channels, strides and parameters of all its maps, and at which sizes it works.

    multiple: of both sides of its images in pixels; side: the only one of its square images, 0 for any multiple;
    refused: why it does not work, "" where it does.
    """

    name: str
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    parameters: int = 0
    multiple: int = 0
    side: int = 0
    refused: str = ""


def names_of(pattern: str) -> list[str]:
    """Backbones whose name contains a pattern (with * or ?: fits it), ours first.

    Raises ValueError when there is none, with near ones.
    """
    import timm

    from detr_container.models.container import SIZES
    from detr_container.models.resnet import DEPTHS

    every = [*DEPTHS, *SIZES, *(f"timm/{name}" for name in timm.list_models())]
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [name for name in every if any(fnmatch.fnmatch(part, wanted) for part in (name, name.split("/")[-1]))]
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


def entries(names: Sequence[str], limit: float = LIMIT) -> Iterator[Entry]:
    """Look at each."""
    for name, found, why in found_of(__name__, dict.fromkeys(names), limit):
        yield Entry(name, refused=why) if why else Entry(**found)


def _look(name: str, _: Any) -> dict[str, Any]:
    if name.startswith("timm/"):
        from detr_container.models.timm_fit import fit

        found = fit(name.removeprefix("timm/"))
        return asdict(Entry(name, found.channels, found.strides, found.parameters, found.multiple, found.side))
    from .build import build_backbone
    from .config import BackboneConfig

    model = build_backbone(BackboneConfig(name=name, weights="none", frozen_stages=0))
    parameters = sum(each.numel() for each in model.parameters())
    return asdict(Entry(name, model.channels, model.strides, parameters, model.size_multiple))


if __name__ == "__main__":
    sys.exit(answer_each(_look, (ValueError, OSError, RuntimeError)))
