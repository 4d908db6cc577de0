"""Image folders: a folder for each split, in it a folder for each class, in these the images.

ImageNet is one as well, once torchvision.datasets.ImageNet has unpacked its archives.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

META = "meta.bin"
"""In which torchvision keeps the names of ImageNet's classes, beside train/ and val/."""
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
"""ImageNet as it is downloaded."""
LISTED = 10
"""Classes that an error names."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, by class and then by name, and what they are of.

    classes: names; folders: of each class, below `root`. labels: [N] int64, rows of `classes`. names: bytes of all
    files' names, each below its class's folder, one after the other; starts: [N + 1], where each begins.
    Names are kept so because a million texts would be copied for each process that loads.
    """

    root: Path
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    labels: NDArray[np.int64]
    names: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Of one image's file."""
        return self.root / self.folders[self.labels[index]] / os.fsdecode(self._name(index))

    def counts(self) -> NDArray[np.int64]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def stratified(self, fraction: float, seed: int) -> ImageFolder:
        """A share of each class's images, in the same order: round(fraction x n), but at least one.

        `seed` chooses them; a larger share holds the smaller ones of the same seed.
        """
        from .dataset import random_of

        kept = []
        for label in range(len(self.classes)):
            rows = np.flatnonzero(self.labels == label)
            # No epoch of training has this number.
            order = random_of(seed, -1, label).sample(range(len(rows)), len(rows))
            kept.append(rows[order[: max(1, round(fraction * len(rows)))]])
        return self.taken(np.sort(np.concatenate(kept)))

    def taken(self, rows: NDArray[np.int64]) -> ImageFolder:
        """Some of the images, in this order."""
        names, starts = _packed([self._name(index) for index in rows])
        return replace(self, labels=self.labels[rows], names=names, starts=starts)

    def version(self) -> dict[str, Any]:
        """Which folder, the SHA-256 of its listing, and how many images.

        The digest covers the classes' folders and the files' names in order, so it changes when images are added, taken
        away, renamed or moved to another class. What the files hold is not read: that would take an hour on ImageNet.
        """
        digest = hashlib.sha256()
        folders = [os.fsencode(folder) for folder in self.folders]
        for index, label in enumerate(self.labels.tolist()):
            digest.update(folders[label] + b"/" + self._name(index) + b"\0")
        return {"annotations": str(self.root), "sha256": digest.hexdigest(), "images": len(self)}

    def _name(self, index: int) -> bytes:
        return self.names[self.starts[index] : self.starts[index + 1]].tobytes()


def open_folder(folder: Path, classes: Sequence[str] | None = None) -> ImageFolder:
    """List the images of one split; folders are classes in sorted order, and may have folders of their own.

    Left out: what begins with a dot, and files whose extension is of no format in `images.FORMATS`. No file is opened.
    classes: those the folder must have, neither more nor fewer, which then decide the labels.
    Raises OSError where there is no such folder, or one that cannot be read, and ValueError, which names them, for
    missing, unknown and empty classes.
    """
    with os.scandir(_existing(folder)) as entries:
        found = sorted(entry.name for entry in entries if _shown(entry.name) and entry.is_dir())
    if not found:
        raise ValueError(f"{folder} has no folders: it must hold a folder per class, and these the images")
    names = _names(folder.parent / META, found)
    if classes is None:
        if len(found) < 2:
            raise ValueError(f"{folder} has one class ({found[0]}): telling classes apart needs two or more")
        classes = names
    _same(folder, names, classes)
    label_of = {name: label for label, name in enumerate(classes)}
    labels, files, empty = [], list[bytes](), []
    for name, below in zip(names, found, strict=True):
        # In the order of their bytes, which is the same on every machine.
        listed = sorted(os.fsencode(name) for name in files_below(folder / below) if is_image_name(name))
        labels.append(np.full(len(listed), label_of[name], dtype=np.int64))
        files += listed
        if not listed:
            empty.append(below)
    if empty:
        raise ValueError(f"{folder}: no images in {_listed(empty)}: add some, or remove the folder from every split")
    folder_of = dict(zip(names, found, strict=True))
    folders = tuple(folder_of[name] for name in classes)
    return ImageFolder(folder, tuple(classes), folders, np.concatenate(labels), *_packed(files))


def _existing(folder: Path) -> Path:
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: give a folder that holds a folder of images per class")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give a folder that holds a folder of images per class")
    return folder


