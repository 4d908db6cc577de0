"""Segmentations of annotation files: masks as pycocotools has them, and what is wrong is found before it sees it."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from segmented import of, read, uncompressed

from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.masks import run_length, run_lengths
from detr_container.datasets.segmentations import Segmentations
from detr_container.datasets.shapes import make_shapes
from detr_container.datasets.transforms import Augmentation

SHAPES = 96
"""Pixels of the sides of images of shapes."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks") / "shapes"
    make_shapes(root, 24, 2, SHAPES, workers=0)
    return root


def outlined() -> dict[str, Any]:
    """Three images out of order, the objects of two, and a crowd; polygons begin with the ids of their objects."""
    sizes = {30: (100, 50), 10: (64, 48), 20: (64, 48)}
    return {
        "categories": [{"id": 2, "name": "circle"}],
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]}
            for number, size in sizes.items()
        ],
        "annotations": [
            {"id": 5, "image_id": 30, "category_id": 2, "bbox": [1, 2, 30, 40], "segmentation": [[5, 0, 1, 1, 0, 1]]},
            {"id": 4, "image_id": 10, "category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 1},
            {"id": 9, "image_id": 30, "category_id": 2, "bbox": [90, 40, 5, 5], "segmentation": [[9, 0, 1, 1, 0, 1]]},
        ],
    }


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("names_and_sizes", [True, False])
def test_segmentations_are_kept_where_they_are_asked_for(tmp_path: Path, names_and_sizes: bool) -> None:
    """In the order of the boxes that they belong to, which is that of the images; a crowd need not have one."""
    path = write(tmp_path / "a.json", outlined())
    assert read_annotations(path, tmp_path).segmentations is None
    read = read_annotations(path, tmp_path, names_and_sizes=names_and_sizes, segmentations=True)
    assert read.segmentations is not None
    assert read.annotation_ids.tolist() == [4, 5, 9]
    assert list(read.segmentations) == [None, [[5, 0, 1, 1, 0, 1]], [[9, 0, 1, 1, 0, 1]]]
    assert read.sizes.tolist() == [[48, 64], [48, 64], [50, 100]]
    raw = outlined()
    del raw["images"][1]["height"]
    with pytest.raises(ValueError, match="image 10: width 64, height None; both must be"):
        read_annotations(write(path, raw), tmp_path, names_and_sizes=names_and_sizes, segmentations=True)


def test_objects_without_a_segmentation_are_refused_where_masks_are_asked_for(tmp_path: Path) -> None:
    raw = outlined()
    raw["annotations"] += [
        {"id": number, "image_id": 30, "category_id": 2, "bbox": [0, 0, 5, 5], "segmentation": nothing}
        for number, nothing in enumerate((None, [], {}, [], []), start=40)
    ]
    # Nothing is learnt from these.
    raw["annotations"] += [
        {"id": 50, "image_id": 30, "category_id": 2, "bbox": [7, 7, 0, 5], "segmentation": [[7, 7, 7, 12]]},
        {"id": 51, "image_id": 30, "category_id": 2, "bbox": [0, 0, 5, 5], "segmentation": [], "iscrowd": 1},
    ]
    del raw["annotations"][0]["segmentation"]
    path = write(tmp_path / "a.json", raw)
    assert read_annotations(path, tmp_path).segmentations is None
    with pytest.raises(ValueError, match="data check --masks") as caught:
        read_annotations(path, tmp_path, segmentations=True)
    message = str(caught.value)
    assert "cannot be used: 1 error\n" in message
    assert "6 of 7 objects without a segmentation (annotation 5, 40, 41, 42, 43, ...)" in message
    assert "only Mask R-CNN needs them" in message
    raw["annotations"] = [row for row in raw["annotations"] if row["id"] in (4, 9, 50, 51)]
    read = read_annotations(write(path, raw), tmp_path, segmentations=True)
    assert read.segmentations is not None
    assert read.segmentations.present.tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", ["shapes", "coco_permissive"])
