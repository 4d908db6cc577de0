"""What the engine must know of a task, and nothing more: the contract that detection and every other task fulfils.

It stands with the engine, which calls it, so that tasks import the engine and the engine imports no task.

Names of sizes: T accumulation steps of one process, K normalisers of a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from rich.console import RenderableType
from torch import Tensor, nn

from detr_container.config.settings import Experiment, TrainConfig
from detr_container.datasets.loader import Ends, StepBatches, shuffled

from . import optimizer as optim
from .session import Session

Lap = Callable[[str], None]
"""Called with the name of each part of a step when it is done; what measures a step passes one."""


def no_lap(part: str) -> None:
    """Measure nothing."""


class NonFiniteError(RuntimeError):
    """A prediction is NaN or infinite; the message says which, and of which image."""


class Batch(Protocol):
    """A micro batch. image_ids: of its images, for messages."""

    @property
    def image_ids(self) -> Sequence[int]:
        """The ids of its images."""

    def to(self, device: torch.device) -> Self:
        """The same on a device, without waiting for the copy."""


@runtime_checkable
class StaticBatch(Batch, Protocol):
    """One whose step can be captured and replayed on other values; a task whose batches are not is trained eagerly."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors, always in the same order."""

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same batch with others in the place of its `tensors`."""

    @property
    def form(self) -> Hashable:
        """What decides beside the shapes of its tensors which operations are computed."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: metrics as a line of evaluations.jsonl has them, all of it as tables, and one line."""

    metrics: Mapping[str, float | int | None]
    tables: RenderableType
    line: str


