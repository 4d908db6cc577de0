"""What `preflight`, `benchmark` and `compare` try of a task in a few steps: the second half of its contract.

A task that does not offer it is trained, submitted and resumed all the same; it cannot be measured.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from detr_container.config.settings import Experiment

from .task import Task


@dataclass(frozen=True)
class Largest:
    """The largest micro batch that training can draw.

    words: its size; remedy: the settings that make it smaller; large, small: it, and one of few pixels, as JSON has
    them and `Trials.synthetic` takes them.
    """

    words: str
    remedy: str
    large: Mapping[str, Any]
    small: Mapping[str, Any]


class Trials(ABC):
    """An experiment's task, to be tried."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def like(self, experiment: Experiment) -> Self:
        """The same data under other settings of training or of the model."""
        return type(self)(experiment)

    @abstractmethod
    def bare(self, classes: int = 1) -> Task:
        """The task without its data: enough to build a model and to take steps on synthetic batches."""

    def classes(self, task: Task) -> int:
        """How many classes a task with data has, for `bare`."""
        del task
        return 1

    @abstractmethod
    def opened(self) -> Task:
        """The task with its data, read once. Raises ValueError or OSError for data that cannot be used."""

    @abstractmethod
    def check_data(self, limit: int, remark: Callable[[str], None]) -> str:
        """Look for faults of the data. limit: how many images to read; remark: called with what is no error.

        Returns what was read, in words. Raises ValueError for errors.
        """

    @abstractmethod
    def largest(self, task: Task, multiple: int) -> Largest:
        """The largest micro batch of a task with data. multiple: in pixels, of what the model pads to.

        Raises ValueError when an image can come out larger than the settings allow.
        """

    @abstractmethod
    def of_size(self, size: tuple[int, int], multiple: int, images: int, objects: int) -> Mapping[str, Any]:
        """A batch as `synthetic` takes it. size: (height, width) in pixels before padding; objects: on each image."""

    @abstractmethod
    def synthetic(self, task: Task, values: Mapping[str, Any], seed: int = 0) -> Any:
        """A batch of noise on the host; values: see `Largest`."""

    def drawn(
        self, model: nn.Module, sizes: Sequence[tuple[int, int]], images: int, batches: int, objects: int
    ) -> list[Mapping[str, Any]]:
        """Random micro batches as `synthetic` takes them, in the sizes that training draws of images of `sizes`.

        model: on its device; sizes: (height, width) in pixels, as often as they are. Raises ValueError for a task that
        draws no sizes.
        """
        raise ValueError(f"experiments of the task {self.experiment.task} draw no sizes: use another --source")

    @abstractmethod
    def learnable(self, task: Task, model: nn.Module) -> Any:
        """A micro batch of the training set's first images that show something. Raises ValueError without any."""

    @abstractmethod
    def few(self, task: Task, images: int, path: Path) -> Task:
        """The task with so many validation images, those of the largest batch first; files go beside `path`."""

    @abstractmethod
    def inputs(self, model: nn.Module, size: tuple[int, int]) -> tuple[Any, ...]:
        """What a model is called with on one blank image of `size`, (height, width) in pixels, on its device."""

    @abstractmethod
    def infer(self, model: nn.Module, batch: Any) -> None:
        """A forward pass as evaluation makes it, on a batch on the model's device."""


def trials_of(experiment: Experiment) -> Trials:
    """What can be tried of an experiment. Raises ValueError when its task offers nothing."""
    if not experiment.trials:
        raise ValueError(f"experiments of the task {experiment.task} name no trials, so they cannot be measured")
    module, _, name = experiment.trials.partition(":")
    found: Trials = getattr(importlib.import_module(module), name)(experiment)
    return found
