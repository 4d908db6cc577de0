"""Packages that may be missing, and what to do where one is. Nothing here imports them."""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = (
    "detectron2 is not installed: `conda env create --file environment.yml` has it, or build it beside this project "
    "(minutes): git clone https://github.com/facebookresearch/detectron2, then "
    "python -m pip install --no-build-isolation ./detectron2; docs/detectron2.md says more"
)


class NotInstalledError(ImportError, ValueError):
    """detectron2 is missing: an import that fails, and what a person can mend."""


def require_detectron2() -> None:
    """Raise NotInstalledError, which says how to install it, where detectron2 is missing."""
    if find_spec("detectron2") is None:
        raise NotInstalledError(INSTALL)
