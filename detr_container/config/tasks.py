"""The tasks that an experiment can be of, by name, without importing any before it is asked for.

A package of its own adds one by an entry point of the group `detr_container.tasks`, whose name is the task's and whose
value is the task's class of experiments, `package.module:MyExperiment`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import Experiment

GROUP = "detr_container.tasks"
BUILT_IN = {
    "detection": "detr_container.config.detection:DetectionExperiment",
    # Where its named experiments are, so that loading a task names them.
    "classification": "detr_container.config.imagenet:ClassificationExperiment",
}


def known() -> dict[str, EntryPoint]:
    """Every task there is: this project's own, then those of installed packages."""
    own = {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    return {each.name: each for each in entry_points(group=GROUP)} | own


def experiment_class(task: str) -> type[Experiment]:
    """The class of a task's experiments. Raises ValueError when there is no such task."""
    if task in BUILT_IN:
        module, _, name = BUILT_IN[task].partition(":")
        found: type[Experiment] = getattr(importlib.import_module(module), name)
        return found
    others = known()
    if task not in others:
        raise ValueError(
            f"there is no task {task!r} here, only {', '.join(others)}: install the package that has it, "
            f"which names it in its entry points ({GROUP})"
        )
    kind: type[Experiment] = others[task].load()
    return kind
