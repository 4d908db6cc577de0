"""The checker: a healthy data set passes, every kind of damage is found, named and counted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.cells import cell_len

from detr_container.datasets.annotations import resolve
from detr_container.datasets.check import check_dataset
from detr_container.datasets.check_report import DetectionReport
from detr_container.datasets.shapes import make_shapes

Damage = Callable[[Path, dict[str, Any]], None]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("check") / "shapes"
    make_shapes(root, train=24, val=24, size=64, workers=0)
    return root


@pytest.fixture
def root(healthy: Path, tmp_path: Path) -> Path:
    shutil.copytree(healthy, tmp_path / "shapes")
    return tmp_path / "shapes"


def check(root: Path, **options: Any) -> DetectionReport:
    splits = {
        split: (root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json")
        for split in ("train", "val")
    }
    return check_dataset(splits, **options)


def test_a_healthy_data_set_has_no_problems_whatever_the_number_of_workers(root: Path) -> None:
    report = check(root, workers=0)
    assert report.problems == ()
    assert report.errors == report.warnings == 0
    assert check(root, workers=3) == report
    assert report.lines()[-1] == "0 errors, 0 warnings, 0 notes"


def first_file(root: Path, raw: dict[str, Any]) -> Path:
    return root / "val2017" / str(raw["images"][0]["file_name"])


def first_as_png(root: Path, raw: dict[str, Any]) -> Path:
    path = first_file(root, raw)
    with Image.open(path) as image:
        image.save(path.with_suffix(".png"))
    path.unlink()
    raw["images"][0]["file_name"] = path.with_suffix(".png").name
    return path.with_suffix(".png")


def missing(root: Path, raw: dict[str, Any]) -> None:
    first_file(root, raw).unlink()


def truncated_jpeg(root: Path, raw: dict[str, Any]) -> None:
    path = first_file(root, raw)
    path.write_bytes(path.read_bytes()[:-400])


def truncated_png(root: Path, raw: dict[str, Any]) -> None:
    path = first_as_png(root, raw)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_image(root: Path, raw: dict[str, Any]) -> None:
    first_file(root, raw).write_text("<html>404</html>")


def empty_file(root: Path, raw: dict[str, Any]) -> None:
    first_file(root, raw).write_bytes(b"")


def other_size(root: Path, raw: dict[str, Any]) -> None:
    Image.new("RGB", (64, 60)).save(first_file(root, raw))


def turned(root: Path, raw: dict[str, Any]) -> None:
    raw["images"][0].update(width=80, height=64)
    Image.new("RGB", (64, 80)).save(first_file(root, raw))


def in_both_splits(root: Path, raw: dict[str, Any]) -> None:
    shutil.copy(next((root / "train2017").iterdir()), first_file(root, raw))


def same_name(root: Path, raw: dict[str, Any]) -> None:
    name = next((root / "train2017").iterdir()).name
    first_file(root, raw).rename(root / "val2017" / name)
    raw["images"][0]["file_name"] = name


def twice(root: Path, raw: dict[str, Any]) -> None:
    shutil.copy(root / "val2017" / raw["images"][1]["file_name"], first_file(root, raw))


def turned_by_its_tag(root: Path, raw: dict[str, Any]) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    for record in raw["images"][:3]:
        path = root / "val2017" / record["file_name"]
        with Image.open(path) as image:
            image.load()
        image.save(path, format="JPEG", quality=95, exif=tag)


def blank(root: Path, raw: dict[str, Any]) -> None:
    Image.new("RGB", (64, 64), (9, 9, 9)).save(first_file(root, raw))


def pipe(root: Path, raw: dict[str, Any]) -> None:
    path = first_file(root, raw)
    path.unlink()
    os.mkfifo(path)


def one_wrong_bit(root: Path, raw: dict[str, Any]) -> None:
    path = first_as_png(root, raw)
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(data)


def unlisted(root: Path, raw: dict[str, Any]) -> None:
    (root / "val2017" / "more").mkdir()
    Image.new("RGB", (4, 4)).save(root / "val2017" / "more" / "000001000001.png")


def other_classes(root: Path, raw: dict[str, Any]) -> None:
    raw["categories"][0]["name"] = "disc"


def unknown_category(root: Path, raw: dict[str, Any]) -> None:
    raw["annotations"][0]["category_id"] = 3


DAMAGE: list[tuple[Damage, dict[tuple[str, str], int], str]] = [
    (missing, {("error", "missing-image"): 1}, "does not exist"),
    (truncated_jpeg, {("error", "unreadable-image"): 1}, "cannot be read"),
    (truncated_png, {("error", "unreadable-image"): 1}, "cannot be read"),
    (no_image, {("error", "unreadable-image"): 1}, "cannot be read"),
    (empty_file, {("error", "unreadable-image"): 1}, "cannot be read"),
    (other_size, {("error", "image-size-differs"): 1}, "the file has 64 x 60 pixels"),
    (turned, {("error", "image-size-differs"): 1}, "orientation tag"),
    (turned_by_its_tag, {("warning", "orientation"): 1}, "val: 3 of 24 images carry an orientation tag"),
    (blank, {("warning", "flat-image"): 1}, "all pixels are about the same"),
    (pipe, {("error", "unreadable-image"): 1}, "pipe"),
    (one_wrong_bit, {("error", "unreadable-image"): 1}, "not a complete image"),
    (in_both_splits, {("error", "overlap"): 1}, "the same content as train: "),
    (same_name, {("warning", "same-file-name"): 1}, "the same file name as train: "),
    (twice, {("warning", "duplicate-image"): 1}, "the same content as val: "),
    (unlisted, {("note", "unlisted-file"): 1}, "more/000001000001.png"),
    (other_classes, {("error", "categories-differ"): 2}, "category 1 (disc) of val is not in train"),
    (unknown_category, {("error", "unknown-category"): 1}, "annotation 1: no usable category 3"),
]


@pytest.mark.parametrize(("damage", "expected", "message"), DAMAGE, ids=[case[0].__name__ for case in DAMAGE])
def test_damage_is_found_named_and_nothing_else_is(
    root: Path, damage: Damage, expected: dict[tuple[str, str], int], message: str
) -> None:
    path = root / "annotations" / "instances_val2017.json"
    raw = json.loads(path.read_text())
    damage(root, raw)
    path.write_text(json.dumps(raw))
    report = check(root)
    counts: dict[tuple[str, str], int] = {}
    for problem in report.problems:
        counts[problem.severity, problem.kind] = counts.get((problem.severity, problem.kind), 0) + 1
    assert counts == expected
    assert any(message in problem.message for problem in report.problems)
    errors = sum(count for (severity, _), count in expected.items() if severity == "error")
    assert report.errors == errors
    if damage in (missing, truncated_jpeg, other_size):
        assert f"{raw['images'][0]['file_name']} (image {raw['images'][0]['id']})" in report.problems[0].message


def test_segmentations_are_checked_where_that_is_asked_for(root: Path) -> None:
    """And are no errors, since boxes do without."""
    assert check(root, masks=True).problems == ()
    path = root / "annotations" / "instances_val2017.json"
    raw = json.loads(path.read_text())
    single = [record for record in raw["annotations"] if not record["iscrowd"]]
    ring = next(record for record in single if isinstance(record["segmentation"], dict))
    ring["segmentation"]["counts"][0] += 1
    outlined = [record for record in single if record is not ring]
    outlined[0]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
    del outlined[1]["segmentation"], outlined[2]["segmentation"]
    path.write_text(json.dumps(raw))
    assert check(root).problems == ()
    report = check(root, masks=True)
    assert {(problem.severity, problem.kind) for problem in report.problems} == {("warning", "segmentation")}
    messages = [problem.message for problem in report.problems]
    file = "val: annotations/instances_val2017.json: "
    for expected in (
        f"{file}annotation {ring['id']}: segmentation ",
        f"{file}annotation {outlined[0]['id']}: segmentation [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]] has a polygon of 7",
        f"{file}2 of {len(single)} objects without a segmentation (annotation {outlined[1]['id']}, "
        f"{outlined[2]['id']}): only Mask R-CNN needs them",
    ):
        assert sum(message.startswith(expected) for message in messages) == 1
    assert len(messages) == 3


def test_images_may_be_turned_by_their_tags(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    turned_by_its_tag(root, json.loads(path.read_text()))
    (stored,) = check(root).problems
    assert "data.apply_orientation" in stored.message
    (applied,) = check(root, apply_orientation=True).problems
    assert (applied.severity, applied.kind) == ("note", "orientation")
    assert "val: 3 images are turned as their orientation tags say" in applied.message


def test_a_sample_is_read_and_of_the_others_only_their_presence_is_checked(root: Path) -> None:
    assert check(root, sample=24) == check(root)
    for path in (root / "val2017").iterdir():
        path.write_bytes(path.read_bytes()[:-400])
    for path in sorted((root / "train2017").iterdir())[:20]:
        path.unlink()
    report, again = check(root, sample=7), check(root, sample=7, workers=3)
    assert report == again
    kinds = [problem.kind for problem in report.problems]
    assert {kind: kinds.count(kind) for kind in kinds} == {"unreadable-image": 7, "missing-image": 20}
    assert [summary.images for summary in report.summaries] == [24, 24]


def test_what_was_not_read_is_not_compared(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    raw = json.loads(path.read_text())
    same_name(root, raw)
    path.write_text(json.dumps(raw))
    assert [problem.kind for problem in check(root).problems] == ["same-file-name"]
    assert check(root, sample=1).problems == ()


def test_a_missing_file_or_folder_is_in_the_report_beside_the_rest(root: Path) -> None:
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    shutil.rmtree(root / "train2017")
    report = check(root)
    assert {problem.kind for problem in report.problems} == {"annotation-file", "image-folder"}
    assert report.errors == 2
    assert [summary.name for summary in report.summaries] == ["train"]


def test_splits_may_share_a_folder_that_holds_their_annotation_files(root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "one"
    shared.mkdir()
    splits = {}
    for split in ("train", "val"):
        for file in (root / f"{split}2017").iterdir():
            shutil.copy(file, shared)
        shutil.copy(root / "annotations" / f"instances_{split}2017.json", shared / f"{split}.json")
        splits[split] = (shared, shared / f"{split}.json")
    assert check_dataset(splits).problems == ()


def test_the_report_shows_few_examples_of_a_kind_and_counts_the_rest(root: Path) -> None:
    names = sorted(path.name for path in (root / "val2017").iterdir())
    for name in names[:7]:
        (root / "val2017" / name).unlink()
    lines = check(root).lines(examples=3)
    assert lines[0] == "error: missing-image (7)"
    assert [name in line for name, line in zip(names[:3], lines[1:4], strict=True)] == [True] * 3
    assert lines[4] == "  ... and 4 more"
    assert lines[-1] == "7 errors, 0 warnings, 0 notes"


def test_names_of_classes_and_files_are_text_in_a_table_that_can_be_read(root: Path) -> None:
    names = {1: "\u8d64\u8840\u7403", 2: "x" * 300, 4: "two\nlines\x1b[2J"}
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        raw = json.loads(path.read_text())
        for category in raw["categories"]:
            category["name"] = names.get(category["id"], category["name"])
        path.write_text(json.dumps(raw))
    (root / "val2017" / "\x1b[2J.jpg").touch()
    lines = check(root).lines()
    assert any(line.endswith(r"no record names \x1b[2J.jpg") for line in lines)
    assert not any("\n" in line or "\x1b" in line for line in lines)
    table = lines[next(index for index, line in enumerate(lines) if line.startswith("class ")) : -1]
    assert {cell_len(line) for line in table} == {60 + 7 + 20}
    assert table[1].startswith(names[1])
    assert table[3].startswith(r"two\nlines\x1b[2J ")


@pytest.mark.parametrize("name", ["bccd", "coco_permissive"])
def test_the_counts_of_real_data_sets_agree_with_naive_counts(shared_data: Path, name: str) -> None:
    splits = dict(zip(("train", "val"), resolve(shared_data / name, None, None, None, None), strict=True))
    report = check_dataset(splits)
    assert report.errors == 0
    assert {problem.kind for problem in report.problems} <= {"unused-class"}
    assert [summary.name for summary in report.summaries] == ["train", "val"]
    for summary in report.summaries:
        coco = COCO(str(splits[summary.name][1]))
        single = [record for record in coco.anns.values() if not record["iscrowd"]]
        per_image = dict.fromkeys(coco.imgs, 0)
        per_class = dict.fromkeys(coco.cats, 0)
        for record in single:
            per_image[record["image_id"]] += 1
            per_class[record["category_id"]] += 1
        assert summary.images == len(coco.imgs)
        assert summary.objects == len(single)
        assert summary.crowd == len(coco.anns) - len(single)
        assert summary.images_without_objects == list(per_image.values()).count(0)
        assert summary.most_objects == max(per_image.values()) == per_image[summary.most_objects_image]
        assert {category.id: count for category, count in summary.per_class} == per_class
