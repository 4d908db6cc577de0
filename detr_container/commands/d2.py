"""The commands of detectron2's own loop: d2 train, d2 submit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detr_container.base.terminal import console
from detr_container.config.arguments import parse
from detr_container.launch.resources import Resources

_USAGE = "CONFIG [key=value ...] [--option value ...]"


@dataclass(frozen=True)
class D2TrainOptions:
    """Options of `d2 train`."""

    output_dir: Path | None = None
    """Where to train; default: the configuration's. A training resumes from the checkpoint in its folder."""
    module: str = ""
    """A module to import first, since it registers data sets or models."""


@dataclass(frozen=True)
class D2SubmitOptions:
    """Options of `d2 submit`."""

    slurm: Resources = field(default_factory=Resources)
    output_dir: Path | None = None
    """Where to train; default: the configuration's. A training resumes from the checkpoint in its folder."""
    module: str = ""
    """A module to import first, since it registers data sets or models."""
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """`slurm`; `local`: the same job on this machine, in the background; `debug`: in this process, with a debugger."""
    dry_run: bool = False
    """Print the batch script and submit nothing."""


def d2_train(arguments: Sequence[str]) -> int:
    """Train a configuration in detectron2's own loop, here or under torchrun: `d2 train CONFIG [key=value ...]`.

    CONFIG is one of ours by name (detr_r50_50e), a LazyConfig (.py) or yacs settings (.yaml). key=value changes what
    it says, before any option: of a LazyConfig as in optimizer.lr=2e-4, of yacs settings as in SOLVER.BASE_LR=2e-4.
    It resumes from the newest checkpoint in its folder; which images come next is drawn anew.
    """
    config, overrides, rest = _split(arguments, "train")
    options = parse(D2TrainOptions, rest, f"d2 train {config or 'CONFIG'}", d2_train.__doc__)
    with _detectron2():
        from detr_container.d2.run import train

        return train(_named(config, "train"), overrides, options.output_dir, module=options.module)


def d2_submit(arguments: Sequence[str]) -> int:
    """Train a configuration in detectron2's own loop as a Slurm job: `d2 submit CONFIG [key=value ...]`.

    CONFIG and key=value are those of `d2 train`. The same command resumes what was ended.
    """
    from detr_container.jobs.submit import usual_resources

    config, overrides, rest = _split(arguments, "submit")
    default = D2SubmitOptions(usual_resources())
    options = parse(D2SubmitOptions, rest, f"d2 submit {config or 'CONFIG'}", d2_submit.__doc__, default)
    with _detectron2():
        from detr_container.d2 import jobs

        training = jobs.Training(_named(config, "submit"), tuple(overrides), options.output_dir, options.module)
        if options.dry_run:
            sys.stdout.write(jobs.dry_run(training, options.slurm) + "\n")
            return 0
        submission, folder = jobs.submit(training, options.slurm, options.cluster)
    if options.cluster != "debug":
        console().print(
            f"submitted job {submission.jobs[0]}: {folder}",
            f"  detr-container status {folder}          how it is getting on",
            f"  detr-container logs {folder} --follow   what it prints",
            f"  detr-container cancel {folder}          end it, saved; the same `d2 submit` resumes from there",
            sep="\n",
            soft_wrap=True,
        )
    return 0


def _split(arguments: Sequence[str], command: str) -> tuple[str, list[str], list[str]]:
    """The configuration, what is changed of it, and the options behind both."""
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    words, rest = list(arguments[:first]), list(arguments[first:])
    bad = [word for word in words[1:] if "=" not in word.lstrip("~+")]
    if bad:
        raise ValueError(f"{bad[0]}: after the configuration comes key=value: detr-container d2 {command} {_USAGE}")
    return words[0] if words else "", words[1:], rest


def _named(config: str, command: str) -> str:
    if not config:
        from detr_container.d2.config_files import names

        raise ValueError(
            f"name a configuration: detr-container d2 {command} {_USAGE}: one of {', '.join(names())}, or the path of "
            "a LazyConfig (.py) or of yacs settings (.yaml)"
        )
    return config


@contextmanager
def _detectron2() -> Iterator[None]:
    """See that it is there, and keep quiet about what of torch it calls."""
    from detr_container.base.optional import require_detectron2

    require_detectron2()
    from detr_container.tasks.detection.anchors.workarounds import deprecated_functions_of_torch_are_called

    with deprecated_functions_of_torch_are_called():
        yield
