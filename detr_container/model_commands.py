"""The commands on a trained detector: evaluate, predict, inspect, export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .arguments import parse
from .limits import between, natural, positive
from .terminal import console


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or a checkpoint file: ours, DETR's, SMCA-DETR's or Hugging Face's DETR's (or its folder)."""
    experiment: str = ""
    """The named experiment of a published checkpoint, where it should not be guessed."""
    weights: Literal["auto", "ema", "model"] = "auto"
    """Of a file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    classes: Path | None = None
    """A COCO annotation file that says what the class rows are of a file that does not: in order, or by id."""
    data_root: Path | None = None
    """Evaluate on this data set's validation split instead of the run's."""
    images: Path | None = None
    """Evaluate on these pictures (with --annotations)."""
    annotations: Path | None = None
    """Their annotations in COCO's format."""
    output: Path | None = None
    """Where detections.json and scores.json go; default: `evaluation` in the run, or beside the file."""
    evaluator: Literal["faster", "pycocotools"] = "faster"
    """faster-coco-eval or pycocotools; they give the same figures."""
    eval_batch: Annotated[int, natural(65_536)] = 0
    """Pictures per forward pass; 0: as in training."""
    workers: Annotated[int, between(-1, 512)] = -1
    """Loader processes; -1: as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def evaluate(arguments: Sequence[str]) -> int:
    """COCO AP of a run or checkpoint, overall, by size and by class: `evaluate RUN|CHECKPOINT`."""
    options = parse(EvaluateOptions, arguments, "evaluate", evaluate.__doc__)
    from .distributed import session
    from .evaluate import evaluate_to, with_data
    from .files import refuse_links
    from .run import WRITTEN
    from .scores import table
    from .together import trained_on_all, validation_on_all
    from .trained import open_trained

    with session(options.device) as here:
        trained = trained_on_all(
            here,
            options.model,
            lambda path: open_trained(path, here.device, options.experiment, options.weights, options.classes),
        )
        experiment = with_data(trained.experiment, options.data_root, options.images, options.annotations)
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
        dataset = validation_on_all(here, experiment)
        scores = evaluate_to(folder, trained.model, dataset, trained.classes, experiment, here, options.evaluator)
        if scores is not None:
            screen = console()
            screen.print(table(scores))
            screen.print(
                f"{trained.source} (step {trained.step}); wrote {folder}/detections.json and scores.json",
                soft_wrap=True,
            )
        elif here.main:
            sys.stdout.write(
                f"{dataset.annotations.path} has no annotations, so there is no AP; wrote {folder}/detections.json\n"
            )
    return 0


@dataclass(frozen=True)
class PredictOptions:
    """Options of `predict`."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or a checkpoint file: ours, DETR's, SMCA-DETR's or Hugging Face's DETR's (or its folder)."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, or folders of pictures."""
    output: Path = Path("predictions")
    """Where predictions.json and the pictures go."""
    threshold: Annotated[float, between(0.0, 1.0)] = 0.5
    """Leave out detections with a lower score."""
    maps: bool = False
    """Also draw the decoder's attention, and SMCA's Gaussians, over each picture."""
    experiment: str = ""
    """The named experiment of a published checkpoint, where it should not be guessed."""
    weights: Literal["auto", "ema", "model"] = "auto"
    """Of a file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    classes: Path | None = None
    """A COCO annotation file that says what the class rows are of a file that does not: in order, or by id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def predict(arguments: Sequence[str]) -> int:
    """Detections on pictures, as JSON and as pictures: `predict RUN|CHECKPOINT IMAGES...`."""
    options = parse(PredictOptions, arguments, "predict", predict.__doc__)
    from .distributed import choose_device
    from .predict import find_pictures, write_predictions
    from .trained import open_trained

    paths = find_pictures(options.images)
    trained = open_trained(
        options.model, choose_device(options.device), options.experiment, options.weights, options.classes
    )
    records, refused = write_predictions(trained, paths, options.output, options.threshold, options.maps)
    screen = console()
    for record in records:
        found = record["detections"]
        screen.print(f"{record['file']}: {len(found)} detections", soft_wrap=True)
    screen.print(f"wrote {options.output}/predictions.json and a picture of each", soft_wrap=True)
    if refused:
        sys.stderr.write("".join(f"error: {message}\n" for message in refused))
        return 1
    return 0


@dataclass(frozen=True)
class InspectOptions:
    """Options of `inspect`."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more run folders or checkpoint files, as `predict` takes them. One that is given twice is numbered."""
    image: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["--images"])]
    """Pictures, or folders of pictures; those of a run's validation set are shown with their ground truth."""
    output: Path = Path("inspection")
    """Where inspection.json and the sheets go."""
    threshold: Annotated[float, between(0.0, 1.0)] = 0.5
    """Leave out detections with a lower score."""
    objects: Annotated[int, positive(1000)] = 6
    """How many objects of a picture get a line of maps, the surest first; inspection.json has all of them."""
    experiment: tuple[str, ...] = ()
    """The named experiments of published checkpoints: one per model in their order, "" where it is known or guessed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where there is one."""


def inspect(arguments: Sequence[str]) -> int:
    """Models side by side on a picture: what each found, and where it looked: `inspect RUN RUN --image IMAGES...`."""
    options = parse(InspectOptions, arguments, "inspect", inspect.__doc__)
    from .distributed import choose_device
    from .inspection import open_models, tally, write_inspection
    from .predict import find_pictures

    # The models first: what is missing there has most likely been taken for pictures.
    models = open_models(options.models, choose_device(options.device), options.experiment)
    paths = find_pictures(options.image)
    report = write_inspection(models, paths, options.output, options.threshold, options.objects)
    screen = console()
    for picture in report["pictures"]:
        told = tally(picture, [model.label for model in models])
        screen.print(f"{picture['file']}: {told}; {options.output}/{picture['sheet']}", soft_wrap=True)
    screen.print(f"wrote {options.output}/inspection.json and a sheet of each", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export`."""

    model: tyro.conf.Positional[Path]
    """A run's folder or a checkpoint file."""
    target: tyro.conf.Positional[Path]
    """The file to write."""
    layout: Literal["published", "hugging-face"] = "published"
    """Names as the published DETR and SMCA-DETR code, or Hugging Face's DETR, expects them."""
    rows: Literal["id", "order"] = "id"
    """Class rows at their category ids, as published; or in the order of the class list, as fine-tuned heads often."""
    experiment: str = ""
    """The named experiment of a published checkpoint, where it should not be guessed."""
    weights: Literal["auto", "ema", "model"] = "auto"
    """Of a file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    classes: Path | None = None
    """A COCO annotation file that says what the class rows are of a file that does not: in order, or by id."""


def export(arguments: Sequence[str]) -> int:
    """Save a trained detector's weights under the names of other code: `export RUN|CHECKPOINT FILE --layout ...`."""
    options = parse(ExportOptions, arguments, "export", export.__doc__)
    import torch

    from .files import atomic_write
    from .trained import exported, open_trained

    cpu = torch.device("cpu")
    trained = open_trained(options.model, cpu, options.experiment, options.weights, options.classes)
    state = exported(trained, options.layout, options.rows)
    content = {"model": state} if options.layout == "published" else state
    atomic_write(options.target, lambda file: torch.save(content, file), follow=True)
    console().print(f"wrote {len(state)} tensors to {options.target}", soft_wrap=True)
    return 0
