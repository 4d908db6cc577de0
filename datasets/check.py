"""The checker of data sets: reads every image as training will, and reports what is wrong, record by record."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

from .annotations import Annotations, Problem, load_json, parse_annotations
from .check_report import Report, summarise
from .images import decode, faultless, orientation, read_bytes
from .progress_bar import track

BLOCK = 1024
"""Images handed to the pool at a time, so that COCO's 118,287 do not all wait in memory."""

FLAT = 4
"""Levels of brightness, of 256, below which an image shows nothing."""


@dataclass(frozen=True)
class Seen:
    """What came of reading one file: a hash of its bytes, its (height, width), or why it cannot be read.

    turned: it has an orientation tag other than upright; flat: all of its pixels are about the same.
    """

    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    flat: bool = False
    kind: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _Split:
    name: str
    annotations: Annotations

    def paths(self) -> list[Path]:
        return [self.annotations.image_dir / name for name in self.annotations.file_names]

    def of(self, index: int) -> str:
        """Name an image in a message: split, file and id."""
        return f"{self.name}: {self.annotations.file_names[index]} (image {self.annotations.image_ids[index]})"


def check_dataset(
    splits: Mapping[str, tuple[Path, Path]],
    workers: int = 2,
    progress: bool = False,
    sample: int = 0,
    apply_orientation: bool = False,
) -> Report:
    """Check the splits of a data set and everything between them.

    splits: name -> (folder of images, annotation file), as `annotations.resolve` finds them; workers: threads that
    read images. sample: how many images of each split to read, always the same ones, and compare with each other;
    of the others it is only checked that they are there, and their annotations are. 0: all.
    apply_orientation: read images as training with data.apply_orientation does.
    Nothing that is wrong with the data raises: it is in the report. RuntimeError: memory or open files ran out.
    """
    problems: list[Problem] = []
    readable: list[_Split] = []
    for name, (image_dir, path) in splits.items():
        try:
            with faultless(path):
                annotations, found = parse_annotations(load_json(path), path, image_dir)
        except (OSError, ValueError) as error:
            problems.append(Problem("error", "annotation-file", f"{name}: {error}"))
            continue
        problems += [Problem(problem.severity, problem.kind, f"{name}: {problem.message}") for problem in found]
        readable.append(_Split(name, annotations))
    reader = partial(read_one, apply_orientation=apply_orientation)
    seen = {split.name: _read_images(split, reader, workers, progress, sample, problems) for split in readable}
    for split in readable:
        problems += _turned(split, seen[split.name], apply_orientation)
    problems += _unlisted(readable, {path for _, path in splits.values()})
    for first, second in combinations(readable, 2):
        problems += _categories_differ(first, second)
        problems += _overlap(first, seen[first.name], second, seen[second.name])
    return Report(tuple(problems), tuple(summarise(split.name, split.annotations) for split in readable))


def read_one(path: Path, apply_orientation: bool = False) -> Seen:
    """Read and decode one file exactly as training does. Raises RuntimeError when memory or open files run out."""
    try:
        with faultless(path):
            data = read_bytes(path)
            image = decode(data, apply_orientation)
    except FileNotFoundError:
        return Seen(kind="missing-image", problem="the file does not exist")
    except (OSError, ValueError) as error:
        return Seen(kind="unreadable-image", problem=f"the file cannot be read: {error}")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    flat = int(image.amax()) - int(image.amin()) < FLAT
    return Seen(digest, (int(image.shape[1]), int(image.shape[2])), orientation(data) != 1, flat)


def _read_images(
    split: _Split,
    reader: Callable[[Path], Seen],
    workers: int,
    progress: bool,
    sample: int,
    problems: list[Problem],
) -> list[Seen | None]:
    """What came of every image; None for one that is there and was not drawn for reading."""
    if not split.annotations.image_dir.is_dir():
        message = f"{split.name}: no folder of images {split.annotations.image_dir}"
        problems.append(Problem("error", "image-folder", message))
        return [Seen()] * len(split.annotations.file_names)
    paths = split.paths()
    every = range(len(paths))
    drawn: Container[int] = set(random.Random(0).sample(every, sample)) if 0 < sample < len(paths) else every
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd files; what matters is whether they decode.
        seen = list(track(_read_drawn(paths, reader, drawn, workers), len(paths), f"reading {split.name}", progress))
    for index, found in enumerate(seen):
        if found is None:
            continue
        if found.kind:
            problems.append(Problem("error", found.kind, f"{split.of(index)}: {found.problem}"))
            continue
        height, width = (int(side) for side in split.annotations.sizes[index])
        if found.size != (height, width):
            turned = "; is it turned by its orientation tag?" if found.size == (width, height) else ""
            message = (
                f"{split.of(index)}: the file has {found.size[1]} x {found.size[0]} pixels (width x height), "
                f"its annotation says {width} x {height}{turned}"
            )
            problems.append(Problem("error", "image-size-differs", message))
        elif found.flat:
            message = f"{split.of(index)}: all pixels are about the same: was it converted, or exported, wrongly?"
            problems.append(Problem("warning", "flat-image", message))
    problems += _twins(split, seen)
    return seen


