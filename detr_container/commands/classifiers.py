"""The commands that open a trained classifier: evaluate, predict, export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detr_container.base.limits import Side, between, natural, positive
from detr_container.base.terminal import console
from detr_container.config.arguments import parse

from .left_out import report_refused

if TYPE_CHECKING:
    import torch

    from detr_container.config.classification import ClassificationExperiment
    from detr_container.tasks.classification.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What to know of a classifier's file that does not say everything itself."""

    experiment: str = ""
    """The named experiment that a published file is of, where it should not be guessed."""
    backbone: str = ""
    """Or its network alone: timm/NAME as timm spells it, resnet50, container_light, ..."""
    weights: Literal["auto", "ema", "model"] = "auto"
    """Of a file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    classes: Path | None = None
    """Names of the rows, where the file has none: a file of one a line or of JSON, or a folder with one per class."""
    interpolate: bool = False
    """container_pam and mh_mlp: interpolate their affinities for other input sizes (`backbone.dense`)."""

    def opened(self, source: str, device: torch.device) -> Trained:
        """The classifier of a run's folder, of a file, or timm's."""
        from detr_container.tasks.classification.trained import Asked, open_trained

        if self.experiment and self.backbone:
            raise ValueError("--experiment with --backbone: an experiment names its network, so give one of them")
        return open_trained(
            source, device, Asked(self.experiment, self.backbone, self.weights, self.classes, self.interpolate)
        )


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Options of `evaluate`."""

    model: tyro.conf.Positional[str]
    """A run's folder, a checkpoint file (ours, CONTAINER-LIGHT's, torchvision's, timm's), or timm/NAME: its weights."""
    data_root: Path | None = None
    """Evaluate on ROOT/val instead of the run's validation split."""
    images: Path | None = None
    """Evaluate on this folder, in which a folder per class holds its images."""
    size: tuple[Side, ...] = ()
    """Input sizes in pixels, one or several; none: as in training (data.eval_size)."""
    crop_ratio: Annotated[float, between(0.0, 1.0)] = 0.0
    """The shorter side is resized to the input size divided by this, and the centre cut out; 0: as in training."""
    output: Path | None = None
    """Where predictions.npz and scores.json go; default: `evaluation` in the run, beside the file, or here."""
    eval_batch: Annotated[int, natural(65_536)] = 0
    """Images per forward pass; 0: as in training."""
    workers: Annotated[int, between(-1, 512)] = -1
    """Loader processes; -1: as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""

    def of(self, experiment: ClassificationExperiment) -> ClassificationExperiment:
        """The model's experiment with the data and the settings that were asked for."""
        data = experiment.data
        if self.data_root is not None and self.images is not None:
            raise ValueError("--data-root with --images: give one of them")
        if self.data_root is not None or self.images is not None:
            data = replace(data, root=self.data_root, val_images=self.images, make_shapes=(0, 0, 0))
        changed = replace(
            data,
            crop_ratio=self.crop_ratio or data.crop_ratio,
            eval_batch=self.eval_batch or data.eval_batch,
            workers=data.workers if self.workers < 0 else self.workers,
        )
        return replace(experiment, data=changed)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        path = Path(self.model)
        beside = path if path.is_dir() else path.parent if path.exists() else Path()
        return self.output or beside / "evaluation"


def evaluate(arguments: Sequence[str], about: str) -> int:
    """Top-1 and top-5 of a classifier at one size or several, by class, and what is taken for what."""
    options = parse(EvaluateOptions, arguments, "evaluate", about)
    from detr_container.base.files import refuse_links
    from detr_container.engine.run import WRITTEN
    from detr_container.engine.session import open_session
    from detr_container.tasks.classification.at_sizes import evaluate_at, summary
    from detr_container.tasks.classification.predictions import NAME
    from detr_container.tasks.classification.together import trained_on_all, validation_on_all

    with open_session(options.device) as session:
        trained = trained_on_all(session, options.model, lambda source: options.opened(source, session.device))
        experiment = options.of(trained.experiment)
        if options.output is None and Path(options.model).is_dir():
            refuse_links(Path(options.model), WRITTEN)
        folder, remark = validation_on_all(session, experiment, trained)
        sizes = options.size or (experiment.data.evaluated_at,)
        found = evaluate_at(sizes, options.folder, trained, folder, experiment, session)
        if session.main:
            screen = console()
            screen.print(*summary(found, trained))
            step = f" (step {trained.step})" if trained.step else ""
            wrote = f"{options.folder}/{NAME} and scores.json"
            screen.print(f"{trained.source}{step}, {remark}; wrote {wrote}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class PredictOptions(ModelOptions):
    """Options of `predict`."""

    model: tyro.conf.Positional[str]
    """A run's folder, a checkpoint file (ours, CONTAINER-LIGHT's, torchvision's, timm's), or timm/NAME: its weights."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    output: Path = Path("predictions")
    """Where predictions.json (or .csv) and the sheet go."""
    format: Literal["json", "csv"] = "json"
    """Of the file: every image's five most probable classes with their probabilities."""
    sheet: bool = True
    """Draw the first images on one sheet, predictions.jpg."""
    size: Annotated[int, natural(16_384)] = 0
    """The input size in pixels; 0: as in training (data.eval_size)."""
    shown: Annotated[int, positive(5)] = 5
    """How many classes of each image to print."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def predict(arguments: Sequence[str], about: str) -> int:
    """The most probable classes of images, as JSON or CSV and as a sheet."""
    options = parse(PredictOptions, arguments, "predict", about)
    from detr_container.datasets.given import find_images
    from detr_container.engine.session import choose_device
    from detr_container.tasks.classification.predict import SHEET, write_predictions

    paths = find_images(options.images)
    trained = options.opened(options.model, choose_device(options.device))
    if options.size:
        trained = trained.at(options.size)
    records, refused = write_predictions(trained, paths, options.output, options.format, options.sheet)
    screen = console()
    for record in records:
        best = record["classes"][: options.shown]
        listed = ", ".join(f"{guess['name']} {100 * guess['probability']:.1f} %" for guess in best)
        screen.print(f"{record['file']}: {listed}", soft_wrap=True)
    written = [f"predictions.{options.format}", *([SHEET] if options.sheet else [])]
    screen.print(f"wrote {' and '.join(written)} to {options.output}", soft_wrap=True)
    return report_refused(refused)


@dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Options of `export`."""

    model: tyro.conf.Positional[str]
    """A run's folder or a checkpoint file."""
    target: tyro.conf.Positional[Path]
    """The file to write (of safetensors where it ends in .safetensors); what it is goes beside it, into FILE.json."""
    layout: Literal["auto", "container", "torchvision", "timm"] = "auto"
    """Names as CONTAINER-LIGHT's published code, torchvision or timm expects them; `auto`: the network's own."""


def export(arguments: Sequence[str], about: str) -> int:
    """Save a trained classifier's weights under the names of other code."""
    options = parse(ExportOptions, arguments, "export", about)
    import torch

    from detr_container.engine.weight_files import check_target
    from detr_container.tasks.classification.export import write_export

    check_target(options.target, options.model)
    trained = options.opened(options.model, torch.device("cpu"))
    count, note = write_export(trained, options.target, options.layout)
    console().print(f"wrote {count} tensors to {options.target}, and what they are to {note}", soft_wrap=True)
    return 0
