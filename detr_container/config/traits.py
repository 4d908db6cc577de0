"""What a setting means beyond its value, stated with its field: may a resume change it, does it matter for fairness.

A section states both for all its settings; a setting states what is otherwise for itself:

    train: Annotated[TrainConfig, MAY_CHANGE, Topic("schedule")]
    ...
    batch: Annotated[int, FIXED] = 16
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Resume:
    """Whether a run stays the same run when a setting is another at a resume."""

    may_change: bool


FIXED = Resume(may_change=False)
MAY_CHANGE = Resume(may_change=True)


@dataclass(frozen=True)
class Topic:
    """Under which word a report names a setting that differs between compared runs; empty: it changes no result.

    compared: it belongs to what is compared on purpose (a head with its loss), so it is named but is no warning.
    """

    name: str
    compared: bool = False


NO_MATTER = Topic("")
"""Of paths, names, and how often something is written."""


@dataclass(frozen=True)
class Traits:
    """Both, of one setting."""

    resume: Resume = MAY_CHANGE
    topic: Topic = Topic("settings")


def traits_of(kind: type[Any]) -> dict[str, Traits]:
    """The traits of each setting of a dataclass by its name on the command line."""
    return dict(_within(kind, Traits()))


def _within(kind: type[Any], usual: Traits) -> Iterator[tuple[str, Traits]]:
    """usual: the traits of settings that state none."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        inner, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        mine = Traits(
            next((note for note in notes if isinstance(note, Resume)), usual.resume),
            next((note for note in notes if isinstance(note, Topic)), usual.topic),
        )
        if is_dataclass(inner):
            assert isinstance(inner, type)
            for name, each in _within(inner, mine):
                yield f"{field.name}.{name}", each
        else:
            yield field.name, mine
