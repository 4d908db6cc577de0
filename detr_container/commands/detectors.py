"""The commands that open a trained detector, or what it has found: evaluate, detections, predict, inspect, export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detr_container.base.limits import between, natural, positive
from detr_container.base.terminal import console
from detr_container.config.arguments import parse

from .left_out import report_refused
from .which_task import of_model

if TYPE_CHECKING:
    import torch

    from detr_container.tasks.detection.trained import Trained


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What to know of a detector's file that does not say everything itself."""

    experiment: str = ""
    """The named experiment of a published checkpoint, where it should not, or cannot, be guessed."""
    weights: Literal["auto", "ema", "model"] = "auto"
    """Of a file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    classes: Path | None = None
    """A COCO annotation file that says what the class rows are of a file that does not: in order, or by id."""

    def opened(self, path: Path, device: torch.device) -> Trained:
        """The detector of a run's folder or a file."""
        from detr_container.tasks.detection.trained import open_trained

        return open_trained(path, device, self.experiment, self.weights, self.classes)


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Options of `evaluate`."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or a file: ours, DETR's, SMCA-DETR's, detectron2's or Hugging Face's DETR's (or its folder)."""
    data_root: Path | None = None
    """Evaluate on this data set's validation split instead of the run's."""
    images: Path | None = None
    """Evaluate on these images (with --annotations)."""
    annotations: Path | None = None
    """Their annotations in COCO's format."""
    d2_dataset: str = ""
    """Evaluate on NAME_val of detectron2's catalog, as data.d2_dataset has it."""
    d2_import: str = ""
    """The Python module that registers it there."""
    output: Path | None = None
    """Where detections.npz and scores.json go; default: `evaluation` in the run, or beside the file."""
    coco_json: Path | None = None
    """Also write the detections to this file in COCO's result format, as other programs and COCO's server read them."""
    evaluator: Literal["faster", "pycocotools"] = "faster"
    """faster-coco-eval or pycocotools; they give the same metrics."""
    eval_batch: Annotated[int, natural(65_536)] = 0
    """Images per forward pass; 0: as in training."""
    workers: Annotated[int, between(-1, 512)] = -1
    """Loader processes; -1: as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def evaluate(arguments: Sequence[str], about: str) -> int:
    """COCO AP of a detector, overall, by size and by class."""
    options = parse(EvaluateOptions, arguments, "evaluate", about)
    from detr_container.base.files import refuse_links
    from detr_container.engine.run import WRITTEN
    from detr_container.engine.session import open_session
    from detr_container.tasks.detection.coco_results import write_results
    from detr_container.tasks.detection.detections import NAME, Detections
    from detr_container.tasks.detection.evaluate import evaluate_to, with_data
    from detr_container.tasks.detection.scores import table
    from detr_container.tasks.detection.together import trained_on_all, validation_on_all

    with open_session(options.device) as session:
        trained = trained_on_all(session, options.model, lambda path: options.opened(path, session.device))
        given = (options.data_root, options.images, options.annotations, options.d2_dataset, options.d2_import)
        experiment = with_data(trained.experiment, *given)
        data = experiment.data
        changed = replace(
            data,
            eval_batch=options.eval_batch or data.eval_batch,
            workers=data.workers if options.workers < 0 else options.workers,
        )
        experiment = replace(experiment, data=changed)
        if options.output is None and options.model.is_dir():
            refuse_links(options.model, WRITTEN)
        folder = options.output or (options.model if options.model.is_dir() else options.model.parent) / "evaluation"
        dataset = validation_on_all(session, experiment)
        scores = evaluate_to(folder, trained.model, dataset, trained.classes, experiment, session, options.evaluator)
        if not session.main:
            return 0
        written = [f"{folder}/{NAME}"]
        if options.coco_json is not None:
            write_results(options.coco_json, Detections.read(folder / NAME).columns(), follow=True)
            written.append(str(options.coco_json))
        screen = console()
        if scores is not None:
            screen.print(table(scores))
            summary = f"{trained.source} (step {trained.step}); wrote {', '.join(written)} and scores.json"
        else:
            summary = f"{dataset.annotations.path} has no annotations, so there is no AP; wrote {' and '.join(written)}"
        screen.print(summary, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class DetectionsOptions:
    """Options of `detections`."""

    source: tyro.conf.Positional[Path]
    """A run's folder, or one that holds what an evaluation left, as `evaluate` writes it."""
    target: tyro.conf.Positional[Path]
    """The file to write."""
    epoch: Annotated[int, natural(10**9)] = 0
    """Of a run: after which epoch; 0: the newest whose detections are there."""