class Task(ABC):
    """One task with its settings and its data. The same on every process of a run, but for what a method says."""

    meters: tuple[str, ...]
    """Names of what `loss` returns beside the loss, in order."""
    training_images: int = 0
    """How many images an epoch shows."""
    validation_images: int = 0
    """How many an evaluation shows."""
    strided: bool = False
    """Whether forward passes take every so-manieth image of a step instead of a piece of it; see `StepBatches`."""

    def describe(self) -> str:
        """The data in words: "1500 training and 200 validation images"."""
        return f"{self.training_images} training images"

    def settled(self, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
        """What this start makes of settings that follow the device: for provenance.jsonl, and in words.

        model: on its device. Raises ValueError for what cannot be done there.
        """
        del model
        return {}, []

    def resolved(self, experiment: Experiment) -> Task:
        """The same task and data under settings in which a number stands for `train.micro_batch=0`."""
        del experiment
        return self

    def versions(self) -> dict[str, dict[str, Any]]:
        """By split, the file that says what the data is, its SHA-256 and its number of images."""
        return {}

    # -- the model ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, weights: bool) -> nn.Module:
        """The model; weights: False leaves it random. Torch has been seeded, which decides all that is random."""

    def start_from(self, model: nn.Module, path: Path) -> str:
        """Load a checkpoint to fine-tune from; returns what was taken in words. ValueError when it does not fit."""
        raise ValueError(f"init={path}: {type(self).__name__} has no way to start {type(model).__name__} from a file")

    def size_multiple(self, model: nn.Module) -> int:
        """What both sides of images in pixels are padded to a multiple of."""
        del model
        return 1

    def strides(self, model: nn.Module) -> tuple[int, ...]:
        """Pixels of an image to a position of each feature map that the model's head reads."""
        del model
        return ()

    @abstractmethod
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """What AdamW takes: `params`, `name`, `base_lr` and, where it is not the usual one, `weight_decay`.

        `layered_groups` makes the usual ones. Raises ValueError when nothing trains where something should.
        """

    def checkpointed(self, model: nn.Module, which: Literal["backbone", "all"]) -> list[nn.Module]:
        """The parts of a model whose activations are made again for the gradient, each called as a module.

        Raises ValueError when there are none.
        """
        raise ValueError(
            f"train.checkpoint_activations={which}: {type(self).__name__} names no parts of {type(model).__name__} "
            "whose activations could be made again; use train.checkpoint_activations=none"
        )

    def weight_decay(self, progress: float) -> float | None:
        """The weight decay at a share of the whole schedule from 0 to 1, of the groups that decay; None: as built."""
        del progress
        return None

    def parameter_counts(self, model: nn.Module) -> str:
        """How many parameters are trained and frozen, in words."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return f"parameters: {trained:,} trained, {sum(p.numel() for p in model.parameters()) - trained:,} frozen"

    @property
    def why_eager(self) -> str:
        """Why no step of this task shall be recorded as a CUDA graph, in words; empty where all can be."""
        return ""

    def prepare(self, device: torch.device) -> str:
        """Decide how steps are computed on a device, before the first; returns it in words where there is a choice.

        Raises ValueError where settings ask for what cannot be done there.
        """
        del device
        return ""

    # -- a step -------------------------------------------------------------------------------------------------------

    def lr_factor(self, step: int, epoch_steps: int, settings: TrainConfig) -> float:
        """What every base learning rate is multiplied by at a step from 0; a pure function, so resuming is exact."""
        return optim.lr_factor(step, epoch_steps, settings)

    def order(self, seed: int, epoch: int) -> Tensor:
        """[training_images] what an epoch shows, in order, a function of its arguments alone; items of the data set."""
        return shuffled(self.training_images, seed, epoch)

    def sampler(
        self,
        seed: int,
        *,
        batch: int,
        micro_batch: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> StepBatches:
        """The keys of one rank's micro batches, as training takes them; see `StepBatches`."""
        return StepBatches(
            self.training_images,
            seed=seed,
            batch=batch,
            micro_batch=micro_batch,
            total_steps=total_steps,
            start_step=start_step,
            rank=rank,
            world=world,
            order=partial(self.order, seed),
            strided=self.strided,
        )

    @abstractmethod
    def batches(self, model: nn.Module, sampler: StepBatches, pin_memory: bool, ends: Ends) -> Iterator[Any]:
        """The micro batches of a sampler, on the host; ends: see `loader.batches`."""

    def normalisers(self, batch: Any) -> tuple[float, ...]:
        """[K] what the losses of a micro batch are divided by; summed over the whole step before any is computed."""
        return (float(len(batch.image_ids)),)

    def divisors(self, mine: Sequence[tuple[float, ...]], whole: Tensor, world: int) -> Tensor:
        """[T, K] what those of this process's micro batches are divided by, so that they add up over all.

        mine: `normalisers` of each; whole: [K] their sum over micro batches and processes.
        """
        del world
        return whole.expand(len(mine), -1)

    @abstractmethod
    def forward(self, model: nn.Module, batch: Any) -> Any:
        """What the model makes of a micro batch on its device."""

    def question(self, output: Any, batch: Any) -> Tensor | None:
        """What the host must know before there can be a loss, on the device; its shape follows from the batch's shapes.

        None where there is nothing to know; then nobody waits for the device.
        """
        del output, batch
        return None

    def answer(self, asked: Tensor, batch: Any) -> Tensor:
        """What follows from the question, for `loss`, all on the host; its shape follows from the batch's shapes.

        Unless a task says otherwise, the question's own values. Raises NonFiniteError.
        """
        return asked

    @abstractmethod
    def loss(self, output: Any, answer: Any, batch: Any, divisors: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The loss of a micro batch on its device, and [len(meters)] what is logged of it, detached.

        output: of `forward`; answer: to the question, on the device, None without one; divisors: [K]; share: of this
        micro batch in means over the step. Raises NonFiniteError.
        """

    def after_step(self, model: nn.Module, step: int) -> None:
        """What else a step changes (a teacher, a schedule). step: the number of steps done."""
        del model, step

    def logged(self, means: Mapping[str, float]) -> dict[str, Any]:
        """A line of metrics.jsonl from the mean of each meter; `losses` holds the terms of the loss."""
        return {**means, "losses": {}}

    # -- an evaluation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def evaluate(
        self,
        model: nn.Module,
        run: Path,
        epoch: int,
        session: Session,
        on_batch: Callable[[int, int], None],
        ends: Ends,
    ) -> Evaluation | None:
        """Evaluate on the validation split and write what was found into a run's folder; None on all but the main one.

        on_batch: called with how many batches of how many are done, equally often on every process; may raise to stop.
        """

    def draw(self, run: Path, epoch: int) -> None:
        """Draw what the evaluation of an epoch found."""
        del run, epoch

    def discard(self, run: Path, epoch: int) -> None:
        """Remove what the evaluation of an epoch left and the settings do not keep, if it is still there.

        Asked for what is neither the newest nor the best, more than once perhaps.
        """
        del run, epoch

    # -- what is kept -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the task beside the model."""
        return {}

    def state_faults(self, state: Mapping[str, Any]) -> list[str]:
        """What is wrong with what `state` gave to a checkpoint.

        Raises ValueError ("of other ...") when it is another data set's.
        """
        del state
        return []

    def files(self) -> dict[str, Any]:
        """JSON files of a run's folder that say what the task is, by name."""
        return {}