def _read_drawn(
    paths: list[Path], reader: Callable[[Path], Seen], drawn: Container[int], workers: int
) -> Iterator[Seen | None]:
    def read_if_drawn(index: int) -> Seen | None:
        return reader(paths[index]) if index in drawn or not _is_there(paths[index]) else None

    # Threads, for reading, hashing and decoding all let go of the interpreter's lock, while a process would first
    # spend seconds on importing torch.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(read_if_drawn, range(start, min(start + BLOCK, len(paths))))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # Too long a name, say; reading it says why.
        return False


def _turned(split: _Split, seen: Sequence[Seen | None], applied: bool) -> Iterator[Problem]:
    turned = [index for index, found in enumerate(seen) if found and found.turned]
    if turned and applied:
        message = (
            f"{split.name}: {len(turned)} images are turned as their orientation tags say, as {split.of(turned[0])}"
        )
        yield Problem("note", "orientation", message)
    elif turned:
        read = sum(found is not None and not found.kind for found in seen)
        message = (
            f"{split.name}: {len(turned)} of {read} images carry an orientation tag, as {split.of(turned[0])}. Pixels "
            "are taken as stored, as COCO's tools do: boxes that were drawn on the turned image are wrong, also where "
            "width and height agree. Train with data.apply_orientation=True (check with --apply-orientation), turn the "
            "files themselves (`mogrify -auto-orient`, `exiftran -ai`), or draw the boxes on images as stored"
        )
        yield Problem("warning", "orientation", message)


def _twins(split: _Split, seen: Sequence[Seen | None]) -> Iterator[Problem]:
    first: dict[bytes, int] = {}
    for index, found in enumerate(seen):
        if found and found.digest and first.setdefault(found.digest, index) != index:
            message = f"{split.of(index)}: the same content as {split.of(first[found.digest])}"
            yield Problem("warning", "duplicate-image", message)


def _overlap(
    first: _Split, first_seen: Sequence[Seen | None], second: _Split, second_seen: Sequence[Seen | None]
) -> Iterator[Problem]:
    contents = {found.digest: index for index, found in enumerate(first_seen) if found and found.digest}
    names = {name: index for index, name in enumerate(first.annotations.file_names) if first_seen[index]}
    for index, (found, name) in enumerate(zip(second_seen, second.annotations.file_names, strict=True)):
        if found is None:
            continue
        if found.digest in contents:
            message = f"{second.of(index)}: the same content as {first.of(contents[found.digest])}"
            yield Problem("error", "overlap", f"{message}, so the splits are not independent")
        elif name in names:
            message = f"{second.of(index)}: the same file name as {first.of(names[name])}, with other content"
            yield Problem("warning", "same-file-name", message)


def _categories_differ(first: _Split, second: _Split) -> Iterator[Problem]:
    a, b = first.annotations.categories, second.annotations.categories
    if a == b:
        return
    for one, other, mine, others in ((first, second, a, b), (second, first, b, a)):
        for category in mine:
            if category not in others:
                message = f"category {category.id} ({category.name}) of {one.name} is not in {other.name}"
                yield Problem("error", "categories-differ", f"{message}: both splits need the same list")


def _unlisted(splits: list[_Split], annotation_files: set[Path]) -> Iterator[Problem]:
    """Files that no record of any split names; splits may share a folder."""
    listed = {os.path.abspath(path) for split in splits for path in split.paths()}
    listed |= {os.path.abspath(path) for path in annotation_files}
    folders = {split.annotations.image_dir: split for split in splits}
    for image_dir, split in folders.items():
        for folder, subfolders, files in os.walk(image_dir):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(files):
                path = os.path.join(folder, name)
                if not name.startswith(".") and os.path.abspath(path) not in listed:
                    message = f"{split.name}: no record names {os.path.relpath(path, image_dir)}"
                    yield Problem("note", "unlisted-file", message)
