"""Annotation files in COCO's format: read, checked record by record, and turned into arrays.

Sizes: I images, A annotations. Columns of numbers are checked by NumPy at once; only records that fail are checked
one by one, so COCO's train2017 costs little more than parsing its JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detr_container.base.files import open_regular

from .objects import DOUBTS, Objects
from .records import Findings, Problem, Record, integer_column, section, show, unique_ids
from .segmentations import Segmentations, pack

__all__ = [
    "Annotations",
    "Category",
    "Problem",
    "find_problems",
    "load_json",
    "parse_annotations",
    "read_annotations",
    "read_categories",
    "resolve",
    "resolve_split",
]

LARGEST_FILE = 2**32
"""Bytes of an annotation file; parsed, they take about ten times as much memory."""
LISTED_ERRORS = 5
"""How many errors the message of a refused file spells out."""


@dataclass(frozen=True)
class Category:
    """One class: its id in the annotation file and its name."""

    id: int
    name: str


@dataclass(frozen=True)
class Annotations:
    """One COCO file, read and checked; images are in order of their ids, whatever the order of the file.

    categories: sorted by id; label k is categories[k]. image_ids: [I]; sizes: [I, 2] (height, width) in pixels.
    boxes: [A, 4] (left, top, width, height) in pixels, exactly as in the file: not clipped, and boxes without area
    are still there. Rows are grouped by image and keep the file's order: image i owns rows starts[i]:starts[i + 1].
    labels: [A], contiguous from 0; crowd: [A]; areas: [A] in pixels (width x height where the file gives none).
    """

    path: Path
    image_dir: Path
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    labelled: bool = True
    """Whether the file has annotations at all: COCO's image_info files of its test sets have none."""
    doubts: tuple[str, ...] = ()
    """Why the boxes as a whole look like another convention's, if they do."""
    segmentations: Segmentations | None = None
    """[A] where they were asked for; every object that is no crowd and has an area has one."""


@dataclass
class _Images:
    ids: NDArray[np.int64]
    names: tuple[str, ...]
    sizes: NDArray[np.int64]


def read_annotations(
    path: Path,
    image_dir: Path,
    unlabelled: bool = False,
    names_and_sizes: bool = True,
    segmentations: bool = False,
) -> Annotations:
    """Read an annotation file in COCO's format whose images lie in `image_dir`.

    unlabelled: a file without 'annotations' will do. names_and_sizes: images must have them; without, an image is an
    id, as scoring needs it: names are empty, sizes 0, and no box can lie outside. segmentations: read them, too, for
    which images must have sizes in any case.
    Raises FileNotFoundError when there is no such file, and ValueError, naming the first few records, when something
    in it cannot be trained on. Warnings of `find_problems` do not raise; `doubts` has those that ruin a whole run.
    """
    raw = load_json(path, pack if segmentations else without_segmentation)
    without = unlabelled and isinstance(raw, dict) and "annotations" not in raw
    if without:
        raw["annotations"] = []
    annotations, problems = parse_annotations(raw, path, image_dir, names_and_sizes, segmentations)
    doubts = tuple(problem.message for problem in problems if problem.kind in DOUBTS)
    annotations = replace(annotations, labelled=not without, doubts=doubts)
    errors = [problem.message for problem in problems if problem.severity == "error"]
    if errors:
        more = f"\n  ... and {len(errors) - LISTED_ERRORS} more" if len(errors) > LISTED_ERRORS else ""
        listed = "".join(f"\n  {message}" for message in errors[:LISTED_ERRORS])
        raise ValueError(
            f"{path} cannot be used: {len(errors)} error{'s' * (len(errors) != 1)}{listed}{more}\n"
            f"Correct the file, or remove these records; `detr-container data check{' --masks' * segmentations}` lists "
            "every problem."
        )
    return annotations


def read_categories(path: Path) -> tuple[Category, ...]:
    """The classes of an annotation file, or of a run's classes.json, by their ids. Raises as `read_annotations`."""
    raw, findings = load_json(path), Findings(path.name)
    listed = raw if isinstance(raw, dict) else {"categories": raw}
    categories, _ = _categories(section(listed, "categories", findings), findings)
    errors = [problem.message for problem in findings.problems if problem.severity == "error"]
    if errors:
        raise ValueError(
            f"{path} has no sound list of categories: {'; '.join(errors[:LISTED_ERRORS])}. Correct the file"
        )
    return categories


def find_problems(raw: object, path: Path) -> list[Problem]:
    """List everything that the parsed JSON of an annotation file alone can tell is wrong; no image is opened."""
    return parse_annotations(raw, path, path.parent)[1]


def without_segmentation(record: Record) -> Record:
    """Leave out what is most of a file's size, and what boxes do not need."""
    record.pop("segmentation", None)
    return record


