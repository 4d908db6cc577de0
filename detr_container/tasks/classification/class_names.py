"""What the rows of a classifier are called, and which of them an image folder's classes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detr_container.base.checked import read_bytes, read_plain
from detr_container.datasets.folders import ImageFolder

IMAGENET = 1000
"""Rows of the published classifiers of ImageNet-1k."""
_LARGEST = 1 << 24
"""Bytes of a file of names."""
_LISTED = 5


def imagenet_ids() -> tuple[str, ...]:
    """WordNet's ids of ImageNet-1k's classes in the order of the rows, which is also theirs when sorted."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def spoken(classes: Sequence[str]) -> list[str]:
    """Names to read: of ImageNet's ids the first of each one's words, of others themselves."""
    from timm.data.imagenet_info import ImageNetInfo

    if tuple(classes) != imagenet_ids():
        return list(classes)
    return [words.split(",")[0] for words in ImageNetInfo().label_descriptions()]


def read_names(path: Path, rows: int) -> tuple[str, ...]:
    """The names of so many rows: a folder's sorted folders, a JSON list or ImageNet's {row: [id, name]}, or lines.

    Raises ValueError for another number of names, or one that is there twice; OSError where there is no such file.
    """
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    elif path.suffix == ".json":
        names = _of_json(path, read_plain(path))
    else:
        names = [line.strip() for line in read_bytes(path, _LARGEST).decode("utf-8", "replace").splitlines()]
        names = [name for name in names if name]
    if len(names) != rows:
        raise ValueError(f"{path} names {len(names)} classes, and the weights have {rows}: name one for each row")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{path} names {', '.join(twice[:_LISTED])} twice: each class has a name of its own")
    return tuple(names)


def _of_json(path: Path, content: object) -> list[str]:
    if isinstance(content, dict) and all(str(row) in content for row in range(len(content))):
        rows = [content[str(row)] for row in range(len(content))]
        # The file that is passed around for ImageNet has the id, then the name.
        content = [row[0] if isinstance(row, list) and row else row for row in rows]
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return list(content)
    raise ValueError(f"{path} holds no names: write a JSON list of them in the order of the rows, or one a line")


def matched(folder: ImageFolder, classes: Sequence[str], rows: int) -> tuple[ImageFolder, str]:
    """The folder with labels that are rows of a classifier, and in words how its classes were found among them.

    classes: the rows' names; none where nothing is known of `rows` rows. By name (or by the name of the folder, where
    ImageNet's classes have words as names); without names in sorted order, where there are as many.
    Raises ValueError, naming them, for classes that the classifier does not have.
    """
    if not classes:
        if len(folder.classes) != rows:
            raise ValueError(
                f"{folder.root} has {len(folder.classes)} classes, the classifier {rows} without names, so that "
                "nothing says which are which: name the rows with --classes FILE, or evaluate on its own classes"
            )
        return folder, f"rows have no names: taken for the {rows} classes of {folder.root} in sorted order"
    place = {name: row for row, name in enumerate(classes)}
    by_folder = [name for name in folder.folders if name in place]
    names = folder.folders if len(by_folder) == len(folder.folders) else folder.classes
    strange = [name for name in names if name not in place]
    if strange:
        if len(names) == rows == IMAGENET and tuple(classes) == imagenet_ids():
            return folder, f"the {rows} classes of {folder.root} in sorted order are taken for ImageNet's"
        listed = ", ".join(map(repr, strange[:_LISTED]))
        more = f" and {len(strange) - _LISTED} more" if len(strange) > _LISTED else ""
        known = ", ".join([*map(repr, classes[:3]), "..."] if len(classes) > 3 else map(repr, classes))
        raise ValueError(
            f"{folder.root} has {len(names)} classes, of which {len(strange)} are none of the classifier's {rows} "
            f"({known}): {listed}{more}. Use data of its classes, or train on these"
        )
    row_of = [place[name] for name in names]
    folders = [""] * rows
    for row, below in zip(row_of, folder.folders, strict=True):
        folders[row] = below
    labels = np.array(row_of, dtype=np.int64)[folder.labels]
    part = f"{len(names)} of {rows}" if len(names) < rows else f"all {rows}"
    return (
        replace(folder, classes=tuple(classes), folders=tuple(folders), labels=labels),
        f"{part} classes by name",
    )
