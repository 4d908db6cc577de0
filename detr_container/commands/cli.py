"""The commands. Each reads its options and calls one function; what is slow to import is imported where it is used."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from detr_container.base.shortage import asking
from detr_container.base.terminal import console, shown, start_logging
from detr_container.config.arguments import experiment_first, parse
from detr_container.config.detection import detection
from detr_container.config.experiments import named, names
from detr_container.config.settings import Experiment
from detr_container.jobs.names import place

from .compare import backbones, compare, report
from .d2 import d2_submit, d2_train
from .data import data_canvases, data_check, data_make_shapes, data_speed
from .detectors import detections, inspect
from .jobs import cancel, logs, resubmit, status, submit, sweep
from .models import evaluate, export, predict

TRACEBACK = "DETR_CONTAINER_TRACEBACK"
_HELP = ("-h", "--help", "help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0 done, 1 the run failed, 2 something to fix, 128 + n signal n."""
    # Read when torch is imported, which is later: OpenMP threads that spin for long while they wait take the cores from
    # loader processes and everybody else, and a step on a shared machine then takes up to ten times as long. Threads
    # that never spin make the short steps of small models almost twice as long. A short spin does neither.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    given = list(sys.argv[1:] if arguments is None else arguments)
    start_logging()
    if not given or given[0] in _HELP:
        _overview("detr-container: train, evaluate and use DETR-family detectors and classifiers over many backbones")
        return 0
    if any(name.startswith(f"{given[0]} ") for name in COMMANDS):
        if len(given) == 1 or given[1] in _HELP:
            _overview(f"detr-container {given[0]} ...", f"{given[0]} ")
            return 0
        given[:2] = [f"{given[0]} {given[1]}"]
    if given[0] not in COMMANDS:
        return _fail(f"there is no command {given[0]!r}{_nearest(given[0])}", 2)
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
        return _fail(_message(error), 1 if isinstance(error, FloatingPointError) else 2)


def _fail(message: str, status: int) -> int:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"{'' if rank == '0' else f'[rank {rank}] '}error: {shown(message, keep=chr(10))}\n")
    return status


def _message(error: Exception) -> str:
    """An error's message; that of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _nearest(wrong: str) -> str:
    """What to say of a name that no command has: those like it, or where there are none, that begin with its word."""
    near = difflib.get_close_matches(wrong, COMMANDS, n=2)
    if near:
        return f": did you mean {' or '.join(near)}?"
    beside = [name for name in COMMANDS if name.startswith(f"{wrong.split(' ')[0]} ")]
    return f": it is one of {', '.join(beside)}" if beside else ". See --help"


def _overview(title: str, start: str = "") -> None:
    """Print the commands whose names begin with `start`, and what they do."""
    screen = console()
    screen.print(f"{title}\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, command in COMMANDS.items():
        if name.startswith(start):
            table.add_row(f"  {name}", (command.__doc__ or "").split("\n")[0])
    screen.print(table)
    screen.print(f"\n`detr-container COMMAND --help` lists all options. {TRACEBACK}=1 adds the traceback to an error.")


def experiments(arguments: Sequence[str]) -> int:
    """List the named experiments by task: model, backbone, schedule and what was published of them."""

    @dataclass(frozen=True)
    class Options:
        pass

    parse(Options, arguments, "experiments", experiments.__doc__)
    screen, task = console(), ""
    for name in names():
        entry = named(name)
        if entry.experiment.task != task:
            screen.print(f"{chr(10) if task else ''}{entry.experiment.task}", style="underline")
            task = entry.experiment.task
        train = entry.experiment.train
        again = f" and {train.lr_drop_again}" if train.lr_drop_again else ""
        drop = f"drop at {train.lr_drop}{again}" if train.schedule == "step" else train.schedule
        lines = [
            entry.experiment.model_label,
            f"{train.epochs} epochs, {drop}, batch {train.batch}",
            f"published {entry.published[0].what}: {'; '.join(map(str, entry.published))}"
            if entry.published
            else "not published",
        ]
        screen.print(name, style="bold")
        screen.print(*(f"  {line}" for line in lines), sep="\n", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    run: str = ""
    """Name of the run and its folder; default: the experiment's. A run resumes from the checkpoint in its folder."""
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
    from detr_container.engine.train import train as run

    return run(options.settings, options.folder)


def demo(arguments: Sequence[str]) -> int:
    """Train, evaluate and show a small real run on data it makes itself; minutes on two CPU cores."""
    options = parse(TrainOptions, arguments, "demo", demo.__doc__, TrainOptions(named("demo").experiment))
    from detr_container.engine.train import train as run

    status, folder = run(options.settings, options.folder), options.folder
    if status == 0 and (folder / "predictions.png").exists():
        console().print(
            f"\nThe run is in {folder}:\n"
            f"  {folder}/predictions.png   ground truth beside predictions\n"
            f"  {folder}/curves.png        losses, AP and learning rate\n"
            f"Next: detr-container evaluate {folder}; "
            f"detr-container predict {folder} {detection(options.settings).data.root}/val2017 --maps",
            soft_wrap=True,
        )
    return status


def benchmark(arguments: Sequence[str]) -> int:
    """Speed, memory, parameters and FLOPs of experiments, side by side: `benchmark EXPERIMENT [EXPERIMENT ...]`."""
    from detr_container.measure.benchmark import BenchmarkOptions, run
    from detr_container.measure.options import MeasureOptions

    experiment, rest = experiment_first(arguments, "benchmark")
    experiments = [experiment]
    while rest and not rest[0].startswith("-"):
        experiment, rest = experiment_first(rest, "benchmark")
        experiments.append(experiment)
    measure = replace(MeasureOptions(), sizes=experiments[0].usual_sizes, classes=experiments[0].usual_classes)
    defaults = [BenchmarkOptions(each, measure) for each in experiments]
    return run([parse(BenchmarkOptions, rest, "benchmark", benchmark.__doc__, default) for default in defaults])


def preflight(arguments: Sequence[str]) -> int:
    """What to know before waiting in a queue: data, memory, speed, hours, saving and evaluation, in a minute."""
    from detr_container.measure.preflight import PreflightOptions, run

    experiment, rest = experiment_first(arguments, "preflight")
    return run(parse(PreflightOptions, rest, "preflight", preflight.__doc__, PreflightOptions(experiment)))


def soak(arguments: Sequence[str]) -> int:
    """Interrupt a run at random, twenty times, and compare it with an uninterrupted one: `soak [EXPERIMENT]`."""
    from detr_container.jobs.submit import usual_resources
    from detr_container.measure.soak import SoakOptions, default, run

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
    "detections": detections,
    "predict": predict,
    "inspect": inspect,
    "benchmark": benchmark,
    "export": export,
    "data make-shapes": data_make_shapes,
    "data check": data_check,
    "data speed": data_speed,
    "data canvases": data_canvases,
    "compare": compare,
    "report": report,
    "d2 train": d2_train,
    "d2 submit": d2_submit,
    "demo": demo,
}
