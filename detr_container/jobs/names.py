"""What a run may be called: a relative path below the folder of runs, in words that terminals and scripts can show."""

from __future__ import annotations

from pathlib import Path

from detr_container.base.limits import check_path
from detr_container.launch.resources import unprintable


def place(runs: Path, name: str, option: str = "--run") -> Path:
    """The folder of a run, or of a group of runs, below `runs`.

    option: where the name was given, for the message. Raises ValueError for a name that would leave `runs`, lie within
    another run, be taken for an option or for nothing, or that cannot be shown in a line.
    """
    parts = name.split("/")
    reason = ""
    if name.startswith("/"):
        reason = "it is an absolute path; name a folder below --runs, and give that folder with --runs"
    elif ".." in parts:
        reason = "it leads out of the folder of runs; choose that folder with --runs"
    elif not all(part.strip() for part in parts) or "." in parts:
        reason = "each part of a name needs a letter or a digit"
    elif any(part.startswith("-") or part != part.strip() for part in parts):
        reason = "no part of a name begins with a dash, or begins or ends with a space"
    elif unprintable(name):
        reason = "it holds a line break or another character that cannot be shown"
    if reason:
        raise ValueError(f"{option} {name!r}: {reason}")
    check_path(option, name)
    folder = runs / name
    for above in folder.parents:
        if above == runs:
            break
        if (above / "config.json").is_file():
            raise ValueError(f"{option} {name!r}: {above} is a run, and a run cannot lie within another; name another")
    return folder


def place_of_many(runs: Path, name: str, option: str) -> Path:
    """The folder of a sweep or a comparison, which is no run itself."""
    folder = place(runs, name, option)
    if (folder / "config.json").is_file():
        raise ValueError(f"{option} {name!r}: {folder} is a run, which cannot hold others; choose another name")
    return folder
