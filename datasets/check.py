"""The checker of data sets: reads every image as training will, and reports what is wrong, record by record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

from .annotations import Annotations, Problem, load_json, parse_annotations, without_segmentation
from .check_report import DetectionReport, summarise
from .images import faultless
from .reading import Files, Reader, Seen, read_files, read_if_missing, read_one, repeated, shared
from .records import Severity
from .segmentations import KIND, pack


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
    masks: bool = False,
) -> DetectionReport:
    """Check the splits of a data set and everything between them.

    splits: name -> (folder of images, annotation file), as `annotations.resolve` finds them; workers: threads that
    read images. sample: how many images of each split to read, always the same ones, and compare with each other;
    of the others it is only checked that they are there, and their annotations are. 0: all.
    apply_orientation: read images as training with data.apply_orientation does. masks: check segmentations, too; what
    is wrong with them is a warning, since boxes do without.
    Nothing that is wrong with the data raises: it is in the report. RuntimeError: memory or open files ran out.
    """
    problems: list[Problem] = []
    readable: list[_Split] = []
    for name, (image_dir, path) in splits.items():
        try:
            with faultless(path):
                raw = load_json(path, pack if masks else without_segmentation)
                annotations, found = parse_annotations(raw, path, image_dir, segmentations=masks)
        except (OSError, ValueError) as error:
            problems.append(Problem("error", "annotation-file", f"{name}: {error}"))
            continue
        for problem in found:
            severity: Severity = "warning" if problem.kind == KIND else problem.severity
            problems.append(Problem(severity, problem.kind, f"{name}: {problem.message}"))
        readable.append(_Split(name, annotations))
    reader = partial(read_one, apply_orientation=apply_orientation)
    seen = {split.name: _read_images(split, reader, workers, progress, sample, problems) for split in readable}
    for split in readable:
        problems += _turned(split, seen[split.name], apply_orientation)
    problems += _unlisted(readable, {path for _, path in splits.values()})
    for first, second in combinations(readable, 2):
        problems += _categories_differ(first, second)
        problems += _overlap(first, seen[first.name], second, seen[second.name])
    return DetectionReport(tuple(problems), tuple(summarise(split.name, split.annotations) for split in readable))


def _read_images(
    split: _Split,
    reader: Reader,
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
    paths, title = split.paths(), f"reading {split.name}"
    files = Files(len(paths), paths.__getitem__, title)
    seen = list(read_files(files, reader, read_if_missing, sample, workers, progress))
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
    for index, first in repeated(_digests(seen)):
        message = f"{split.of(index)}: the same content as {split.of(first)}"
        yield Problem("warning", "duplicate-image", message)


def _digests(seen: Sequence[Seen | None]) -> list[bytes]:
    return [found.digest if found else b"" for found in seen]


def _overlap(
    first: _Split, first_seen: Sequence[Seen | None], second: _Split, second_seen: Sequence[Seen | None]
) -> Iterator[Problem]:
    same = dict(shared(_digests(first_seen), _digests(second_seen)))
    names = {name: index for index, name in enumerate(first.annotations.file_names) if first_seen[index]}
    for index, (found, name) in enumerate(zip(second_seen, second.annotations.file_names, strict=True)):
        if found is None:
            continue
        if index in same:
            message = f"{second.of(index)}: the same content as {first.of(same[index])}"
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