def test_masks_for_scoring_are_those_of_pycocotools(request: pytest.FixtureRequest, name: str) -> None:
    """Of polygons, several for an object, and of both kinds of run-length codes, byte for byte."""
    fixture = "shapes" if name == "shapes" else "shared_data"
    root = request.getfixturevalue(fixture) if name == "shapes" else request.getfixturevalue(fixture) / name
    annotations = read(root)
    found = run_lengths(annotations)
    coco = COCO(str(annotations.path))
    records = coco.loadAnns(annotations.annotation_ids.tolist())
    assert [dict(mask) for mask in found] == [coco.annToRLE(record) for record in records]
    assert len(found) > 50
    segmentations = [record["segmentation"] for record in records]
    assert {type(each) for each in segmentations} == {list, dict}
    sizes = np.repeat(annotations.sizes, np.diff(annotations.starts), axis=0)
    compressed = [{"size": mask["size"], "counts": mask["counts"].decode()} for mask in found]
    for row in range(0, len(found), 7):
        height, width = sizes[row].tolist()
        for same in (segmentations[row], compressed[row], found[row]):
            assert run_length(same, (height, width)) == found[row]


def test_objects_without_a_segmentation_have_an_empty_mask(shapes: Path) -> None:
    annotations = read(shapes)
    row = int(np.flatnonzero(annotations.crowd)[0])
    assert annotations.segmentations is not None
    values = [None if each == row else value for each, value in enumerate(annotations.segmentations)]
    found = run_lengths(replace(annotations, segmentations=of(*values, size=(SHAPES, SHAPES))))
    assert found.areas()[row] == 0
    assert coco_mask.decode(found[row]).shape == (SHAPES, SHAPES)
    others = np.arange(len(found)) != row
    assert found.take(others).areas().tolist() == run_lengths(annotations).take(others).areas().tolist()


def test_masks_of_what_was_read_without_are_refused(shapes: Path) -> None:
    annotations = replace(read(shapes), segmentations=None)
    with pytest.raises(ValueError, match="read without segmentations"):
        run_lengths(annotations)
    with pytest.raises(ValueError, match="read without segmentations"):
        DetectionDataset(annotations, Augmentation((96,), 96), masks=True)


GOOD = [[1, 1, 9, 1, 5, 9]]
CODE = uncompressed(np.arange(80).reshape(8, 10) % 3 == 0)
TEXT = run_length(CODE, (8, 10))["counts"].decode()
FAULTS = [
    ([[1, 2, 3, 4]], "has a polygon of 4 numbers; it takes 6 or more"),
    ([*GOOD, []], "has a polygon of 0 numbers"),
    ([[1, 2, 3, 4, 5, 6, 7]], "has a polygon of 7 numbers; it takes 6 or more, x and y in turn"),
    ([[1, 2, 3, 4, 5, float("nan")]], "has a number that is not finite"),
    ([*GOOD, [1, 2, 3, float("-inf"), 5, 6]], "has a number that is not finite"),
    ([[1, 2, 3, 10**400, 5, 6]], "is neither a list of polygons"),
    ([[1, 2, 3, "4", 5, 6]], "is neither a list of polygons"),
    ([1, 2, 3, 4, 5, 6], "is neither a list of polygons"),
    ([[[1, 2], [3, 4], [5, 6]]], "is neither a list of polygons"),
    ([None], "is neither a list of polygons"),
    ("AAA", "'AAA' is neither a list of polygons"),
    (7, "7 is neither a list of polygons"),
    ([[1, 1, 2e9, 1, 5, 9]], "reaches from (1, 1) to (2e+09, 9), far outside its image of 10 x 8 pixels"),
    ([[1, -9, 9, 1, 5, 9]], "reaches from (1, -9) to (9, 9), far outside"),
    (CODE | {"size": [10, 8]}, "has the size [10, 8]; its image has [8, 10] (height, width)"),
    (CODE | {"size": 80}, "has the size 80;"),
    ({"size": [8, 10]}, "has counts None; they are a list of whole numbers, or a text"),
    (CODE | {"counts": [79]}, "has counts that add up to 79 pixels; its image has 10 x 8 = 80"),
    (CODE | {"counts": [2**62, 2**62, 2**62, 2**62, 80]}, "has counts that add up to"),
    (CODE | {"counts": [90, -10]}, "has counts that are not whole numbers of 0 or above"),
    (CODE | {"counts": [79.5, 0.5]}, "has counts that are not whole numbers of 0 or above"),
    (CODE | {"counts": []}, "has counts that add up to 0 pixels"),
    (CODE | {"counts": ""}, "is no run-length code of 10 x 8 pixels"),
    (CODE | {"counts": TEXT[:-1]}, "is no run-length code of 10 x 8 pixels"),
    (CODE | {"counts": TEXT + "o"}, "is no run-length code of 10 x 8 pixels"),
    (CODE | {"counts": TEXT + "ooooooooooooooooo0"}, "is no run-length code of 10 x 8 pixels"),
    (CODE | {"counts": "\u00fc" + TEXT}, "is no run-length code of 10 x 8 pixels"),
    (CODE | {"counts": "\0" + TEXT}, "is no run-length code of 10 x 8 pixels"),
]


