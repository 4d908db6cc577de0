"""Files that a program wrote and reads again: JSON against a schema, so that what is wrong is named by its place.

Between writing and reading, people edit files, disks fill, copies stop halfway, and versions change.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from .files import open_regular, whole

LARGEST = 1 << 28
"""Bytes that are read of one file; detections of a whole data set are allowed more."""
PathText = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""A path in a file: the system takes no zero byte."""
_MOST = 3
_REMEDY = "Put back a copy of it, or move it away"


class Schema(BaseModel):
    """What a file holds: types as written, numbers finite; more keys than these are those of a newer version."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """A regular file's content without a byte order mark. Raises ValueError for one that is too large."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{path} has more than {largest >> 20} MiB, which no file of its kind has. {_REMEDY}")
        # Python sets aside as much as it is asked for, however small the file.
        data = file.read(size)
    return data.removeprefix(codecs.BOM_UTF8)


def read_plain(path: Path, largest: int = LARGEST) -> Any:
    """The JSON value in a file. Raises ValueError when it is not UTF-8, not JSON, or nested beyond all use."""
    try:
        return from_json(read_bytes(path, largest))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is not valid JSON ({error}): was it cut short? {_REMEDY}") from error


def read_json(path: Path, schema: type[Schema], largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming each key that is not as the schema has it."""
    value = read_plain(path, largest)
    wrong = mistakes(value, schema)
    if wrong:
        raise ValueError(f"{path}: {wrong}. {_REMEDY}")
    found: dict[str, Any] = value
    return found


def read_lines(path: Path, schema: type[Schema], faults: list[str] | None = None) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, oldest first; a last line that a kill cut short is left out.

    faults: takes what is wrong, a sentence per line, of which the rest is then returned; without it the first line
    that is wrong raises ValueError.
    """
    data = read_bytes(path)
    rows, wrong = [], []
    for number, line in enumerate(data[: whole(data)].splitlines(), start=1):
        try:
            row = from_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            reason = f"not a JSON object ({line[:60]!r}); every line must hold one"
        else:
            reason = mistakes(row, schema)
        if not reason:
            rows.append(row)
            continue
        wrong.append(f"{path}, line {number}: {reason}. Delete that line, or move the file away")
        if faults is None:
            raise ValueError(wrong[0])
    if faults is not None:
        faults += wrong[:_MOST]
        if len(wrong) > _MOST:
            faults.append(f"{path}: {len(wrong) - _MOST} more lines are left out")
    return rows


def mistakes(value: Any, schema: type[Schema]) -> str:
    """What does not fit a schema: keys, values and rules; empty when all does."""
    try:
        schema.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        messages = []
        for one in found[:_MOST]:
            name = _short(".".join(map(str, one["loc"])), 100).strip("'") or "the whole"
            if one["type"] == "missing":
                messages.append(f"{name} is missing")
            else:
                messages.append(f"{name}={_short(one['input'])}: {one['msg'][:1].lower()}{one['msg'][1:]}")
        return "; ".join(messages) + (f"; and {len(found) - _MOST} more" if len(found) > _MOST else "")
    return ""


def _short(value: Any, most: int = 40) -> str:
    # As text only of what is short: of what is nested, it may be long.
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."
