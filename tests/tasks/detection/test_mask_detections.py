"""Masks of detections: joined from ranks, on disk and back, damaged, and as COCO's results have them."""

from __future__ import annotations

import io
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated
from pycocotools import mask as coco

from detr_container.commands import cli
from detr_container.datasets.run_lengths import RunLengths
from detr_container.tasks.detection.coco_results import columns_of, read_kept, read_results, records_of, write_results
from detr_container.tasks.detection.detections import NAME, Columns, Detections, starts_of

WORLD = simulated.scene(12, 4, seed=3)
_PLAIN = simulated.detect(WORLD, 0.5, seed=4, per_image=9)
FOUND = simulated.detections(_PLAIN._replace(masks=simulated.outlines(_PLAIN.boxes, seed=5)))
BARE = replace(FOUND, masks=None)


def masks_of(found: Detections | Columns) -> list[Any]:
    assert found.masks is not None
    return list(found.masks)


def some(places: list[int]) -> Detections:
    """The detections of some images, as they come from another process."""
    rows = np.concatenate([np.arange(*FOUND.starts[place : place + 2]) for place in [0, *places]])
    rows = rows[FOUND.starts[1] :]
    assert FOUND.masks is not None
    chosen = Detections(
        FOUND.image_ids[places],
        starts_of(np.diff(FOUND.starts)[places]),
        FOUND.scores[rows],
        FOUND.labels[rows],
        FOUND.boxes[rows],
        FOUND.category_ids,
        FOUND.masks.take(rows),
    )
    shipped: Detections = pickle.loads(pickle.dumps(chosen))
    return shipped


def assert_same(one: Detections, other: Detections) -> None:
    for name, column in vars(one).items():
        if name != "masks":
            np.testing.assert_array_equal(column, getattr(other, name), err_msg=name)
    assert masks_of(one) == masks_of(other)


def test_masks_go_where_their_detections_go() -> None:
    ids = FOUND.category_ids.tolist()
    parts = [some(places) for places in ([0, 3, 6, 9], [1, 4, 7, 10, 0], [2, 5, 8, 11, 3, 1])]
    # A process without images knows of no masks, and one that finds nothing has none.
    idle, empty = Detections.joined([], ids), some([])
    assert (idle.masks, masks_of(empty)) == (None, [])
    assert_same(Detections.joined([idle, *parts, empty], ids), FOUND)
    assert masks_of(Detections.joined([idle, empty], ids)) == []
    columns = FOUND.columns()
    assert masks_of(columns) == masks_of(FOUND)
    assert columns.images.tolist() == np.repeat(FOUND.image_ids, np.diff(FOUND.starts)).tolist()
    with pytest.raises(ValueError, match="with masks and without, 1 and 1 parts"):
        Detections.joined([some([1]), replace(some([2]), masks=None)], ids)


def test_the_file_holds_masks_to_the_last_bit_and_files_without_are_what_they_were(tmp_path: Path) -> None:
    empty = Detections.joined([some([])], [7])
    for found in (FOUND, empty):
        for name in "ab":
            found.write(tmp_path / name)
        assert_same(Detections.read(tmp_path / "a"), found)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    BARE.write(tmp_path / "bare")
    assert Detections.read(tmp_path / "bare").masks is None
    with np.load(tmp_path / "bare") as columns:
        assert sorted(columns) == ["boxes", "category_ids", "counts", "image_ids", "labels", "scores"]
    FOUND.write(tmp_path / NAME)
    assert masks_of(read_kept(tmp_path)) == masks_of(FOUND)


def packed(**changed: Any) -> bytes:
    """A file with other columns."""
    columns = {name: column for name, column in vars(FOUND).items() if name not in ("masks", "starts")}
    assert FOUND.masks is not None
    masks = {f"mask_{name}": getattr(FOUND.masks, name) for name in ("sizes", "lengths", "code")}
    columns |= {"counts": np.diff(FOUND.starts), **masks, **changed}
    file = io.BytesIO()
    np.savez_compressed(file, **{name: column for name, column in columns.items() if column is not None})
    return file.getvalue()


def changed_code(at: int, value: int) -> Any:
    assert FOUND.masks is not None
    code = FOUND.masks.code.copy()
    code[at] = value
    return code


def changed_sizes(row: int, size: list[int]) -> Any:
    assert FOUND.masks is not None
    sizes = FOUND.masks.sizes.copy()
    sizes[row] = size
    return sizes


LENGTHS: Any = FOUND.masks and FOUND.masks.lengths
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "codes without lengths": ({"mask_lengths": None}, "mask_lengths.npy"),
    "sizes alone": ({"mask_lengths": None, "mask_code": None}, "mask_lengths.npy"),
    "lengths of another type": ({"mask_lengths": LENGTHS.astype(np.int32)}, "mask_lengths is int32"),
    "a mask less": ({"mask_lengths": LENGTHS[1:]}, "not of the same length|sizes of"),
    "lengths of another sum": ({"mask_lengths": LENGTHS + 1}, "lengths of its masks' codes do not add up"),
    "lengths that overflow": ({"mask_lengths": np.full(len(LENGTHS), 2**62)}, "do not add up"),
    "lengths that are not the codes'": ({"mask_lengths": np.roll(LENGTHS, 1)}, "runs do not add up to its 480 x 640"),
    "another image's size": ({"mask_sizes": changed_sizes(4, [240, 320])}, "mask 4 has a code .* its 240 x 320 pixels"),
    "of no pixels": ({"mask_sizes": changed_sizes(4, [0, 640])}, "mask 4 is of 0 x 640 pixels"),
    "a turned image's size": ({"mask_sizes": changed_sizes(4, [640, 480])}, "has masks of 480 x 640 and of 640 x 480"),
    "a run more": ({"mask_code": changed_code(0, 49)}, "mask 0 has a code whose runs do not add up"),
    "a code that goes on": ({"mask_code": changed_code(int(LENGTHS[0]) - 1, 111)}, "mask 0 has a code"),
    "no character of a code": ({"mask_code": changed_code(0, 200)}, "mask 0 has a code"),
}


