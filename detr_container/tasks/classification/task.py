"""Classification as a task of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from detr_container.base.shortage import asking
from detr_container.config.classification import ClassificationExperiment, ClassificationTrainConfig, classification
from detr_container.config.settings import Experiment, TrainConfig
from detr_container.datasets.labelled import LabelledBatch
from detr_container.datasets.loader import Ends, StepBatches, batches, shuffled, steps_per_epoch, training_loader
from detr_container.datasets.order import repeated, shown
from detr_container.engine.backbones import why_eager
from detr_container.engine.resume import show
from detr_container.engine.run import evaluation_of
from detr_container.engine.session import Session
from detr_container.engine.task import Evaluation, Task
from detr_container.models.classifier import ImageClassifier

from .build import Data, data_on_all, model_of
from .evaluate import evaluate_to
from .fine_tune import start_from
from .groups import parameter_counts, parameter_groups
from .mixing import Normalisation, erase, mix, mixed_labels, soft_target_loss, targets
from .predicted_images import draw_predictions
from .predictions import NAME, Predictions
from .schedule import epoch_rate
from .scores import table


def open_task(experiment: Experiment, session: Session) -> ClassificationTask:
    """Classification's task with both splits, on every process."""
    mine = classification(experiment)
    with asking("the lists of images", {}):
        return ClassificationTask(mine, data_on_all(session, mine))