def detections(arguments: Sequence[str]) -> int:
    """Write the detections of an evaluation in COCO's result format: `detections RUN|FOLDER FILE`."""
    options = parse(DetectionsOptions, arguments, "detections", detections.__doc__)
    _refuse_classifiers("detections", [options.source], "`evaluate` writes what it predicts to predictions.npz")
    from detr_container.tasks.detection.coco_results import evaluation_folder, read_kept, write_results

    folder = evaluation_folder(options.source, options.epoch)
    found = read_kept(folder)
    write_results(options.target, found, follow=True)
    console().print(f"wrote {len(found.scores)} detections of {folder} to {options.target}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class PredictOptions(ModelOptions):
    """Options of `predict`."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or a file: ours, DETR's, SMCA-DETR's, detectron2's or Hugging Face's DETR's (or its folder)."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    output: Path = Path("predictions")
    """Where predictions.json and the images go."""
    threshold: Annotated[float, between(0.0, 1.0)] = 0.5
    """Leave out detections with a lower score."""
    maps: bool = False
    """Also draw the decoder's attention, and SMCA's Gaussians, over each image."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def predict(arguments: Sequence[str], about: str) -> int:
    """Detections on images, as JSON and as images."""
    options = parse(PredictOptions, arguments, "predict", about)
    from detr_container.datasets.given import find_images
    from detr_container.engine.session import choose_device
    from detr_container.tasks.detection.predict import write_predictions

    paths = find_images(options.images)
    trained = options.opened(options.model, choose_device(options.device))
    records, refused = write_predictions(trained, paths, options.output, options.threshold, options.maps)
    screen = console()
    for record in records:
        found = record["detections"]
        screen.print(f"{record['file']}: {len(found)} detections", soft_wrap=True)
    screen.print(f"wrote {options.output}/predictions.json and an image of each", soft_wrap=True)
    return report_refused(refused)


def _refuse_classifiers(command: str, models: Sequence[Path], remedy: str) -> None:
    """Raise ValueError for a model of classification. remedy: what serves there."""
    for model in models:
        if of_model(str(model)) == "classification":
            raise ValueError(f"{model} is of classification, and `{command}` is about objects and boxes: {remedy}")


@dataclass(frozen=True)
class InspectOptions:
    """Options of `inspect`."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more run folders or checkpoint files, as `predict` takes them. One that is given twice is numbered."""
    image: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["--images"])]
    """Images, or folders of images; those of a run's validation set are shown with their ground truth."""
    output: Path = Path("inspection")
    """Where inspection.json and the sheets go."""
    threshold: Annotated[float, between(0.0, 1.0)] = 0.5
    """Leave out detections with a lower score."""
    objects: Annotated[int, positive(1000)] = 6
    """How many objects of an image get a line of maps, the surest first; inspection.json has all of them."""
    experiment: tuple[str, ...] = ()
    """The named experiments of published checkpoints: one per model in their order, "" where it is known or guessed."""
    weights: tuple[Literal["auto", "ema", "model"], ...] = ()
    """Of files that have both: the averaged (`ema`) or the raw weights (`model`), one word per model in their order."""
    classes: tuple[str, ...] = ()
    """COCO annotation files that say what the class rows are, one per model in their order, "" for none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def inspect(arguments: Sequence[str]) -> int:
    """Models side by side on an image: what each found, and where it looked: `inspect RUN RUN --image IMAGES...`."""
    options = parse(InspectOptions, arguments, "inspect", inspect.__doc__)
    _refuse_classifiers("inspect", options.models, "`predict MODEL IMAGES...` shows what each takes an image for")
    from detr_container.datasets.given import find_images
    from detr_container.engine.session import choose_device
    from detr_container.tasks.detection.inspection import open_models, tally, write_inspection

    # The models first: what is missing there has most likely been taken for images.
    device = choose_device(options.device)
    models = open_models(options.models, device, options.experiment, options.weights, options.classes)
    paths = find_images(options.image)
    report = write_inspection(models, paths, options.output, options.threshold, options.objects)
    screen = console()
    for image in report["images"]:
        summary = tally(image, [model.label for model in models])
        screen.print(f"{image['file']}: {summary}; {options.output}/{image['sheet']}", soft_wrap=True)
    screen.print(f"wrote {options.output}/inspection.json and a sheet of each", soft_wrap=True)
    return report_refused(report["refused"])


@dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Options of `export`."""

    model: tyro.conf.Positional[Path]
    """A run's folder or a checkpoint file."""
    target: tyro.conf.Positional[Path]
    """The file to write (of safetensors where it ends in .safetensors), or the folder."""
    layout: Literal["published", "detectron2", "hugging-face", "hugging-face-folder"] = "published"
    """Names as the published DETR and SMCA-DETR code, detectron2, or Hugging Face's DETR expects them; or a whole
    folder for `from_pretrained` of transformers, with class names and settings."""
    rows: Literal["id", "order"] = "id"
    """Class rows at their category ids, as published; or in the order of the class list, as fine-tuned heads often.
    detectron2's are always in the order of the ids."""


def export(arguments: Sequence[str], about: str) -> int:
    """Save a trained detector's weights under the names of other code."""
    options = parse(ExportOptions, arguments, "export", about)
    import torch

    from detr_container.engine.weight_files import check_target
    from detr_container.tasks.detection.export import write_export

    check_target(options.target, options.model)
    trained = options.opened(options.model, torch.device("cpu"))
    count = write_export(trained, options.target, options.layout, options.rows)
    console().print(f"wrote {count} tensors to {options.target}", soft_wrap=True)
    return 0
