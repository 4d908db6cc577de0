"""Fonts for names in whatever script: DejaVu Sans, which matplotlib brings along, else one of the system's."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont

from detr_container.base.terminal import shown

_log = logging.getLogger(__name__)

_SPECIAL = re.compile("bold|black|italic|oblique|light|thin|mono|serif", re.IGNORECASE)
_BESIDE_NAMES = "…0123456789.(crowd)"
"""What stands beside a name in a label, and is drawn with the same font."""
_INKED = 100
"""How many of a name's letters are drawn to see whether anything of it can be seen."""


def dejavu(bold: bool = False) -> str:
    """The path of DejaVu Sans."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@functools.lru_cache(1024)
def font_with(letters: frozenset[str]) -> str | None:
    """The path of a font that has all these letters: "" for DejaVu Sans, else one of the system's; None without any."""
    needed = {ord(letter) for letter in letters if not letter.isspace()}
    if needed <= _letters_of(dejavu()):
        return ""
    return next((path for path in _system_fonts() if needed <= _letters_of(path)), None)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Those of the system, upright and of usual weight before others of their kind."""
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts(), key=lambda path: (bool(_SPECIAL.search(Path(path).stem)), path)))


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    """The letters that a font has as outlines, which can be drawn in any size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        # A file that is no font after all.
        return frozenset()


def legible_names(classes: Sequence[str]) -> list[str]:
    """Names as one line that can be drawn: `class k`, with a warning, for one without ink or that no font here has."""
    return [_legible(shown(name), label) for label, name in enumerate(classes)]


@functools.cache
def _legible(name: str, label: int) -> str:
    path = font_with(frozenset(name + _BESIDE_NAMES))
    if path is not None and ImageFont.truetype(path or dejavu(), 16).getmask(name[:_INKED]).getbbox():
        return name
    if path is not None:
        _log.warning("nothing of the name %r can be seen: it is drawn as class %d", name, label)
        return f"class {label}"
    _log.warning(
        "no font here has the letters of %r: it is drawn as class %d. Install one that has them, for instance the "
        "package fonts-noto-cjk or fonts-noto-core",
        name,
        label,
    )
    return f"class {label}"


def families(text: str) -> list[str]:
    """Names of fonts, as matplotlib takes them for `font.family`, of which each letter finds the first that has it."""
    import matplotlib.font_manager as font_manager

    found = ["DejaVu Sans"]
    for letter in sorted(set(text)):
        path = font_with(frozenset(letter))
        if path:
            font_manager.fontManager.addfont(path)
            found.append(font_manager.FontProperties(fname=path).get_name())
    return list(dict.fromkeys(found))
