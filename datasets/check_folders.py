"""The checker of image folders: reads every image as training will, and reports what is wrong, file by file."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path

from PIL import Image

from .check_report import FolderReport
from .folders import ARCHIVES, files_below, is_image_name
from .images import format_of, read_bytes
from .reading import Files, Seen, read_digest, read_files, read_one, repeated, shared
from .records import Findings, Problem
from .views import SMALL, CentreCrop

FEW = 10
"""Training images of a class below which little can be learnt of it."""


@dataclass(frozen=True)
class _Split:
    """One split's images in order of their names: `files` relative to `root`, and the class of each by its number."""

    name: str
    root: Path
    classes: tuple[str, ...]
    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self.files[index]

    def counts(self) -> dict[str, int]:
        """Images of each class."""
        found = dict.fromkeys(self.classes, 0)
        for label in self.labels:
            found[self.classes[label]] += 1
        return found


def check_folders(
    splits: Mapping[str, Path],
    workers: int = 2,
    progress: bool = False,
    sample: int = 0,
    duplicates: bool = False,
    size: int = 224,
) -> FolderReport:
    """Check the splits of image folders and everything between them.

    splits: name -> folder, as `folders.resolve` finds them, the training split first; workers: threads that read
    images. sample: how many images of each split to decode, always the same ones; 0: all. duplicates: compare the
    content of all files, within a split and between two. size: the side of the network's input in pixels.
    Nothing that is wrong with the data raises: it is in the report. RuntimeError: memory or open files ran out.
    """
    problems: list[Problem] = []
    scanned, digests = [], []
    for name, root in splits.items():
        findings = Findings(name)
        split = _scan(name, root, findings)
        scanned.append(split)
        digests.append(_read(split, findings, workers, progress, sample, duplicates, size))
        problems += findings.problems
    for first, second in combinations(range(len(scanned)), 2):
        one, other = scanned[first], scanned[second]
        problems += _classes_differ(one, other)
        for index, same in shared(digests[first], digests[second]):
            message = f"{other.name}: {other.files[index]}: the same content as {one.name}: {one.files[same]}"
            problems.append(Problem("error", "overlap", f"{message}, so the splits are not independent"))
    return FolderReport(tuple(problems), tuple((split.name, split.counts()) for split in scanned))


def is_image_folders(root: Path) -> bool:
    """Whether a data set is image folders rather than in COCO's layout. Raises ValueError when it is neither."""
    if not root.is_dir():
        fault = "is a file, not a data set" if root.exists() else "there is no such data set"
        remedy = "name the folder that holds train/ and val/, or COCO's train2017/, val2017/ and annotations/"
        raise FileNotFoundError(errno.ENOENT, f"{fault}: {remedy}", str(root))
    if any((root / name).exists() for name in ("train2017", "val2017", "annotations")):
        return False
    if any((root / name).exists() for name in ("train", "val", *ARCHIVES)):
        return True
    raise ValueError(
        f"{root} is no data set: COCO's layout has train2017/, val2017/ and annotations/; image folders have train/ "
        "and val/, in each of which a folder per class holds its images. Folders of other names are given with "
        "--train-images and --val-images, and COCO's with --train-annotations and --val-annotations as well"
    )


# -- what there is ----------------------------------------------------------------------------------------------------


