"""How options on the command line become typed objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from detr_container.base.limits import EMPTY, check
from detr_container.base.terminal import console

from .experiments import named, names
from .settings import Experiment

T = TypeVar("T")
_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """A path, of which an empty one is not taken for the current folder."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(words[0]) if words[0] else EMPTY,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def parse(kind: type[T], arguments: Sequence[str], command: str, doc: str | None, default: T | None = None) -> T:
    """Options as a typed object; prints help or names the unknown option with its nearest neighbours, and exits.

    Raises ValueError for values beyond the limits at their fields.
    """
    about, name = (doc or "").strip(), f"detr-container {command}"
    _refuse_other_tasks(arguments, default)
    with _REGISTRY:
        if default is None:
            options = tyro.cli(kind, prog=name, description=about, args=list(arguments))
        else:
            options = tyro.cli(kind, prog=name, description=about, args=list(arguments), default=default)
    check(options)
    return options


def _refuse_other_tasks(arguments: Sequence[str], default: object) -> None:
    """Raise ValueError for a setting that experiments of another task have and the one in `default` does not."""
    if default is None:
        return
    mine = next((each for each in vars(default).values() if isinstance(each, Experiment)), None)
    if mine is None:
        return
    for word in arguments:
        option = word.partition("=")[0]
        path = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or "." not in path or _has(mine, path):
            continue
        others = {each.task for name in names() if _has(each := named(name).experiment, path)} - {mine.task}
        if others:
            raise ValueError(
                f"{option}: {mine.name} is an experiment of {mine.task}, and {path} is a setting of "
                f"{' and '.join(sorted(others))}: leave it out"
            )


def _has(experiment: Experiment, path: str) -> bool:
    """Whether a setting, such as `data.size`, is one of this experiment's."""
    section, _, name = path.partition(".")
    part = getattr(experiment, section, None)
    return is_dataclass(part) and name in (each.name for each in fields(part))


def parse_settings(arguments: Sequence[str], default: Experiment) -> Experiment:
    """Settings as a typed object, by the same rules. Raises SystemExit, without a word, for what does not fit."""
    with _REGISTRY:
        return tyro.cli(type(default), args=list(arguments), default=default, console_outputs=False)


def experiment_first(arguments: Sequence[str], command: str) -> tuple[Experiment, list[str]]:
    """The named experiment in front of the options; of a call for help alone the first, which is said."""
    if arguments and not arguments[0].startswith("-"):
        return named(arguments[0]).experiment, list(arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        first = named(names()[0]).experiment
        console().print(
            f"Options of {first.name}, an experiment of {first.task}; others have others: "
            f"`detr-container {command} EXPERIMENT --help`",
            soft_wrap=True,
        )
        return first, list(arguments)
    raise ValueError(
        f"name an experiment: detr-container {command} EXPERIMENT [--setting value ...], one of {', '.join(names())}"
    )