@pytest.mark.parametrize(("value", "fault"), FAULTS, ids=range(len(FAULTS)))
def test_what_cannot_be_used_is_named_before_pycocotools_sees_it(tmp_path: Path, value: Any, fault: str) -> None:
    """Alone, and in a file among sound ones, where the annotation is named."""
    with pytest.raises(ValueError, match=r"^segmentation ") as caught:
        run_length(value, (8, 10))
    assert fault in str(caught.value)
    records = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "segmentation": segmentation}
        for number, segmentation in ((70, GOOD), (71, value), (72, CODE | {"counts": TEXT}), (73, CODE))
    ]
    raw = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
        "annotations": records,
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"1 error\n.*annotation 71: segmentation ") as caught:
        read_annotations(path, tmp_path, segmentations=True)
    assert fault in str(caught.value)
    assert "only Mask R-CNN needs it" in str(caught.value)
    # What is sound is as it was.
    found, faults = Segmentations.checked([record["segmentation"] for record in records], np.full((4, 2), (8, 10)))
    assert list(faults) == [1]
    assert [found[row] for row in (0, 1)] == [GOOD, None]
    assert found[2] == found[3] == run_length(CODE, (8, 10))


NUMBERS = st.integers(-5, 90) | st.floats(-30, 30) | st.sampled_from([float("nan"), float("inf"), 2**70, 1e300, True])
VALUES = st.none() | NUMBERS | st.text("0PQ`op\x7f", max_size=9)
CODES = st.fixed_dictionaries(
    {}, optional={"size": st.sampled_from([[8, 10], [10, 8], [8.0, 10], 80]), "counts": VALUES | st.lists(VALUES)}
)
ANYTHING = st.recursive(VALUES | CODES, lambda inner: st.lists(inner, max_size=8), max_leaves=20)


@given(st.lists(ANYTHING | st.lists(st.lists(NUMBERS, min_size=5, max_size=9), min_size=1, max_size=2), max_size=4))
def test_whatever_a_file_has_is_a_mask_or_a_fault_and_never_a_crash(values: list[Any]) -> None:
    found, faults = Segmentations.checked(values, np.full((len(values), 2), (8, 10)))
    assert len(found) == len(values)
    for row, value in enumerate(values):
        assert (row in faults) + bool(found.present[row]) + (value in (None, [], {})) == 1
        if found.present[row]:
            assert coco_mask.decode(run_length(value, (8, 10))).shape == (8, 10)


def test_an_image_with_more_pixels_than_pycocotools_counts_has_no_masks() -> None:
    with pytest.raises(ValueError, match=r"is in an image of more than 2,147,483,647 pixels"):
        run_length(GOOD, (50_000, 50_000))
    assert run_length(GOOD, (40_000, 40_000))["size"] == [40_000, 40_000]


def test_loader_processes_get_a_few_arrays_however_many_objects_there_are(shapes: Path) -> None:
    annotations = read(shapes)
    assert annotations.segmentations is not None
    every = list(annotations.segmentations)

    def pickled(times: int) -> tuple[int, int]:
        many = replace(annotations, segmentations=of(*every * times, size=(SHAPES, SHAPES)))
        arrays: list[pickle.PickleBuffer] = []
        text = pickle.dumps(
            DetectionDataset(many, Augmentation((96,), 96), masks=True), 5, buffer_callback=arrays.append
        )
        again: DetectionDataset = pickle.loads(text, buffers=arrays)
        assert again.annotations.segmentations is not None
        assert list(again.annotations.segmentations) == every * times
        return len(text), len(arrays)

    once, often = pickled(1), pickled(30)
    assert often[1] == once[1]
    assert often[0] < once[0] + 200
