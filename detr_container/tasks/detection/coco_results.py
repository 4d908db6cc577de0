"""Detections in COCO's result format: JSON for other programs, and what earlier versions kept of evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detr_container.base.checked import Schema, mistakes, read_plain
from detr_container.base.files import atomic_write
from detr_container.datasets.run_length_codes import first_fault
from detr_container.datasets.run_lengths import RunLength, RunLengths
from detr_container.engine.run import evaluation_of

from .detections import NAME, Columns, Detections, other_sizes

OLD_NAME = "detections.json"
_RULE = "each has image_id and category_id (whole numbers), bbox [x, y, width, height] in pixels and score"
_MASKS = "segmentation is {size: [height, width] of the image, counts: a compressed run-length code}, of all or of none"
_LARGEST = 1 << 33
"""Bytes of a file of detections: ten times what the largest public data sets make."""


class DetectionRow(Schema):
    """One detection of a file."""

    image_id: int
    category_id: int
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    score: float


class ResultMask(TypedDict):
    """A mask in COCO's result format: size is height and width in pixels, counts a compressed run-length code."""

    size: list[int]
    counts: str


class MaskRow(Schema):
    """A mask of a file."""

    size: Annotated[list[Annotated[int, Field(ge=1, lt=1 << 31)]], Field(min_length=2, max_length=2)]
    counts: Annotated[str, Field(pattern=r"^[0-o]+$")]


class ResultRecord(TypedDict):
    """One detection in COCO's result format: bbox is x, y, width, height in pixels of the image on disk."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[ResultMask]


def is_kept(folder: Path) -> bool:
    """Whether an evaluation has left its detections in its folder."""
    return (folder / NAME).is_file() or (folder / OLD_NAME).is_file()


def read_kept(folder: Path) -> Columns:
    """The detections that an evaluation left in its folder, in whichever form its version kept them.

    Raises ValueError when there are none, or when they cannot be read.
    """
    if (folder / NAME).is_file():
        return Detections.read(folder / NAME).columns()
    if (folder / OLD_NAME).is_file():
        return columns_of(read_results(folder / OLD_NAME))
    raise ValueError(f"{folder / NAME} is missing")


def read_results(path: str | Path) -> list[ResultRecord]:
    """Read a file in COCO's result format. Raises ValueError when it is not one."""
    content = read_plain(Path(path), _LARGEST)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}: COCO's result format is a list; {_RULE}")
    return content


def evaluation_folder(source: Path, epoch: int = 0) -> Path:
    """Where the detections of a run's epoch are (0: of the newest that has them), or those in a folder itself.

    Raises ValueError where there are none.
    """
    if is_kept(source) and not epoch:
        return source
    folders = [folder for folder in (source / "detections").glob("epoch-*") if is_kept(folder)]
    # By number, since a thousand epochs have more digits.
    folders.sort(key=lambda folder: (len(folder.name), folder.name))
    chosen = [folder for folder in folders if not epoch or folder == evaluation_of(source, epoch)]
    if not chosen:
        listed = ", ".join(folder.name for folder in folders) or "none of any epoch"
        raise ValueError(
            f"{source} has no detections{f' of epoch {epoch}' if epoch else ''} ({listed}): name a run that was "
            "evaluated, or a folder that `evaluate` wrote"
        )
    return chosen[-1]


def write_results(path: str | Path, results: Columns | Sequence[ResultRecord], follow: bool = False) -> None:
    """Write detections in COCO's result format, one a line, whole or not at all.

    follow: see `atomic_write`. Raises ValueError for what is not finite, which JSON cannot hold.
    """
    encode = json.JSONEncoder(allow_nan=False).encode
    lines = map(encode, records_of(results) if isinstance(results, Columns) else results)
    try:
        text = "[\n" + ",\n".join(lines) + "\n]\n"
    except ValueError as error:
        raise ValueError(f"{path} cannot be written ({error}): a model that gives such boxes has diverged") from error
    atomic_write(path, lambda file: file.write(text.encode()), follow=follow)


def records_of(found: Columns) -> Iterator[ResultRecord]:
    """The same as COCO's records, one by one."""
    rows = zip(
        found.images.tolist(), found.categories.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
    )
    masks = iter(found.masks or ())
    for image_id, category_id, bbox, score in rows:
        record = ResultRecord(image_id=image_id, category_id=category_id, bbox=bbox, score=score)
        if found.masks is not None:
            record["segmentation"] = in_json(next(masks))
        yield record


def in_json(mask: RunLength) -> ResultMask:
    """A mask as JSON has it."""
    return ResultMask(size=mask["size"], counts=mask["counts"].decode("ascii"))


def columns_of(results: Sequence[ResultRecord]) -> Columns:
    """Records as columns, with masks where they have any. Raises ValueError naming the first not in COCO's format."""
    if not results:
        nothing = np.zeros(0, dtype=np.int64)
        return Columns(nothing, nothing, np.zeros((0, 4)), np.zeros(0))
    try:
        images = np.asarray([record["image_id"] for record in results])
        categories = np.asarray([record["category_id"] for record in results])
        boxes = np.asarray([record["bbox"] for record in results])
        confidences = np.asarray([record["score"] for record in results])
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise ValueError(_not_in_format(results)) from error
    kinds = (images.dtype.kind, categories.dtype.kind, boxes.dtype.kind, confidences.dtype.kind)
    shapes = (images.shape, categories.shape, confidences.shape, boxes.shape)
    # As they came: asked for numbers, numpy would make some of texts.
    fits = all(kind in allowed for kind, allowed in zip(kinds, ("iu", "iu", "iuf", "iuf"), strict=True))
    if not fits or shapes != (*[(len(results),)] * 3, (len(results), 4)):
        raise ValueError(_not_in_format(results))
    return Columns(
        images, categories, boxes.astype(np.float64), confidences.astype(np.float64), _masks_of(images, results)
    )


def _masks_of(images: NDArray[Any], results: Sequence[ResultRecord]) -> RunLengths | None:
    """Those of records, if they have any. Raises ValueError where some have none, or one cannot be decoded."""
    given = [record.get("segmentation") for record in results]
    # What loadRes of COCO's own tools makes of boxes, polygons of four corners, is none.
    if not any(isinstance(mask, dict) for mask in given):
        return None
    for index, mask in enumerate(given):
        if not _is_mask(mask):
            wrong = "is missing" if mask is None else mistakes(mask, MaskRow)
            raise ValueError(
                f"detections are not in COCO's result format: record {index}: segmentation {wrong}; {_MASKS}"
            )
    masks = RunLengths.of([RunLength(size=mask["size"], counts=mask["counts"].encode()) for mask in given if mask])
    if wrong := first_fault(masks) or other_sizes(images, masks.sizes):
        raise ValueError(f"detections are not in COCO's result format: {wrong}; {_MASKS}")
    return masks


def _is_mask(mask: Any) -> bool:
    """As the schema, a hundred times as fast; what it lets pass is looked at together."""
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str) or not mask["counts"].isascii():
        return False
    size = mask.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 1 << 31 for side in size)


def _not_in_format(results: Sequence[Any]) -> str:
    """What is wrong with the first record that is."""
    for index, record in enumerate(results):
        if wrong := mistakes(record, DetectionRow):
            return f"detections are not in COCO's result format: record {index}: {wrong}; {_RULE}"
    return f"detections are not in COCO's result format: {_RULE}"
