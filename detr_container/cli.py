"""The commands. Each reads its options and calls one function; what is slow to import is imported where it is used."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from .arguments import experiment_first, parse, start_logging
from .compare_commands import backbones, compare, report
from .config import Experiment
from .experiments import BUILDERS, named
from .job_commands import cancel, logs, resubmit, status, submit, sweep
from .limits import Many, Pictures, Seed, Workers, between, natural, positive
from .names import place
from .shortage import asking
from .terminal import console, shown

TRACEBACK = "DETR_CONTAINER_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0 done, 1 the run failed, 2 something to mend, 128 + n signal n."""
    # Read when torch is imported, which is later: OpenMP threads that spin for long while they wait take the cores from
    # loader processes and everybody else, and a step on a shared machine then takes up to ten times as long. Threads
    # that never spin make the short steps of small models almost twice as long. A short spin does neither.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    given = list(sys.argv[1:] if arguments is None else arguments)
    start_logging()
    if not given or given[0] in ("-h", "--help", "help"):
        _overview()
        return 0
    if given[0] == "data" and len(given) > 1 and not given[1].startswith("-"):
        given[:2] = [f"data {given[1]}"]
    if given[0] not in COMMANDS:
        near = difflib.get_close_matches(given[0], COMMANDS, n=2)
        return _fail(
            f"there is no command {given[0]!r}" + (f": did you mean {' or '.join(near)}?" if near else ". See --help"),
            2,
        )
    try:
        with asking(f"`{given[0]}`", {}):
            return COMMANDS[given[0]](given[1:])
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 141
    except Exception as error:
        if os.environ.get(TRACEBACK) or not isinstance(error, (ValueError, OSError, FloatingPointError)):
            raise
        return _fail(_told(error), 1 if isinstance(error, FloatingPointError) else 2)


def _fail(message: str, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"{'' if rank == '0' else f'[rank {rank}] '}error: {shown(message, keep=chr(10))}\n")
    return status


def _told(error: Exception) -> str:
    """An error's message; that of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _overview() -> None:
    screen = console()
    screen.print("detr-container: train, evaluate and use DETR-family detectors over many backbones\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, command in COMMANDS.items():
        table.add_row(f"  {name}", (command.__doc__ or "").split("\n")[0])
    screen.print(table)
    screen.print(f"\n`detr-container COMMAND --help` tells all options. {TRACEBACK}=1 adds the traceback to an error.")


def experiments(arguments: Sequence[str]) -> int:
    """List the named experiments: head, backbone, schedule and published AP."""

    @dataclass(frozen=True)
    class Options:
        pass

    parse(Options, arguments, "experiments", experiments.__doc__)
    screen = console()
    for name in BUILDERS:
        entry = named(name)
        x = entry.experiment
        drop = f"drop at {x.train.lr_drop}" if x.train.schedule == "step" else x.train.schedule
        lines = [
            f"{x.head.kind}, {x.head.queries} queries, on {x.backbone.label}",
            f"{x.train.epochs} epochs, {drop}, batch {x.train.batch}",
            f"published box AP on COCO val2017: {entry.ap or 'none'}",
        ]
        screen.print(name, style="bold")
        screen.print(*(f"  {line}" for line in lines), sep="\n", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    run: str = ""
    """Name of the run and its folder; default: the experiment's. A folder that holds a checkpoint is continued."""
    runs: Path = Path("runs")
    """The folder that holds the runs."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return place(self.runs, self.run or self.settings.name)


def train(arguments: Sequence[str]) -> int:
    """Train an experiment: `train EXPERIMENT [--setting value ...]`; alone, or as many processes under torchrun."""
    experiment, rest = experiment_first(arguments, "train")
    options = parse(TrainOptions, rest, "train", train.__doc__, TrainOptions(experiment))
    from .train import train as run

    return run(options.settings, options.folder)


def demo(arguments: Sequence[str]) -> int:
    """Train, evaluate and show a small real run on data it makes itself; minutes on two CPU cores."""
    options = parse(TrainOptions, arguments, "demo", demo.__doc__, TrainOptions(named("demo").experiment))
    from .train import train as run

    status, folder = run(options.settings, options.folder), options.folder
    if status == 0 and (folder / "predictions.png").exists():
        console().print(
            f"\nThe run is in {folder}:\n"
            f"  {folder}/predictions.png   ground truth beside predictions\n"
            f"  {folder}/curves.png        losses, AP and learning rate\n"
            f"Next: detr-container evaluate {folder}; "
            f"detr-container predict {folder} {options.settings.data.root}/val2017 --maps",
            soft_wrap=True,
        )
    return status


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
    from .scoring import table
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


@dataclass(frozen=True)
class ShapesOptions:
    """Options of `data make-shapes`."""

    root: tyro.conf.Positional[Path]
    """The folder to make."""
    train: Pictures = 2000
    """Training pictures."""
    val: Pictures = 200
    """Validation pictures."""
    size: Annotated[int, positive(4096)] = 128
    """Side of the square pictures in pixels."""
    seed: Seed = 0
    """Another seed makes other pictures."""
    workers: Workers = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that draw."""