@pytest.mark.parametrize("what", WRONG)
def test_masks_that_do_not_fit_are_named_with_their_file(what: str, tmp_path: Path) -> None:
    changed, message = WRONG[what]
    simulated.assert_refused(tmp_path / NAME, packed(**changed), message)


def test_no_damage_of_masks_is_a_traceback_or_passes_for_detections(tmp_path: Path) -> None:
    whole, path, rng = packed(), tmp_path / NAME, random.Random(6)
    handled = 0
    for _ in range(300):
        at = rng.randrange(len(whole))
        new = rng.choice([b"", bytes([rng.randrange(256)]), bytes(rng.randrange(256) for _ in range(4))])
        path.write_bytes(whole[:at] + new + whole[at + rng.randrange(5) :] if rng.random() < 0.8 else whole[:at])
        try:
            found = Detections.read(path)
        except ValueError as error:
            handled += str(path) in str(error)
        else:
            # The change is in what nothing depends on.
            assert_same(found, FOUND)
            handled += 1
    assert handled == 300


def test_records_have_masks_and_are_read_back_with_them(tmp_path: Path) -> None:
    FOUND.write(tmp_path / NAME)
    assert cli.main(["detections", str(tmp_path), str(tmp_path / "out.json")]) == 0
    records = read_results(tmp_path / "out.json")
    assert [dict(record) for record in records] == json.loads((tmp_path / "out.json").read_text())
    assert set(records[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    first = coco.decode(records[0]["segmentation"])
    np.testing.assert_array_equal(first, coco.decode(masks_of(FOUND)[0]))
    columns, expected = columns_of(records), FOUND.columns()
    assert masks_of(columns) == masks_of(expected)
    for one, other in zip(columns[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(records_of(columns)) == records
    write_results(tmp_path / "again.json", columns)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "out.json").read_bytes()
    assert columns_of(list(records_of(BARE.columns()))).masks is None


RECORD: Any = {"image_id": 1, "category_id": 7, "bbox": [0.0, 0, 5, 5], "score": 0.5}
CODE: Any = {"size": [9, 7], "counts": coco.encode(np.asfortranarray(np.eye(9, 7, dtype=np.uint8)))["counts"].decode()}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "record 1: segmentation is missing"),
        ([[1, 1, 5, 1, 5, 5]], "record 1: segmentation .* of all or of none"),
        ({"size": [9, 7]}, "record 1: segmentation counts is missing"),
        ({**CODE, "counts": [9, 9, 45]}, "record 1: segmentation counts=.* valid string"),
        ({**CODE, "counts": ""}, "mask 1 has a code"),
        ({**CODE, "counts": "\u00e9"}, "record 1: segmentation counts"),
        ({**CODE, "counts": CODE["counts"][:-1]}, "mask 1 has a code whose runs do not add up to its 9 x 7 pixels"),
        ({**CODE, "counts": CODE["counts"] + "o"}, "mask 1 has a code"),
        ({**CODE, "size": [7, 9]}, "image 1 has masks of 9 x 7 and of 7 x 9 pixels"),
        ({**CODE, "size": [9, 8]}, "mask 1 has a code .* 9 x 8"),
        ({**CODE, "size": ["9", 7]}, "record 1: segmentation size.0='9'"),
        ({**CODE, "size": [9.0, 7]}, "record 1: segmentation size.0=9.0"),
        ({**CODE, "size": [9, 7, 1]}, "record 1: segmentation size"),
        ({**CODE, "size": [2**62, 4]}, "record 1: segmentation size.0"),
        ({**CODE, "size": [9, True]}, "record 1: segmentation size.1=True"),
    ],
)
def test_records_of_damaged_masks_are_refused_and_not_decoded(segmentation: Any, message: str) -> None:
    records = [{**RECORD, "segmentation": CODE}, {**RECORD, "segmentation": segmentation}]
    if segmentation is None:
        del records[1]["segmentation"]
    with pytest.raises(ValueError, match=message):
        columns_of(records)


def test_polygons_of_other_tools_are_no_masks() -> None:
    """What loadRes makes of boxes, and what labelling tools leave empty."""
    for other in ([], None, [[0, 0, 0, 5, 5, 5, 5, 0]]):
        assert columns_of([{**RECORD, "segmentation": other}] * 2).masks is None


def test_masks_of_hundreds_of_images_are_kept_and_read(tmp_path: Path) -> None:
    """A hundred in each, as COCO counts no more."""
    images, each = 500, 100
    assert FOUND.masks is not None
    rows = np.random.default_rng(0).integers(0, len(FOUND.masks), images * each)
    many = Detections(
        np.arange(images),
        np.arange(0, images * each + 1, each),
        FOUND.scores[rows],
        FOUND.labels[rows],
        FOUND.boxes[rows],
        FOUND.category_ids,
        FOUND.masks.take(rows),
    )
    many.write(tmp_path / NAME)
    found = Detections.read(tmp_path / NAME)
    assert found.masks is not None
    assert isinstance(found.masks, RunLengths)
    np.testing.assert_array_equal(found.masks.areas(), FOUND.masks.areas()[rows])