def load_json(path: Path, each: Callable[[Record], Record] | None = without_segmentation) -> Any:
    """Parse an annotation file; each: what is done to every object of it as it is parsed, if anything.

    Raises FileNotFoundError, or ValueError with line and column where the text stops being JSON.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                raise ValueError(f"{path} has {size:,} bytes, more than {LARGEST_FILE:,}: split the data set")
            # Python sets aside as much as it is asked for, however small the file.
            content = file.read(size)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no annotation file {path}: check the path, or that the download was unpacked"
        ) from None
    try:
        return json.loads(content, object_hook=each)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno} (character "
            f"{error.pos} of {len(error.doc)}). It may be cut short: download or export it again."
        ) from error
    except (ValueError, RecursionError) as error:  # Not UTF-8, -16 or -32; too deep; a number of thousands of digits.
        raise ValueError(f"{path} is not a JSON text file ({error}): download or export it again.") from error


def parse_annotations(
    raw: object, path: Path, image_dir: Path, names_and_sizes: bool = True, segmentations: bool = False
) -> tuple[Annotations, list[Problem]]:
    """Return the usable records of a parsed file, and the problems of all; a record with an error is left out."""
    findings = Findings("/".join(path.parts[-2:]))
    sections: dict[str, list[Record]] = {}
    if not isinstance(raw, dict):
        findings.add("error", "section", _not_an_object(raw))
        raw = {"images": [], "annotations": [], "categories": []}
    for key in ("categories", "images", "annotations"):
        sections[key] = section(raw, key, findings)
    categories, names_twice = _categories(sections["categories"], findings)
    records = sections["images"]
    images = _images(records, findings) if names_and_sizes else _bare_images(records, findings, segmentations)
    objects = Objects.read(sections["annotations"], findings)
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    bounds = images.sizes if names_and_sizes else np.zeros_like(images.sizes)
    keep, image, label = objects.check(images.ids, bounds, category_ids, findings)
    keep = keep[np.argsort(image[keep], kind="stable")]
    masks = None
    if segmentations:
        masks = Segmentations.read(
            [sections["annotations"][row].get("segmentation") for row in keep],
            objects.ids[keep],
            images.sizes[image[keep]],
            objects.crowd[keep],
            np.any(objects.boxes[keep, 2:] == 0, axis=1),
            findings,
        )
    annotations = Annotations(
        path=path,
        image_dir=image_dir,
        categories=categories,
        image_ids=images.ids,
        file_names=images.names,
        sizes=images.sizes,
        boxes=objects.boxes[keep],
        labels=label[keep],
        crowd=objects.crowd[keep],
        areas=objects.areas[keep],
        annotation_ids=objects.ids[keep],
        starts=np.searchsorted(image[keep], np.arange(len(images.ids) + 1)).astype(np.int64),
        segmentations=masks,
    )
    _check_classes(annotations, names_twice, findings)
    return annotations, findings.problems


def _not_an_object(raw: object) -> str:
    hint = " (a list of detections in COCO's result format, perhaps?)" if isinstance(raw, list) else ""
    return (
        f"the file holds a {type(raw).__name__}{hint}, not an object with 'images', 'annotations' and 'categories'; "
        "give the file of ground truth"
    )


def _categories(records: list[Record], findings: Findings) -> tuple[tuple[Category, ...], set[str]]:
    """Return the usable classes by id, and the names that more than one of them bears."""
    ids, good = unique_ids(records, "category", findings)
    for index in np.flatnonzero(good):
        name = records[index].get("name")
        if not isinstance(name, str) or not name.strip():
            findings.add("error", "category-name", f"category {ids[index]}: name {show(name)} is not a text")
            good[index] = False
    rows = sorted(np.flatnonzero(good), key=lambda row: int(ids[row]))
    categories = tuple(Category(int(ids[row]), records[row]["name"]) for row in rows)
    names = [category.name for category in categories]
    return categories, {name for name in names if names.count(name) > 1}


_LVIS = (
    'file_name is not there, and coco_url is, as in LVIS. Add it: python -c "import json, sys; p = sys.argv[1]; d = '
    "json.load(open(p)); [i.update(file_name='/'.join(i['coco_url'].split('/')[-2:])) for i in d['images']]; "
    "json.dump(d, open(p, 'w'))\" FILE, and give the folder that holds train2017 and val2017 as the images'; or "
    "[-1:] for [-2:], where all images lie in the folder given"
)


def _can_name(name: object) -> bool:
    """Whether a file can have this name: some text without a zero byte or half a character."""
    return isinstance(name, str) and bool(name) and "\0" not in name and not re.search("[\ud800-\udfff]", name)


def _bare_images(records: list[Record], findings: Findings, sized: bool) -> _Images:
    ids, good = unique_ids(records, "image", findings)
    sizes = np.zeros((len(ids), 2), dtype=np.int64)
    if sized:
        sizes, size_good = _sizes(records, ids, good, findings)
        good &= size_good
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(ids[rows], kind="stable")]
    return _Images(ids[rows], ("",) * len(rows), sizes[rows])


def _sizes(
    records: list[Record], ids: NDArray[np.int64], good: NDArray[np.bool_], findings: Findings
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(height, width) of every image, and which can be; only of good records is the rest a problem."""
    heights, heights_good = integer_column([record.get("height") for record in records], {int})
    widths, widths_good = integer_column([record.get("width") for record in records], {int})
    size_good = heights_good & widths_good & (heights > 0) & (widths > 0)
    for index in np.flatnonzero(good & ~size_good):
        shown = f"width {show(records[index].get('width'))}, height {show(records[index].get('height'))}"
        findings.add("error", "image-size", f"image {ids[index]}: {shown}; both must be whole pixels above 0")
    return np.stack([heights, widths], axis=1), size_good