def data_make_shapes(arguments: Sequence[str]) -> int:
    """Make a small detection data set of overlapping coloured shapes in COCO's layout: `data make-shapes FOLDER`."""
    options = parse(ShapesOptions, arguments, "data make-shapes", data_make_shapes.__doc__)
    from detr_container.datasets.shapes import make_shapes

    with asking("the pictures", {"size": options.size, "workers": options.workers}):
        made = make_shapes(
            options.root, options.train, options.val, options.size, options.seed, options.workers, progress=True
        )
    said = (
        f"made {options.train} training and {options.val} validation pictures in"
        if made
        else "already there, unchanged:"
    )
    console().print(f"{said} {options.root}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class CheckOptions:
    """Options of `data check`."""

    root: tyro.conf.Positional[Path | None] = None
    """A folder in COCO's layout: train2017/, val2017/, annotations/instances_{train,val}2017.json."""
    train_images: Path | None = None
    """Training pictures, where they are not in the root."""
    train_annotations: Path | None = None
    """Training annotations in COCO's format, where they are not in the root."""
    val_images: Path | None = None
    """Validation pictures, where they are not in the root."""
    val_annotations: Path | None = None
    """Validation annotations in COCO's format, where they are not in the root."""
    workers: Workers = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that read pictures."""
    apply_orientation: bool = False
    """Read pictures as training with data.apply_orientation does."""
    examples: Many = 5
    """How many findings of one kind to list."""


def data_check(arguments: Sequence[str]) -> int:
    """Read a data set as training will and report what is wrong: `data check ROOT`. Exit status 1 on errors."""
    options = parse(CheckOptions, arguments, "data check", data_check.__doc__)
    from detr_container.datasets.annotations import resolve
    from detr_container.datasets.check import check_dataset

    pairs = resolve(
        options.root, options.train_images, options.train_annotations, options.val_images, options.val_annotations
    )
    splits = dict(zip(("train", "val"), pairs, strict=True))
    with asking("the check", {"workers": options.workers}):
        report = check_dataset(splits, options.workers, progress=True, apply_orientation=options.apply_orientation)
    sys.stdout.write("\n".join(report.lines(options.examples)) + "\n")
    return 1 if report.errors else 0


def benchmark(arguments: Sequence[str]) -> int:
    """Speed, memory, parameters and FLOPs of experiments, side by side: `benchmark EXPERIMENT [EXPERIMENT ...]`."""
    from .benchmark import BenchmarkOptions, run

    experiment, rest = experiment_first(arguments, "benchmark")
    experiments = [experiment]
    while rest and not rest[0].startswith("-"):
        experiment, rest = experiment_first(rest, "benchmark")
        experiments.append(experiment)
    doc = benchmark.__doc__
    return run([parse(BenchmarkOptions, rest, "benchmark", doc, BenchmarkOptions(each)) for each in experiments])


def preflight(arguments: Sequence[str]) -> int:
    """What to know before waiting in a queue: data, memory, speed, hours, saving and evaluation, in a minute."""
    from .preflight import PreflightOptions, run

    experiment, rest = experiment_first(arguments, "preflight")
    return run(parse(PreflightOptions, rest, "preflight", preflight.__doc__, PreflightOptions(experiment)))


def soak(arguments: Sequence[str]) -> int:
    """Interrupt a run at random, twenty times, and compare it with an undisturbed one: `soak [EXPERIMENT]`."""
    from .jobs import usual_resources
    from .soak import SoakOptions, default, run

    named_first = arguments and not arguments[0].startswith("-")
    experiment, rest = experiment_first(arguments if named_first else ["debug", *arguments], "soak")
    return run(parse(SoakOptions, rest, "soak", soak.__doc__, default(experiment, usual_resources())))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "experiments": experiments,
    "backbones": backbones,
    "preflight": preflight,
    "train": train,
    "submit": submit,
    "status": status,
    "logs": logs,
    "cancel": cancel,
    "resubmit": resubmit,
    "sweep": sweep,
    "soak": soak,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
    "benchmark": benchmark,
    "export": export,
    "data make-shapes": data_make_shapes,
    "data check": data_check,
    "compare": compare,
    "report": report,
    "demo": demo,
}
