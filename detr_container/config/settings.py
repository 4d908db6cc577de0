"""The settings that every experiment has, whatever its task, and how an experiment is read and written.

An experiment is one frozen dataclass: an `Experiment` of its task. The command line is generated from it, a run folder
stores it as JSON, and a checkpoint carries it, so the three can never disagree. What a setting may be, whether it may
change on a resume and what it means for a comparison stand with its field. Nothing here imports torch: `--help` is
instant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from pydantic import ConfigDict, ValidationError, with_config

from detr_container.base.checked import read_plain
from detr_container.base.limits import Many, Rate, Seed, Share, adapter_of, check, message_of, natural, positive

from .tasks import experiment_class
from .traits import FIXED, NO_MATTER, Topic

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation. key: its name there; scale: of what is shown (100: per cent)."""

    key: str
    label: str
    scale: float = 100.0

    def text(self, value: float | None) -> str:
        """A value as tables show it."""
        return "" if value is None else f"{self.scale * value:.1f}"


@with_config(STRICT)
@dataclass(frozen=True)
class TrainConfig:
    """The schedule, the optimizer and what is kept."""

    epochs: Annotated[int, positive(1_000_000)] = 50
    """Passes over the training set."""
    batch: Annotated[int, positive(65_536), FIXED] = 16
    """Images per optimizer step, over all processes."""
    micro_batch: Annotated[int, natural(65_536), Topic("images per forward pass")] = 2
    """Images per process in one forward pass; gradients accumulate until `batch` is reached. 0: as many as fit into the
    memory, a power of two that is found by trying at each start."""
    lr: Annotated[float, positive(1e30)] = 1e-4
    """Learning rate of what a task gives no other."""
    weight_decay: Rate = 1e-4
    """AdamW's decoupled weight decay, of every weight."""
    clip: Annotated[float, natural(1e9)] = 0.1
    """Largest L2 norm of the gradient; 0 turns clipping off."""
    schedule: Literal["step", "cosine", "deit"] = "step"
    """Learning rates fall once by a factor of ten, or along half a cosine to zero; `deit`: of classification alone."""
    lr_drop: Many = 40
    """`step` only: the epoch after which every learning rate is divided by ten."""
    lr_drop_again: Many = 0
    """`step` only: a later epoch after which it is divided by ten once more; 0: none."""
    warmup_steps: Many = 0
    """Steps over which the learning rates rise linearly from zero."""
    precision: Annotated[Literal["fp32", "tf32", "bf16"], FIXED, Topic("precision")] = "fp32"
    """Of the model's arithmetic; losses are always float32. tf32: a GPU rounds what it multiplies to 10 bits."""
    graphs: Annotated[Literal["auto", "off"], NO_MATTER] = "auto"
    """`auto`: on a GPU a step is recorded as CUDA graphs for each shape of a micro batch and replayed; `off`: not."""
    checkpoint_activations: Annotated[Literal["none", "backbone", "all"], NO_MATTER] = "none"
    """Save memory for about a third more time: what the backbone's blocks (`all`: and the layers of encoder and
    decoder) computed is not kept but computed once more for the gradient. Results are the same."""
    ema_decay: Annotated[Share, FIXED] = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated; 0: none."""
    log_every: Annotated[int, positive(2**31), NO_MATTER] = 50
    """Steps between two lines of metrics."""
    checkpoint_minutes: Annotated[float, natural(1e6), NO_MATTER] = 15.0
    """Minutes between two checkpoints within an epoch; one is written at an epoch's end, and after a start's first step
    unless this is 0."""
    keep_checkpoints: Annotated[int, positive(1_000_000), NO_MATTER] = 2
    """How many of the newest checkpoints stay; with 1 there is none to fall back on."""
    eval_every: Annotated[Many, Topic("chances to be the best epoch")] = 1
    """Epochs between two evaluations; the last epoch is always evaluated. 0: never."""
    max_steps: Annotated[Many, NO_MATTER] = 0
    """Stop after this many steps, as if interrupted (a few steps of a long schedule); 0: run the whole schedule."""

    schedules: ClassVar[tuple[str, ...]] = ("step", "cosine")
    """Those of `schedule` that these settings describe."""

    def at_full_rate(self) -> Self:
        """The same without a warm-up, for whoever tries the first steps alone."""
        return replace(self, warmup_steps=0)


@with_config(STRICT)
@dataclass(frozen=True)
class Experiment:
    """What every task's experiment has."""

    task: Annotated[str, tyro.conf.Suppress, FIXED] = ""
    """What is learnt: a task that `config.tasks` knows."""
    train: Annotated[TrainConfig, Topic("schedule")] = field(default_factory=TrainConfig)
    name: Annotated[str, tyro.conf.Suppress, NO_MATTER] = ""
    """The named experiment this one derives from."""
    seed: Annotated[Seed, FIXED, NO_MATTER] = 0
    """Fixes the data order and augmentation whatever the model, and the model's initial weights."""
    init: Annotated[str, FIXED, Topic("pretraining")] = ""
    """A checkpoint of such a model to start (fine-tune) from; of a detector also a published one, or Hugging Face's."""
    init_weights: Annotated[Literal["auto", "ema", "model"], FIXED, Topic("pretraining")] = "auto"
    """Of an `init` that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    device: Annotated[Literal["auto", "cpu", "cuda"], NO_MATTER] = "auto"
    """`auto`: a GPU where there is one."""

    module: ClassVar[str]
    """The module whose `open_task(experiment, session)` makes an `engine.task.Task` of such an experiment."""
    trials: ClassVar[str] = ""
    """`module:Class` of its `engine.trials.Trials`; empty: it cannot be measured."""
    metrics: ClassVar[tuple[Metric, ...]]
    """What is drawn of an evaluation; the first is the headline, which stands for a run."""
    metrics_title: ClassVar[str]
    in_float32: ClassVar[str] = "losses"
    """What is computed in float32 whatever `train.precision`, in words."""
    usual_classes: ClassVar[int] = 80
    """How many classes a model is measured with when nothing says."""
    preloaded: ClassVar[str] = "detr_container.datasets.preloaded"
    """The module with what its loader processes need, which is imported before they are made."""
    shows_objects: ClassVar[bool] = False
    """Whether an image of this task has any number of objects, which a measurement must then make up."""

    @property
    def usual_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) in pixels of the images that a model is measured on when nothing says."""
        return ((224, 224),)

    @property
    def model_label(self) -> str:
        """What is trained, as lists of experiments show it."""
        return self.task

    @property
    def parts(self) -> dict[str, str]:
        """What the model is made of, by name, as measurements record it."""
        return {}

    @property
    def memory(self) -> dict[str, Any]:
        """The settings that decide what a training step takes, for the message when memory does not suffice."""
        return {"train.micro_batch": self.train.micro_batch or "0 (give a number)"}

    @property
    def loader_workers(self) -> int:
        """Loader processes per training process."""
        return 0

    @property
    def inputs(self) -> dict[str, Path]:
        """The files and folders that must exist before a run can start, by the setting that names them."""
        return {"init": Path(self.init)} if self.init else {}

    @property
    def evaluation_batch(self) -> int:
        """Images per process and forward pass at evaluation."""
        return self.train.micro_batch or 1

    def untrained(self) -> Self:
        """The same experiment from random weights, which needs no file of them."""
        return replace(self, init="")

    @property
    def data_folders(self) -> list[Path]:
        """Where the data lie, which all machines of a job must see."""
        return []

    def check_data(self) -> None:
        """Raise ValueError or OSError when the data are not where they should be, as far as a look tells."""

    def idle(self) -> Iterable[tuple[str, bool, str]]:
        """Settings that others may turn off: their names with spaces between, whether they do here, and why."""
        schedule = self.train.schedule
        yield "train.lr_drop train.lr_drop_again", schedule != "step", f"on the {schedule} schedule"

    def check_together(self) -> list[str]:
        """Warnings about settings that have no effect. Raises ValueError for those that contradict each other."""
        flat, usual, train = flatten(self), flatten(type(self)()), self.train
        if train.schedule not in train.schedules:
            raise ValueError(
                f"train.schedule={train.schedule}: {self.task} has no such schedule: use {' or '.join(train.schedules)}"
            )
        warnings = [
            f"{name} has no effect {why}"
            for names, idle, why in self.idle()
            for name in names.split()
            if idle and flat[name] != usual[name]
        ]
        late = f"it is not before the end (train.epochs={train.epochs})"
        if train.schedule == "step" and train.lr_drop >= train.epochs:
            warnings.append(f"train.lr_drop={train.lr_drop} has no effect: {late}")
        if train.schedule == "step" and 0 < train.lr_drop_again <= train.lr_drop:
            raise ValueError(
                f"train.lr_drop_again={train.lr_drop_again} is not after train.lr_drop={train.lr_drop}: give a later "
                "epoch, or 0 for one drop only"
            )
        if train.schedule == "step" and train.lr_drop_again >= train.epochs:
            warnings.append(f"train.lr_drop_again={train.lr_drop_again} has no effect: {late}")
        return warnings


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON has it."""
    return dict(adapter_of(type(experiment)).dump_python(experiment, mode="json"))


def from_dict(values: dict[str, Any]) -> Experiment:
    """The experiment that `to_dict` described. Raises ValueError naming each setting that does not fit."""
    # Before there was a second task, a file did not say which it was of.
    kind = experiment_class(str(values.get("task", "detection")) if isinstance(values, dict) else "detection")
    try:
        found: Experiment = adapter_of(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(
            f"not a configuration of this version: {message_of(error)}. Use the version that wrote it "
            "(provenance.jsonl says which), or correct the file"
        ) from error
    return found


def load(path: Path) -> Experiment:
    """Read a run's config.json. Raises ValueError for what is not one, or has settings that no run can have."""
    values = read_plain(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a run's settings: copy it again")
    return from_file(values, f"{path}")


def from_file(values: dict[str, Any], source: str) -> Experiment:
    """As `from_dict`, by the same rules as an experiment on the command line. source: what errors begin with."""
    try:
        experiment = from_dict(values)
        validate(experiment)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return experiment


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Every setting by its name on the command line: {"train.lr": 1e-4, ...}."""
    flat: dict[str, Any] = {}
    for name, value in to_dict(experiment).items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def difference(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """The settings in which two experiments differ: name to (value in a, value in b)."""
    left, right = flatten(a), flatten(b)
    return {
        name: (left.get(name), right.get(name))
        for name in dict.fromkeys((*left, *right))
        if left.get(name) != right.get(name)
    }


def validate(experiment: Experiment) -> list[str]:
    """Warnings about settings that have no effect. Raises ValueError for values that no run can have."""
    check(experiment)
    return experiment.check_together()
