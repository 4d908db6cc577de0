"""The generated data set: the same from the same seed, as COCO's tools expect it, and never half there."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detr_container.datasets.annotations import read_annotations, resolve
from detr_container.datasets.check import check_dataset
from detr_container.datasets.shapes import CATEGORY_IDS, draw_image, make_shapes

TRAIN, VAL, SIZE = 48, 32, 96


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "shapes"
    assert make_shapes(root, TRAIN, VAL, SIZE, workers=0)
    return root


@pytest.fixture(scope="module")
def coco(shapes: Path) -> COCO:
    return COCO(str(shapes / "annotations" / "instances_train2017.json"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_processes_do_not_change_a_byte_and_the_seed_changes_every_image(shapes: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path / "two", TRAIN, VAL, SIZE, workers=2)
    assert contents(tmp_path / "two") == contents(shapes)
    make_shapes(tmp_path / "seed", 4, 4, SIZE, seed=1, workers=0)
    other, own = contents(tmp_path / "seed"), contents(shapes)
    assert not [name for name in other if name.endswith(".jpg") and other[name] == own[name]]


def test_a_larger_data_set_begins_with_the_smaller_one(shapes: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path / "few", 5, 3, SIZE, workers=0)
    few, many = contents(tmp_path / "few"), contents(shapes)
    images = [name for name in few if name.endswith(".jpg")]
    assert len(images) == 8
    assert all(few[name] == many[name] for name in images)


def test_it_passes_the_checker(shapes: Path) -> None:
    splits = dict(zip(("train", "val"), resolve(shapes, None, None, None, None), strict=True))
    assert check_dataset(splits).problems == ()


def test_it_has_what_coco_has(coco: COCO) -> None:
    assert sorted(coco.getCatIds()) == sorted(CATEGORY_IDS.values())
    assert max(coco.getCatIds()) > len(CATEGORY_IDS)  # gaps
    assert len(coco.imgs) == TRAIN
    per_image = [len(coco.getAnnIds(imgIds=[image_id], iscrowd=False)) for image_id in coco.imgs]
    assert per_image.count(0) >= TRAIN // 16
    assert max(per_image) <= 6
    assert sum(per_image) > 2 * TRAIN
    crowds = [record for record in coco.anns.values() if record["iscrowd"]]
    assert len(crowds) == TRAIN // 8
    assert all(isinstance(record["segmentation"], dict) for record in crowds)
    single = [record for record in coco.anns.values() if not record["iscrowd"]]
    assert {type(record["segmentation"]) for record in single} == {list, dict}
    assert min(coco.anns) == 1


def test_boxes_are_tight_around_the_masks_and_inside_the_image(coco: COCO) -> None:
    for record in coco.anns.values():
        mask = coco.annToMask(record).astype(bool)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top, width, height = record["bbox"]
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # A mask's edge is that of a pixel, and a sharp corner may cover no half pixel.
        assert np.abs(edges - [left, top, left + width, top + height]).max() < 2.5
        assert min(left, top) >= 0
        assert max(left + width, top + height) <= SIZE
        # Polygons are rasterised by pycocotools with its own rounding at the edge.
        assert record["area"] == pytest.approx(mask.sum(), rel=0.25, abs=12)


def test_objects_overlap_but_none_is_hidden(coco: COCO) -> None:
    overlapping = 0
    for image_id in coco.imgs:
        records = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], iscrowd=False))
        masks = [coco.annToMask(record).astype(bool) for record in records]
        for index, mask in enumerate(masks):
            later = np.zeros_like(mask)
            for other in masks[index + 1 :]:
                later |= other
            overlapping += bool((mask & later).any())
            assert (mask & ~later).sum() > 0.3 * mask.sum()
    assert overlapping > TRAIN / 8


def test_an_object_differs_from_what_is_around_it() -> None:
    compared = 0
    for index in range(60):
        pixels, records = draw_image("train", index, 128, 0)
        if len(records) != 1 or records[0]["iscrowd"]:
            continue
        left, top, width, height = (int(side) for side in records[0]["bbox"])
        inside = np.zeros((128, 128), dtype=bool)
        inside[top : top + height, left : left + width] = True
        pixel = pixels.astype(np.float64)
        background = np.median(pixel[~inside], axis=0)
        away = np.linalg.norm(pixel[inside] - background, axis=1)
        usual = np.linalg.norm(pixel[~inside] - background, axis=1)
        assert np.quantile(away, 0.9) > np.quantile(usual, 0.9) + 15
        compared += 1
    assert compared >= 4


def test_the_file_on_disk_is_the_drawn_image(shapes: Path) -> None:
    read = read_annotations(shapes / "annotations" / "instances_val2017.json", shapes / "val2017")
    for index, name in enumerate(read.file_names[:8]):
        pixels, records = draw_image("val", index, SIZE, 0)
        with Image.open(shapes / "val2017" / name) as image:
            assert np.abs(np.asarray(image, dtype=np.float64) - pixels).mean() < 6  # noise is what JPEG keeps least
        rows = slice(read.starts[index], read.starts[index + 1])
        assert read.boxes[rows].tolist() == [record["bbox"] for record in records]
        ids = [read.categories[label].id for label in read.labels[rows]]
        assert ids == [record["category_id"] for record in records]


def test_a_second_call_does_nothing_and_another_data_set_is_never_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    root.mkdir()
    settings: dict[str, Any] = {"train": 3, "val": 2, "size": 64, "workers": 0}
    assert make_shapes(root, **settings)
    before = contents(root)
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not make_shapes(root, **settings)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    with pytest.raises(FileExistsError, match=r"was made with .*'seed': 0.* not with .*'seed': 4"):
        make_shapes(root, **settings, seed=4)
    assert contents(root) == before
    shutil.move(root / "annotations", tmp_path)
    with pytest.raises(FileExistsError, match="0 of 1 train annotation files"):
        make_shapes(root, **settings)
    shutil.move(tmp_path / "annotations", root)
    next((root / "train2017").iterdir()).unlink()
    with pytest.raises(FileExistsError, match="2 of 3 train images"):
        make_shapes(root, **settings)
    shutil.rmtree(root / "train2017")
    (root / "shapes.json").unlink()
    with pytest.raises(FileExistsError, match="not a data set of shapes"):
        make_shapes(root, **settings)
    assert json.loads((root / "annotations" / "instances_val2017.json").read_text())["images"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 32}, {"seed": -1}, {"train": 2_000_000}])
def test_settings_that_make_no_data_set_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        make_shapes(tmp_path / "shapes", **{"workers": 0, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_nothing_that_looks_whole(repository: Path, tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    code = "import sys; from pathlib import Path; from detr_container.datasets.shapes import make_shapes; "
    code += "make_shapes(Path(sys.argv[1]), train=100_000, val=2, size=64, workers=0)"
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], cwd=repository)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".shapes.partial-*/train2017/*.jpg")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not root.exists()
    assert make_shapes(root, 2, 2, 64, workers=0)


def test_a_full_disk_is_named_and_nothing_stays(repository: Path, tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    make = f"{sys.executable} -m detr_container data make-shapes {tmp_path}/s --train 200 --val 1 --workers 1"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && {{ {make}; echo $? $(ls -A {tmp_path}); }}"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["2"]
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path}/s: {os.strerror(errno.ENOSPC)}"
