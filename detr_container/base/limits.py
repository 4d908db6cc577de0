"""Which values settings may have: the rule stands at the field, and all who take settings apply the same one.

A field is annotated with one of the rules below. pydantic applies them to what is read from files; `check` applies them
to what the command line, or code, has made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes of a file's name and of a path, on Linux and about everywhere else."""
EMPTY = Path("\0")
"""What an empty text becomes where a path is wanted, since `Path("")` would be the current folder."""
_NAMELESS = ("settings", "measure")
"""Sections of options whose settings have no prefix on the command line."""


def _rule(text: str, holds: Callable[[Any], bool]) -> AfterValidator:
    def apply(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"it must be {text}")
        return value

    return AfterValidator(apply)


def positive(most: float) -> AfterValidator:
    """More than 0, and no more than `most`; no NaN."""
    return _rule(f"greater than 0 and at most {most:,}", lambda value: 0 < value <= most)


def natural(most: float) -> AfterValidator:
    """From 0 to `most`; no NaN."""
    return _rule(f"0 or greater, and at most {most:,}", lambda value: 0 <= value <= most)


def between(least: float, most: float) -> AfterValidator:
    """From `least` to `most`; no NaN."""
    return _rule(f"{least:,} or more, and at most {most:,}", lambda value: least <= value <= most)


Share = Annotated[float, _rule("at least 0 and less than 1", lambda value: 0 <= value < 1)]
"""A probability or a decay."""
Side = Annotated[int, positive(16_384)]
"""Pixels: larger images than this no detector is trained on, and one of them takes 3 GB."""
Weight = Annotated[float, natural(1e6)]
"""Of a loss or a cost."""
Rate = Annotated[float, natural(1000.0)]
"""A learning rate or a decay."""
Workers = Annotated[int, natural(512)]
"""Processes on one machine."""
Seed = Annotated[int, natural(2**32 - 1)]
"""What the generators of numpy and torch use: on a CPU, torch.manual_seed drops all bits above, without a word."""
Images = Annotated[int, natural(10_000_000)]
"""A number of images: ten times what the largest public sets of boxes have."""
AtOnce = Annotated[int, natural(10_000)]
"""How many runs train at a time."""
Many = Annotated[int, natural(2**31 - 1)]
"""A number of things that costs nothing by itself."""


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    """What pydantic makes of a dataclass; made once, since that takes longer than all that is done with it."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def check(options: Any) -> None:
    """Raise ValueError naming every setting of a dataclass, and of those within it, that breaks its rule."""
    faults = [*broken(options), *_wrong_paths(options)]
    if faults:
        raise ValueError("; ".join(faults))


def broken(options: Any) -> Iterator[str]:
    """`name=value: it must be ...` for each value that breaks the rule at its field."""
    adapter = adapter_of(type(options))
    try:
        adapter.validate_python(adapter.dump_python(options, warnings=False))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = _name(fault["loc"])
            yield f"{name}={_short(fault['input'])}: {fault['msg'].removeprefix('Value error, ')}"


def message_of(error: ValidationError) -> str:
    """What is wrong with what was read from a file, each fault with its place."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}" for fault in error.errors()
    )


def check_path(name: str, path: Path | str) -> None:
    """Raise ValueError for a path that no file can have. name: the setting that gives it."""
    text = str(path)
    if path == EMPTY or not text:
        raise ValueError(f"{name}: an empty path names nothing; leave the option out, or give . for this folder")
    if "\0" in text:
        raise ValueError(f"{name}={_short(text)}: a path cannot hold a NUL character")
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > _LONGEST_NAME or len(os.fsencode(text)) > _LONGEST_PATH:
        raise OSError(
            errno.ENAMETOOLONG,
            f"{name}={_short(text)}: a name has at most {_LONGEST_NAME} bytes, a path {_LONGEST_PATH}",
        )


def _wrong_paths(value: Any, where: tuple[str | int, ...] = ()) -> Iterator[str]:
    if isinstance(value, Path):
        try:
            check_path(_name(where), value)
        except (ValueError, OSError) as error:
            yield error.strerror or str(error) if isinstance(error, OSError) else str(error)
    elif isinstance(value, tuple):
        for entry in value:
            yield from _wrong_paths(entry, where)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _wrong_paths(getattr(value, field.name), (*where, field.name))


def _name(where: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in where if part not in _NAMELESS and not isinstance(part, int))


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:40] + "..."
