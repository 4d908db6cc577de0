"""What the commands share: how options become typed objects, and where messages go."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from .config import Experiment
from .experiments import BUILDERS, named

T = TypeVar("T")


def start_logging() -> None:
    """Send messages to stderr, those of other processes than the first with their rank."""
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"[rank {rank}] "
    logging.basicConfig(level=logging.WARNING, format=f"{prefix}%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("detr_container").setLevel(logging.INFO)


def parse(kind: type[T], arguments: Sequence[str], command: str, doc: str | None, default: T | None = None) -> T:
    """Options as a typed object; prints help or names the unknown option with its nearest neighbours, and exits."""
    about, name = (doc or "").strip(), f"detr-container {command}"
    if default is None:
        return tyro.cli(kind, prog=name, description=about, args=list(arguments))
    return tyro.cli(kind, prog=name, description=about, args=list(arguments), default=default)


def experiment_first(arguments: Sequence[str], command: str) -> tuple[Experiment, list[str]]:
    """The named experiment in front of the options."""
    if arguments and not arguments[0].startswith("-"):
        return named(arguments[0]).experiment, list(arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        return next(iter(BUILDERS.values()))()[0], list(arguments)
    raise ValueError(
        f"name an experiment: detr-container {command} EXPERIMENT [--setting value ...], one of {', '.join(BUILDERS)}"
    )