def _packed(names: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    starts = np.zeros(len(names) + 1, dtype=np.int64)
    np.cumsum([len(name) for name in names], out=starts[1:])
    return np.frombuffer(b"".join(names), dtype=np.uint8), starts


def _shown(name: str) -> bool:
    return not name.startswith(".")


def files_below(folder: Path, above: str = "", within: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Names of the files that are not hidden in a class's folder and in those inside, in no order.

    A link counts as what it leads to. above: what stands before the names; within: the folders that this one is in, by
    device and number. Raises OSError for a folder that cannot be read, ValueError for one that holds itself.
    """
    status = os.stat(folder)
    place = (status.st_dev, status.st_ino)
    if place in within:
        raise ValueError(f"{folder} is a folder that it lies in itself: remove the link that leads there")
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _shown(entry.name):
                continue
            if entry.is_dir():
                yield from files_below(Path(entry.path), f"{above}{entry.name}/", within | {place})
            else:
                yield above + entry.name


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in _extensions()


@functools.cache
def _extensions() -> frozenset[str]:
    """Those of images, in small letters."""
    from PIL import Image

    from .images import known_formats

    known = known_formats()
    return frozenset(name for name, format_ in Image.registered_extensions().items() if format_ in known)


def _names(meta: Path, folders: Sequence[str]) -> list[str]:
    """Of the classes: their folders', or where torchvision has left those of ImageNet, the first of each's synonyms."""
    if not meta.is_file():
        return list(folders)
    from torchvision.datasets.imagenet import load_meta_file

    try:
        synonyms = load_meta_file(meta.parent, meta.name)[0]
        first = [synonyms[folder][0] if folder in synonyms else folder for folder in folders]
    except Exception as error:
        raise ValueError(
            f"{meta} holds no names of classes ({error}): delete it, and names are the folders'"
        ) from error
    # Two of ImageNet's are called "crane", a bird and a machine.
    count = Counter(first)
    pairs = zip(first, folders, strict=True)
    return [f"{name} ({folder})" if count[name] > 1 else name for name, folder in pairs]


def _same(folder: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise ValueError unless these are the same classes."""
    there, asked = set(found), set(wanted)
    missing = [name for name in wanted if name not in there]
    unknown = [name for name in found if name not in asked]
    problems = [f"{_listed(missing)} missing"] * bool(missing) + [f"{_listed(unknown)} unknown"] * bool(unknown)
    if problems:
        raise ValueError(
            f"{folder} has not the {len(wanted)} classes it should have: {'; '.join(problems)}. Training and "
            "validation need a folder for each class, of the same names"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def resolve(root: Path | None, train: Path | None, val: Path | None) -> tuple[Path, Path]:
    """The folders of the training and the validation split. Raises ValueError or FileNotFoundError where one is not."""
    found = []
    for name, given in (("train", train), ("val", val)):
        folder = given or (root / name if root else None)
        if folder is None:
            raise ValueError(f"no {name} images: give data.root, a folder with train/ and val/, or data.{name}_images")
        if not folder.is_dir():
            if root is not None and not given:
                _refuse_archives(root, name)
                if (root / "annotations").is_dir():
                    raise FileNotFoundError(
                        f"{root} has annotations/ and no {name}/, as a data set of a detector: a classifier needs "
                        "train/ and val/, in each of which a folder per class holds its images"
                    )
            raise FileNotFoundError(
                f"{folder} does not exist: data.root is a folder with train/ and val/, in each of which a folder per "
                f"class holds its images; or name the split's folder with data.{name}_images"
            )
        found.append(folder)
    return found[0], found[1]


def _refuse_archives(root: Path, split: str) -> None:
    """Raise FileNotFoundError where ImageNet waits to be unpacked, and say how."""
    there = [name for name in ARCHIVES if (root / name).is_file()]
    if not there:
        return
    absent = [name for name in ARCHIVES if name not in there]
    first = f"put {' and '.join(absent)} beside, then " if absent else ""
    raise FileNotFoundError(
        f"{root} holds ImageNet's archives ({', '.join(there)}), and no {split}/ yet: {first}unpack them once, which "
        f'takes 150 GB more, by python -c "from torchvision.datasets import ImageNet; '
        f"[ImageNet({str(root)!r}, split) for split in ('train', 'val')]\""
    )
