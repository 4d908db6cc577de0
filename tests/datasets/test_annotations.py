"""Annotation files: what is read equals what naive loops read, and every kind of damage is found and named."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detr_container.datasets.annotations import (
    find_problems,
    load_json,
    parse_annotations,
    read_annotations,
    resolve,
    resolve_split,
)

HERE = Path("folder/annotations.json")


def valid() -> dict[str, Any]:
    """Two classes with a gap, three images out of order (one empty), a crowd, and a box without area's field."""
    return {
        "categories": [{"id": 7, "name": "star"}, {"id": 2, "name": "circle"}],
        "images": [
            {"id": 30, "file_name": "c.jpg", "width": 100, "height": 50},
            {"id": 10, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 20, "file_name": "b.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 5, "image_id": 30, "category_id": 7, "bbox": [1, 2, 30.5, 40], "area": 900.5, "iscrowd": 0},
            {"id": 4, "image_id": 10, "category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 1},
            {"id": 9, "image_id": 30, "category_id": 2, "bbox": [99, 49, 1, 1], "area": 1},
        ],
    }


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def found(raw: object) -> set[tuple[str, str]]:
    return {(problem.severity, problem.kind) for problem in find_problems(raw, HERE)}


def test_a_file_is_read_in_order_of_image_ids_with_contiguous_labels(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path / "a.json", valid()), tmp_path / "images")
    assert [(category.id, category.name) for category in read.categories] == [(2, "circle"), (7, "star")]
    assert read.image_ids.tolist() == [10, 20, 30]
    assert read.file_names == ("a.jpg", "b.jpg", "c.jpg")
    assert read.sizes.tolist() == [[48, 64], [48, 64], [50, 100]]
    assert read.starts.tolist() == [0, 1, 1, 3]
    assert read.annotation_ids.tolist() == [4, 5, 9]
    assert read.labels.tolist() == [0, 1, 0]
    assert read.crowd.tolist() == [True, False, False]
    assert read.areas.tolist() == [100.0, 900.5, 1.0]
    assert read.boxes.tolist() == [[0, 0, 10, 10], [1, 2, 30.5, 40], [99, 49, 1, 1]]
    dtypes = [getattr(read, name).dtype for name in ("image_ids", "sizes", "labels", "annotation_ids", "starts")]
    assert dtypes == [np.int64] * 5
    assert (read.boxes.dtype, read.areas.dtype, read.crowd.dtype) == (np.float64, np.float64, np.bool_)
    assert (read.path, read.image_dir) == (tmp_path / "a.json", tmp_path / "images")
    assert found(valid()) == set()


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid file: ids in any order with any gaps, any number of objects."""
    ids = st.integers(0, 10**12)
    category_ids = draw(st.lists(ids, min_size=1, max_size=5, unique=True))
    image_ids = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    sides = st.integers(1, 300)
    images = [
        {"id": image_id, "file_name": f"{image_id}.jpg", "width": draw(sides), "height": draw(sides)}
        for image_id in image_ids
    ]
    annotations = []
    for annotation_id in draw(st.lists(ids, max_size=12, unique=True)):
        image = draw(st.sampled_from(images))
        left, top = draw(st.integers(0, image["width"] - 1)), draw(st.integers(0, image["height"] - 1))
        annotations.append(
            {
                "id": annotation_id,
                "image_id": image["id"],
                "category_id": draw(st.sampled_from(category_ids)),
                "bbox": [left, top, draw(st.floats(0.1, image["width"] - left)), draw(st.integers(1, 300))],
                "iscrowd": draw(st.sampled_from([0, 1, False, True])),
                "area": draw(st.none() | st.floats(0, 1e6)),
            }
        )
    categories = [{"id": category_id, "name": f"class {category_id}"} for category_id in category_ids]
    return {"categories": categories, "images": images, "annotations": annotations}


@given(files())
def test_reading_agrees_with_naive_loops(raw: dict[str, Any]) -> None:
    read, problems = parse_annotations(raw, HERE, HERE.parent)
    assert not [problem for problem in problems if problem.severity == "error"]
    order = sorted(category["id"] for category in raw["categories"])
    assert [category.id for category in read.categories] == order
    row = 0
    for index, image in enumerate(sorted(raw["images"], key=lambda image: image["id"])):
        assert read.image_ids[index] == image["id"]
        assert tuple(read.sizes[index]) == (image["height"], image["width"])
        assert read.file_names[index] == image["file_name"]
        assert read.starts[index] == row
        for record in (record for record in raw["annotations"] if record["image_id"] == image["id"]):
            _, _, width, height = record["bbox"]
            assert read.annotation_ids[row] == record["id"]
            assert read.labels[row] == order.index(record["category_id"])
            assert read.boxes[row].tolist() == record["bbox"]
            assert read.crowd[row] == bool(record["iscrowd"])
            assert read.areas[row] == (width * height if record["area"] is None else record["area"])
            row += 1
    assert read.starts[-1] == row == len(read.boxes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_damaged_value_is_a_problem_and_never_a_crash(data: st.DataObject) -> None:
    raw = valid()
    path = [data.draw(st.sampled_from(sorted(raw)))]
    holder: Any = raw
    while isinstance(holder[path[-1]], list | dict) and holder[path[-1]] and data.draw(st.integers(0, 4)):
        holder = holder[path[-1]]
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        path.append(data.draw(st.sampled_from(keys)))
    holder[path[-1]] = data.draw(json_values)
    read, problems = parse_annotations(raw, HERE, HERE.parent)
    assert len(read.boxes) == len(read.labels) == len(read.crowd) == read.starts[-1]
    complete = len(read.boxes) == 3 or raw["annotations"] == []
    assert complete or any(problem.severity == "error" for problem in problems)
    assert np.isfinite(read.boxes).all()
    assert (read.boxes[:, 2:] >= 0).all()
    assert np.isin(read.labels, np.arange(len(read.categories))).all()


def changed(section: str, index: int, **values: Any) -> dict[str, Any]:
    raw = valid()
    raw[section][index].update(values)
    return raw


def without(section: str, index: int, key: str) -> dict[str, Any]:
    raw = valid()
    del raw[section][index][key]
    return raw


DAMAGE = [
    (changed("annotations", 0, bbox=[1, 2, math.nan, 4]), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, math.inf, 4]), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, 3]), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, "3", 4]), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, True, 4]), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, 10**400, 4]), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, -3, 4]), "error", "bbox", "negative"),
    (without("annotations", 0, "bbox"), "error", "bbox", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 2, 0, 4]), "warning", "empty-box", "annotation 5 (image 30"),
    (changed("annotations", 0, bbox=[100, 2, 5, 4]), "error", "outside", "100 x 50 pixels"),
    (changed("annotations", 0, bbox=[-8, 2, 8, 4]), "error", "outside", "annotation 5"),
    (changed("annotations", 0, bbox=[1, 60, 5, 4]), "error", "outside", "annotation 5"),
    (changed("annotations", 0, bbox=[-1.5, 2, 8, 4]), "warning", "beyond-edge", "annotation 5"),
    (changed("annotations", 0, bbox=[90, 2, 12, 4]), "warning", "beyond-edge", "annotation 5"),
    (changed("annotations", 0, image_id=31), "error", "unknown-image", "31"),
    (changed("annotations", 0, image_id="30"), "error", "image_id", "'30'"),
    (changed("annotations", 0, category_id=3), "error", "unknown-category", "annotation 5: no usable category 3"),
    (changed("annotations", 0, category_id=None), "error", "category_id", "annotation 5"),
    (changed("annotations", 0, iscrowd=2), "error", "iscrowd", "annotation 5"),
    (changed("annotations", 0, area=-1), "error", "area", "annotation 5"),
    (changed("annotations", 0, area=2**63), "error", "area", "more than 1e+10 pixels"),
    (changed("annotations", 0, bbox=[1, 2, 1e300, 4]), "error", "bbox", "not within 1e+09 pixels"),
    (changed("annotations", 0, area=math.nan), "error", "area", "annotation 5"),
    (changed("annotations", 0, id=4), "error", "duplicate-annotation-id", "annotation 4"),
    (without("annotations", 0, "id"), "error", "annotation-id", "annotation record 0"),
    (changed("images", 0, id=10), "error", "duplicate-image-id", "image 10"),
    (changed("images", 0, width=0), "error", "image-size", "image 30"),
    (changed("images", 0, height=-50), "error", "image-size", "image 30"),
    (changed("images", 0, height="50"), "error", "image-size", "'50'"),
    (changed("images", 0, file_name=""), "error", "file-name", "image 30"),
    (changed("images", 0, file_name="a\0.jpg"), "error", "file-name", "image 30"),
    (changed("images", 0, file_name="a\ud800.jpg"), "error", "file-name", "image 30"),
    (changed("images", 0, file_name="/images/c.jpg"), "warning", "file-elsewhere", "/images/c.jpg leads out"),
    (changed("images", 0, file_name="../c.jpg"), "warning", "file-elsewhere", "image 30"),
    (changed("images", 0, file_name=None, coco_url="http://x/train2017/1.jpg"), "error", "file-name", "as in LVIS"),
    (without("images", 0, "file_name"), "error", "file-name", "image 30"),
    (changed("images", 0, file_name="a.jpg"), "warning", "duplicate-file", "image 30: a.jpg is also image 10"),
    (changed("images", 0, id=2**70), "error", "image-id", str(2**70)),
    (changed("categories", 0, id=2), "error", "duplicate-category-id", "category 2"),
    (changed("categories", 0, name=3), "error", "category-name", "category 7"),
    (changed("categories", 0, name="circle"), "error", "duplicate-category-name", "2, 7"),
    ({**valid(), "annotations": []}, "warning", "unused-class", "category 2 (circle)"),
    ({**valid(), "images": []}, "error", "section", "'images' is empty"),
    ({**valid(), "images": {}}, "error", "section", "'images' is a dict"),
    ({**valid(), "annotations": [3]}, "error", "record", "'annotations' record 0 is 3"),
    ({"images": [], "categories": []}, "error", "section", "'annotations' is missing"),
    ([{"image_id": 3, "score": 0.5}], "error", "section", "detections"),
]


@pytest.mark.parametrize(("raw", "severity", "kind", "message"), DAMAGE)
def test_every_kind_of_damage_is_found_and_named(raw: Any, severity: str, kind: str, message: str) -> None:
    matching = [p for p in find_problems(raw, HERE) if (p.severity, p.kind) == (severity, kind)]
    assert matching
    assert any(message in problem.message for problem in matching)
    assert all(problem.message.startswith("folder/annotations.json: ") for problem in matching)


def many(boxes: list[list[float]]) -> dict[str, Any]:
    raw = valid()
    kinds = [category["id"] for category in raw["categories"]]
    raw["annotations"] = [
        {"id": number, "image_id": 30, "category_id": kinds[number % 2], "bbox": box}
        for number, box in enumerate(boxes)
    ]
    return raw


def test_boxes_of_another_convention_are_remarked_upon() -> None:
    """On an image of 100 x 50 pixels: shares of its sides, corners, and COCO's own."""
    corners = [[60, 5, 95, 45], [50, 20, 90, 48], [1, 1, 99, 49], [70, 30, 80, 40.0]]
    sides = [[left, top, right - left, bottom - top] for left, top, right, bottom in corners]
    shares = [[left / 100, top / 50, width / 100, height / 50] for left, top, width, height in sides]
    assert found(many(shares)) == {("warning", "boxes-within-a-pixel")}
    assert found(many(corners)) >= {("warning", "boxes-as-corners")}
    assert found(many(sides)) == set()
    # A single odd one, or too few to tell, are none.
    assert found(many([*sides, [0, 0, 1, 1]])) == set()
    assert found(many(shares[:2])) == set()


def test_a_file_without_annotations_is_for_evaluation_alone(tmp_path: Path) -> None:
    raw = valid()
    del raw["annotations"]
    path = write(tmp_path / "a.json", raw)
    with pytest.raises(ValueError, match="image_info files have none"):
        read_annotations(path, tmp_path)
    read = read_annotations(path, tmp_path, unlabelled=True)
    assert (read.labelled, len(read.boxes), read.image_ids.tolist()) == (False, 0, [10, 20, 30])
    assert read_annotations(write(path, valid()), tmp_path, unlabelled=True).labelled


@pytest.mark.parametrize("box", [[-1, 0, 65, 48], [0, 0, 65, 49], [63.5, 47.5, 1, 1]])
def test_a_pixel_beyond_the_edge_is_rounding_and_no_problem(box: list[float]) -> None:
    assert found(changed("annotations", 1, bbox=box)) == set()


def test_an_unused_parent_category_of_the_same_name_is_only_a_warning() -> None:
    raw = valid()
    raw["categories"].append({"id": 0, "name": "star"})
    assert found(raw) == {("warning", "duplicate-category-name"), ("warning", "unused-class")}
    raw["annotations"][0]["category_id"] = 0
    raw["annotations"].append({"id": 77, "image_id": 30, "category_id": 7, "bbox": [1, 1, 5, 5]})
    assert found(raw) == {("error", "duplicate-category-name")}


def test_reading_refuses_errors_with_a_few_records_and_the_remedy(tmp_path: Path) -> None:
    raw = valid()
    raw["annotations"] += [{"id": 100 + i, "image_id": 99, "category_id": 2, "bbox": [0, 0, 5, 5]} for i in range(8)]
    with pytest.raises(ValueError, match="detr-container data check") as caught:
        read_annotations(write(tmp_path / "a.json", raw), tmp_path)
    message = str(caught.value)
    assert "8 errors" in message
    assert "annotation 104: no usable image 99" in message
    assert "annotation 105" not in message
    assert "and 3 more" in message


def test_boxes_without_area_are_read_with_a_warning(tmp_path: Path) -> None:
    raw = changed("annotations", 1, bbox=[5, 5, 0, 3])
    read = read_annotations(write(tmp_path / "a.json", raw), tmp_path)
    assert read.boxes[0].tolist() == [5, 5, 0, 3]
    assert found(raw) == {("warning", "empty-box")}


def test_a_file_cut_short_is_named_with_the_place(tmp_path: Path) -> None:
    text = json.dumps(valid(), indent=1)
    path = tmp_path / "a.json"
    path.write_text(text[: len(text) // 2])
    line = text[: len(text) // 2].count("\n") + 1
    with pytest.raises(ValueError, match=rf"a\.json is not valid JSON: .* at line ({line}|{line - 1}), column \d+"):
        read_annotations(path, tmp_path)
    path.write_bytes(b"\xff\xd8\xff\xe0 an image")
    with pytest.raises(ValueError, match="not a JSON text file"):
        read_annotations(path, tmp_path)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        read_annotations(tmp_path / "absent.json", tmp_path)


def test_finding_problems_leaves_the_parsed_file_alone() -> None:
    raw = valid()
    before = copy.deepcopy(raw)
    find_problems(raw, HERE)
    assert raw == before


def test_segmentations_are_not_kept(tmp_path: Path) -> None:
    raw = load_json(write(tmp_path / "a.json", changed("annotations", 0, segmentation=[[0, 0, 1, 1, 0, 1]])))
    assert raw == valid()


@pytest.mark.parametrize("name", ["bccd", "coco_permissive"])
def test_real_files_agree_with_pycocotools(shared_data: Path, name: str) -> None:
    for images, path in resolve(shared_data / name, None, None, None, None):
        read = read_annotations(path, images)
        coco = COCO(str(path))
        assert read.image_ids.tolist() == sorted(coco.getImgIds())
        assert [category.id for category in read.categories] == sorted(coco.getCatIds())
        for index, image_id in enumerate(read.image_ids.tolist()):
            rows = slice(read.starts[index], read.starts[index + 1])
            records = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
            assert read.annotation_ids[rows].tolist() == [record["id"] for record in records]
            assert read.boxes[rows].tolist() == [record["bbox"] for record in records]
            assert read.crowd[rows].tolist() == [bool(record["iscrowd"]) for record in records]
            assert read.areas[rows].tolist() == [record["area"] for record in records]
            names = [coco.cats[record["category_id"]]["name"] for record in records]
            assert [read.categories[label].name for label in read.labels[rows]] == names


def layout(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        write(root / "annotations" / f"instances_{split}2017.json", valid())
    return root


def test_the_layout_is_found_under_a_root_and_explicit_paths_win(tmp_path: Path) -> None:
    root = layout(tmp_path / "coco")
    own_images, own_file = tmp_path / "mine", write(tmp_path / "mine.json", valid())
    own_images.mkdir()
    train = (root / "train2017", root / "annotations" / "instances_train2017.json")
    val = (root / "val2017", root / "annotations" / "instances_val2017.json")
    assert resolve(root, None, None, None, None) == (train, val)
    assert resolve(root, None, None, own_images, own_file) == (train, (own_images, own_file))
    assert resolve(None, own_images, own_file, *val) == ((own_images, own_file), val)
    assert resolve_split("val", None, own_images, own_file) == (own_images, own_file)


def test_what_is_missing_is_named_with_the_layout_and_its_source(tmp_path: Path) -> None:
    root = layout(tmp_path / "coco")
    (root / "val2017").rmdir()
    with pytest.raises(FileNotFoundError, match=r"val2017.*cocodataset\.org") as caught:
        resolve(root, None, None, None, None)
    assert "instances_val2017.json" not in str(caught.value).split(". data.root")[0]
    with pytest.raises(ValueError, match=r"data.train_images and data.train_annotations unset.*make-shapes"):
        resolve(None, None, None, None, None)
    with pytest.raises(ValueError, match=r"data.val_annotations unset"):
        resolve_split("val", None, root / "train2017", None)
