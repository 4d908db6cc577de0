"""Images that a person names, one by one or as folders, and the files that are written of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .folders import is_image_name


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the images inside folders named and inside theirs, each folder's sorted before those.

    Hidden files and folders (macOS leaves a `._a.png` beside an `a.png`) are left out.
    Raises FileNotFoundError for what is not there and ValueError for a folder without images, or for no paths at all.
    """
    if not paths:
        raise ValueError("no image is given: name files, or folders of images")
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = list(_inside(path))
            if not inside:
                raise ValueError(f"{path} holds no image: no file in it has an image's name, as .jpg or .png")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no image {path}")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and is_image_name(name):
                yield Path(place, name)


def file_stems(paths: Sequence[Path], endings: Sequence[str] = ("",)) -> list[str]:
    """A file name without its ending for each image; underscores keep images of one name apart.

    endings: what is put behind the names; no two names are the same with any of them.
    """
    stems, taken = list[str](), set[str]()
    for path in paths:
        stem = path.stem
        while not taken.isdisjoint(names := {stem + ending for ending in endings}):
            stem += "_"
        taken |= names
        stems.append(stem)
    return stems


def keep_inputs(paths: Sequence[Path], folder: Path, names: Iterable[str]) -> None:
    """Raise ValueError when a file of one of these names in the folder is one of the images to be read."""
    given = {os.path.realpath(path) for path in paths}
    for name in names:
        if os.path.realpath(folder / name) in given:
            raise ValueError(
                f"{folder / name} is one of the images to be read, and would be overwritten: choose another "
                "folder with --output"
            )


class UnreadableError(ValueError):
    """A file that is no image, or a damaged one."""


def none_readable(refused: Sequence[str]) -> ValueError:
    """What to raise when no image can be read; refused: what is wrong with each."""
    return ValueError(refused[0] + (f" (and {len(refused) - 1} more that cannot be read)" if len(refused) > 1 else ""))