def _images(records: list[Record], findings: Findings) -> _Images:
    ids, good = unique_ids(records, "image", findings)
    names = [record.get("file_name") for record in records]
    sizes, size_good = _sizes(records, ids, good, findings)
    name_good = np.array([_can_name(name) for name in names], dtype=bool)
    bad = np.flatnonzero(good & ~name_good)
    of_lvis = [index for index in bad if names[index] is None and isinstance(records[index].get("coco_url"), str)]
    if of_lvis:
        findings.add("error", "file-name", f"{len(of_lvis)} images, first {ids[of_lvis[0]]}: {_LVIS}")
    for index in bad if len(of_lvis) < len(bad) else ():
        rule = "is not a text that can name a file"
        findings.add("error", "file-name", f"image {ids[index]}: file_name {show(names[index])} {rule}")
    rows = np.flatnonzero(good & size_good & name_good)
    rows = rows[np.argsort(ids[rows], kind="stable")]
    kept = tuple(str(names[row]) for row in rows)
    seen: dict[str, int] = {}
    for image_id, name in zip(ids[rows].tolist(), kept, strict=True):
        if seen.setdefault(name, image_id) != image_id:
            findings.add("warning", "duplicate-file", f"image {image_id}: {name} is also image {seen[name]}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            findings.add("warning", "file-elsewhere", f"image {image_id}: {name} leads out of the folder of images")
    return _Images(ids[rows], kept, sizes[rows])


def _check_classes(annotations: Annotations, names_twice: set[str], findings: Findings) -> None:
    counts = np.bincount(annotations.labels[~annotations.crowd], minlength=len(annotations.categories))
    for category, count in zip(annotations.categories, counts, strict=True):
        if not count:
            findings.add("warning", "unused-class", f"category {category.id} ({category.name}): no examples")
    for name in sorted(names_twice):
        twins = [(c.id, n) for c, n in zip(annotations.categories, counts, strict=True) if c.name == name]
        # Some exporters add an unused parent category that bears the name of its only child: harmless.
        ambiguous = sum(bool(count) for _, count in twins) > 1
        ids = ", ".join(str(category_id) for category_id, _ in twins)
        rule = "more than one of them has examples" if ambiguous else "only one of them has examples"
        findings.add(
            "error" if ambiguous else "warning", "duplicate-category-name", f"categories {ids} are all {name!r}; {rule}"
        )


def resolve(
    root: Path | None,
    train_images: Path | None,
    train_annotations: Path | None,
    val_images: Path | None,
    val_annotations: Path | None,
) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """Find the (image folder, annotation file) of training and of validation; an explicit path wins over `root`.

    Raises ValueError when a path is not given at all, FileNotFoundError when it does not exist.
    """
    return (
        resolve_split("train", root, train_images, train_annotations),
        resolve_split("val", root, val_images, val_annotations),
    )


def resolve_split(
    split: Literal["train", "val"], root: Path | None, images: Path | None, annotations: Path | None
) -> tuple[Path, Path]:
    """Find the (image folder, annotation file) of one split; a path wins over `root`. Raises as `resolve`."""
    if root is None and (images is None or annotations is None):
        missing = [f"data.{split}_{name}" for name, path in _named(images, annotations) if path is None]
        raise ValueError(
            f"no data set is given ({' and '.join(missing)} unset, and no data.root): name a folder in COCO's layout "
            f"with data.root, or both data.{split}_images and data.{split}_annotations. "
            "`detr-container data make-shapes` makes a small data set to try things with."
        )
    base = root or Path()
    images = images or base / f"{split}2017"
    annotations = annotations or base / "annotations" / f"instances_{split}2017.json"
    absent = [f"the {name} {path}" for name, path in _named(images, annotations) if not _is_there(name, path)]
    if absent:
        raise FileNotFoundError(
            f"missing: {' and '.join(absent)}. data.root must hold train2017/, val2017/ and "
            "annotations/instances_{train,val}2017.json, as COCO 2017 does when it is unpacked "
            f"(https://cocodataset.org/#download), or set data.{split}_images and data.{split}_annotations."
        )
    return images, annotations


def _named(images: Path | None, annotations: Path | None) -> tuple[tuple[str, Path | None], tuple[str, Path | None]]:
    return ("images", images), ("annotations", annotations)


def _is_there(name: str, path: Path | None) -> bool:
    return path is not None and (path.is_dir() if name == "images" else path.is_file())