class ClassificationTask(Task):
    """A classifier, its loss and its data."""

    meters = ("train_top1",)

    def __init__(self, experiment: ClassificationExperiment, data: Data | None, classes: int = 0) -> None:
        """data: None where only steps are taken, on batches from elsewhere; then classes says how many there are."""
        self.experiment, self._data = experiment, data
        self.classes = classes if data is None else len(data.classes)
        self.repeats = experiment.data.repeats
        self.strided = self.repeats > 1
        if data is not None:
            self.training_images = shown(len(data.train), self.repeats)
            self.validation_images = len(data.val)
        self._normalisations = dict[Any, Normalisation]()

    @property
    def data(self) -> Data:
        """Both splits."""
        assert self._data is not None
        return self._data

    def describe(self) -> str:
        """See `Task`."""
        return (
            f"{len(self.data.train):,} training and {len(self.data.val):,} validation images of "
            f"{len(self.data.classes)} classes"
        )

    def settled(self, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
        """See `Task`; what an epoch shows, and the learning rate for this batch."""
        train = self.experiment.train
        views = steps_per_epoch(self.training_images, train.batch) * train.batch
        images, words = -(-views // self.repeats), list[str]()
        if self.repeats > 1:
            words.append(
                f"an epoch shows {views:,} views of {images:,} images, each {self.repeats} times (data.repeats)"
            )
        if train.lr_batch:
            words.append(
                f"learning rate {train.peak:.4g}: train.lr={train.lr:g} x {train.batch} / {train.lr_batch} "
                "(train.batch, train.lr_batch)"
            )
        return {"epoch": {"views": views, "images": images}, "learning_rate": train.peak}, words

    def resolved(self, experiment: Experiment) -> ClassificationTask:
        """See `Task`."""
        return type(self)(classification(experiment), self._data, self.classes)

    def versions(self) -> dict[str, dict[str, Any]]:
        """See `Task`; of each split the listing of its files."""
        return self.data.versions()

    # -- the model ----------------------------------------------------------------------------------------------------

    def build(self, weights: bool) -> ImageClassifier:
        """See `Task`."""
        return model_of(self.experiment, self.classes, weights)

    @property
    def why_eager(self) -> str:
        """See `Task`."""
        return why_eager(self.experiment.backbone)

    def start_from(self, model: nn.Module, path: Path) -> str:
        """See `Task`."""
        return start_from(_classifier(model), self.experiment, self.data.classes, path)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See `Task`."""
        return parameter_groups(_classifier(model), self.experiment.train)

    def checkpointed(self, model: nn.Module, which: Literal["backbone", "all"]) -> list[nn.Module]:
        """See `Task`."""
        return _classifier(model).checkpointed()

    def parameter_counts(self, model: nn.Module) -> str:
        """See `Task`."""
        return parameter_counts(_classifier(model))

    # -- a step -------------------------------------------------------------------------------------------------------

    def lr_factor(self, step: int, epoch_steps: int, settings: TrainConfig) -> float:
        """See `Task`; of the DeiT recipe one for each epoch."""
        if settings.schedule != "deit" or not isinstance(settings, ClassificationTrainConfig):
            return super().lr_factor(step, epoch_steps, settings)
        return epoch_rate(step // epoch_steps, settings) / settings.peak

    def order(self, seed: int, epoch: int) -> Tensor:
        """See `Task`; where augmentation is repeated, every image several times in a row."""
        return repeated(shuffled(len(self.data.train), seed, epoch), self.repeats)

    def batches(self, model: nn.Module, sampler: StepBatches, pin_memory: bool, ends: Ends) -> Iterator[LabelledBatch]:
        """See `Task`."""
        workers = self.experiment.data.workers
        return batches(training_loader(self.data.train, sampler, workers=workers, pin_memory=pin_memory), ends)

    def forward(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """See `Task`; logits [B, K]."""
        data = self.experiment.data
        images = self._normalised(model, batch.images)
        if data.erasing:
            images = erase(images, batch.erased)
        if data.mixes:
            images = mix(images, batch.share, batch.box)
        logits: Tensor = model(images)
        return logits

    def _normalised(self, model: nn.Module, images: Tensor) -> Tensor:
        # Below what spreads the model over processes and sets its precision.
        inner = next(module for module in model.modules() if isinstance(module, ImageClassifier))
        key = inner.mean, inner.std, inner.memory_format
        if key not in self._normalisations:
            self._normalisations[key] = Normalisation(*key)
        return self._normalisations[key](images)

    def loss(
        self, output: Tensor, answer: None, batch: LabelledBatch, divisors: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """See `Task`; where images are mixed, top-1 is of the label of the larger part."""
        wanted = targets(batch.labels, output.shape[1], batch.share, self.experiment.loss.smoothing)
        total = soft_target_loss(output, wanted, divisors[0])
        right = output.detach().argmax(dim=1) == mixed_labels(batch.labels, batch.share)
        return total, right.float().mean()[None] * share

    # -- an evaluation ------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        model: nn.Module,
        run: Path,
        epoch: int,
        session: Session,
        on_batch: Callable[[int, int], None],
        ends: Ends,
    ) -> Evaluation | None:
        """See `Task`."""
        folder, data = evaluation_of(run, epoch), self.data
        scores = evaluate_to(folder, _classifier(model), data.val, self.experiment, session, on_batch, ends)
        if scores is None:
            return None
        metrics = {name: getattr(scores, name) for name in ("top1", "top5", "loss", "images")}
        return Evaluation(metrics, table(scores), scores.line)

    def draw(self, run: Path, epoch: int) -> None:
        """See `Task`."""
        found = Predictions.read(evaluation_of(run, epoch) / NAME)
        draw_predictions(self.data.val, found, run / "predictions.png")

    def discard(self, run: Path, epoch: int) -> None:
        """See `Task`."""
        if self.experiment.train.keep_predictions != "all":
            (evaluation_of(run, epoch) / NAME).unlink(missing_ok=True)

    # -- what is kept -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `Task`; the names of the classes."""
        return {"classes": list(self.data.classes)}

    def state_faults(self, state: Mapping[str, Any]) -> list[str]:
        """See `Task`."""
        return class_faults(state.get("classes"), self.data.classes)

    def files(self) -> dict[str, Any]:
        """See `Task`."""
        return {"classes.json": [{"id": label, "name": name} for label, name in enumerate(self.data.classes)]}


def class_faults(found: object, classes: Sequence[str]) -> list[str]:
    """What is wrong with the class list of a checkpoint. Raises ValueError when it is not the data set's."""
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return [f"classes is {show(found)}, not a list of names"]
    if found == list(classes):
        return []
    differ = ", ".join(map(repr, sorted({*found} ^ {*classes})[:6]))
    raise ValueError(
        f"of other classes than the data set's: {differ or 'they stand in another order'}. Put the data back, or start "
        "another run (--run NAME) from this one with --init"
    )


def _classifier(model: nn.Module) -> ImageClassifier:
    assert isinstance(model, ImageClassifier)
    return model