def _scan(name: str, root: Path, findings: Findings) -> _Split:
    """List a split's images, and note what is none."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        shown = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        findings.add("error", "image-folder", f"no folder of images {root} ({error.strerror})")
        return _Split(name, root, ())
    folders = [each for each, is_folder in shown if is_folder]
    beside = [each for each, is_folder in shown if not is_folder]
    split = _Split(name, root, tuple(folders))
    _beside(beside, findings)
    if not folders:
        images = sum(is_image_name(each) for each in beside)
        what = f"{images} images and no folder" if images else "no folder"
        findings.add("error", "no-classes", f"{root} holds {what}: put the images of each class into a folder of it")
    if len(folders) == 1:
        findings.add("error", "one-class", f"{folders[0]} is the only class: telling classes apart needs two or more")
    for label in range(len(folders)):
        _scan_class(split, label, findings)
    return split


def _scan_class(split: _Split, label: int, findings: Findings) -> None:
    """Add the images of one class to its split's."""
    folder, before = split.classes[label], len(split.files)
    try:
        files = sorted(files_below(split.root / folder, f"{folder}/"))
    except (OSError, ValueError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        findings.add("error", "unreadable-folder", f"{folder}: the images of this class cannot be listed: {why}")
        return
    for file in files:
        if is_image_name(file):
            split.files.append(file)
            split.labels.append(label)
        else:
            _unused(split, file, findings)
    count = len(split.files) - before
    if not count:
        findings.add("error", "empty-class", f"{folder}: the folder of this class holds no images")
    elif count < FEW and split.name == "train":
        few = f"{folder}: {count} image{'s' * (count != 1)} to learn this class from"
        findings.add("warning", "few-images", few)


def _beside(names: Iterable[str], findings: Findings) -> None:
    for name in names:
        beside = f"{name} lies beside the folders of classes"
        if is_image_name(name):
            findings.add("warning", "image-of-no-class", f"{beside}, so it is not used")
        else:
            findings.add("note", "unlisted-file", f"{beside} and is not used")


def _unused(split: _Split, file: str, findings: Findings) -> None:
    """Note a file that training leaves out for its name, and whether it is an image nevertheless."""
    try:
        kind = format_of(read_bytes(split.root / file))
    except (OSError, ValueError):
        kind = ""
    if kind:
        message = f"{file} is a {kind} image, but its extension is no image's, so it is not used: rename it"
        findings.add("warning", "extension", message)
    else:
        findings.add("note", "unlisted-file", f"{file} is not used")


# -- what the images are ----------------------------------------------------------------------------------------------


def _read(
    split: _Split, findings: Findings, workers: int, progress: bool, sample: int, duplicates: bool, size: int
) -> list[bytes]:
    """Read the images, note what is wrong with them; returns a hash of each one's content, where they are compared."""
    files = Files(len(split.files), split.path, f"reading {split.name}")
    others = read_digest if duplicates else _left
    digests, view = list[bytes](), CentreCrop(size)
    turned, small, read = [], [], 0
    for file, seen in zip(split.files, read_files(files, read_one, others, sample, workers, progress), strict=True):
        if duplicates:
            digests.append(seen.digest if seen else b"")
        if seen is None or not (seen.kind or seen.format):
            continue
        if seen.kind:
            findings.add("error", seen.kind, f"{file}: {seen.problem}")
            continue
        try:
            view.check(*seen.size)
        except ValueError as error:
            findings.add("error", "image-shape", f"{file}: {error}")
            continue
        read += 1
        turned += [file] * seen.turned
        small += [file] * (min(seen.size) < size)
        _look(file, seen, findings)
    if turned:
        message = (
            f"{len(turned)} of {read} images carry an orientation tag, as {turned[0]}. Pixels are taken as stored: "
            "turn the files themselves (`mogrify -auto-orient`, `exiftran -ai`) where that matters"
        )
        findings.add("warning", "orientation", message)
    if small:
        then = "they are enlarged" if size > SMALL else "they get a black margin, for so small an input resizes nothing"
        message = f"{len(small)} of {read} images have a side under {size} pixels, as {small[0]}: {then}"
        findings.add("note", "small-images", message)
    for index, first in repeated(digests):
        apart = split.labels[index] != split.labels[first]
        kind, other = ("two-classes", ", of another class") if apart else ("duplicate-image", "")
        findings.add("warning", kind, f"{split.files[index]}: the same content as {split.files[first]}{other}")
    return digests


def _left(path: Path) -> None:
    """What comes of a file that is not to be read."""
    del path


def _look(file: str, seen: Seen, findings: Findings) -> None:
    """Note what is odd about an image that can be read."""
    if seen.flat:
        message = f"{file}: all pixels are about the same: was it converted, or exported, wrongly?"
        findings.add("warning", "flat-image", message)
    promised = _formats().get(os.path.splitext(file)[1].lower(), "")
    # A JPEG of several images is still a JPEG.
    if promised and promised != {"MPO": "JPEG"}.get(seen.format, seen.format):
        findings.add("note", "extension-differs", f"{file} is a {seen.format} image, whatever its name says")


@cache
def _formats() -> dict[str, str]:
    return Image.registered_extensions()


# -- classes ----------------------------------------------------------------------------------------------------------


def _classes_differ(first: _Split, second: _Split) -> Iterator[Problem]:
    """Classes that one of two splits lacks; of names that are nearly the same, both are named."""
    if not first.classes or not second.classes:
        return
    for one, other in ((first, second), (second, first)):
        alike = {_plain(name): name for name in other.classes if name not in one.classes}
        for name in one.classes:
            if name in other.classes:
                continue
            near = alike.get(_plain(name))
            hint = f", which has {near!r}: they differ in case, spaces or accents' code" if near is not None else ""
            yield Problem("error", "classes-differ", f"class {name!r} of {one.name} is not in {other.name}{hint}")


def _plain(name: str) -> str:
    """A class's name without what is easily written in two ways."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
