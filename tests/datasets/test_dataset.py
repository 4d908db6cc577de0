import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic_images import colours

from detr_container.base.shortage import ShortageError, asking
from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.check import check_dataset
from detr_container.datasets.dataset import DetectionDataset, random_of
from detr_container.datasets.transforms import Augmentation

AS_THEY_ARE = Augmentation((1,), 100_000, augment="none")
TRAINING = Augmentation((48, 64), 120, crop_resize=(40, 60), crop_range=(30, 50), augment="detr")


def write(folder: Path, sizes: dict[str, tuple[int, int]], objects: list[dict[str, Any]]) -> Path:
    """A COCO file of images {name: (height, width)}, whose ids are 10, 11, ..., and of objects {image, box, ...}."""
    images = [
        {"id": 10 + number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, size) in enumerate(sizes.items())
    ]
    annotations = [
        {
            "id": 100 + number,
            "image_id": each["image"],
            "bbox": each["box"],
            "category_id": each.get("category", 3),
            "iscrowd": each.get("crowd", 0),
            "area": each["box"][2] * each["box"][3],
        }
        for number, each in enumerate(objects)
    ]
    path = folder / "instances.json"
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def dataset_of(folder: Path, augmentation: Augmentation = TRAINING, seed: int = 0) -> DetectionDataset:
    return DetectionDataset(read_annotations(folder / "instances.json", folder), augmentation, seed)


def native(height: int, width: int) -> Augmentation:
    """An evaluation transform that leaves images of this size as they are."""
    return Augmentation((min(height, width),), max(height, width))


def test_samples_of_turned_images_have_boxes_of_the_turned_ones(tmp_path: Path) -> None:
    """A red object on an image that is stored lying on its side, annotated as it is seen."""
    seen = Image.new("RGB", (60, 80))
    seen.paste((255, 0, 0), (10, 50, 30, 70))
    exif = Image.Exif()
    exif[0x0112] = 6
    seen.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "1.png", exif=exif)
    annotations = read_annotations(
        write(tmp_path, {"1.png": (80, 60)}, [{"image": 10, "box": [10, 50, 20, 20]}]), tmp_path
    )
    sample = DetectionDataset(annotations, native(80, 60), apply_orientation=True)[0, 0]
    red = sample.image[0] > 128
    rows, columns = red.any(dim=1).nonzero(), red.any(dim=0).nonzero()
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (50, 69, 10, 29)
    assert sample.boxes.tolist() == [pytest.approx([20 / 60, 60 / 80, 20 / 60, 20 / 80])]
    with pytest.raises(ValueError, match="the file has 80 x 60 pixels"):
        DetectionDataset(annotations, native(80, 60))[0, 0]


def memory_error(*_: Any, **__: Any) -> Any:
    raise MemoryError


def raised_by_a_decoder(*_: Any, **__: Any) -> Any:
    raise OSError("out of memory error when reading image file")


def no_memory(*_: Any, **__: Any) -> Any:
    return torch.empty(2**50)


def no_files(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "1.png")


@pytest.mark.parametrize(
    ("where", "lack", "ending"),
    [
        ("PIL.ImageFile.ImageFile.load", memory_error, "png"),
        ("PIL.ImageFile.ImageFile.load", raised_by_a_decoder, "png"),
        ("torchvision.io.decode_jpeg", no_memory, "jpg"),
        ("detr_container.datasets.images.open_regular", no_files, "png"),
    ],
)
def test_no_lack_of_memory_or_files_is_blamed_on_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, lack: Any, ending: str
) -> None:
    """Neither in training nor in the check: the command ends in one line that names what ran out."""
    name = f"1.{ending}"
    colours(40, 60).save(tmp_path / name)
    path = write(tmp_path, {name: (40, 60)}, [])
    monkeypatch.setattr(where, lack)
    dataset = DetectionDataset(read_annotations(path, tmp_path), native(40, 60))
    for read in (lambda: dataset[0, 0], lambda: check_dataset({"train": (tmp_path, path)})):
        with pytest.raises(ShortageError) as caught, asking("it", {"a.b": 3}):
            read()
        ran_out = "too many open files" if lack is no_files else "not enough memory"
        assert str(caught.value).startswith(f"{ran_out} for it (")
        assert f"while {tmp_path / name} was read" in str(caught.value)


def test_objects_are_those_the_published_code_trains_on(tmp_path: Path) -> None:
    colours().save(tmp_path / "a.png")
    colours().convert("L").save(tmp_path / "b.jpg")
    rows = [
        {"image": 10, "box": [4, 6, 10, 12], "category": 8},
        {"image": 10, "box": [0, 0, 20, 20], "crowd": 1},
        {"image": 10, "box": [-5.5, 20, 15.5, 30]},
        {"image": 10, "box": [30, 2, 25, 4]},
    ]
    write(tmp_path, {"a.png": (24, 40), "b.jpg": (24, 40)}, rows)
    dataset = dataset_of(tmp_path, native(24, 40))
    sample = dataset[(0, 0)]
    assert sample.image_id == 10
    assert sample.original_size == (24, 40)
    assert sample.labels.tolist() == [1, 0, 0]
    corners = [[4, 6, 14, 18], [0, 20, 10, 24], [30, 2, 40, 6]]
    expected = [[(a + c) / 80, (b + d) / 48, (c - a) / 40, (d - b) / 24] for a, b, c, d in corners]
    torch.testing.assert_close(sample.boxes, torch.tensor(expected))
    empty = dataset[(0, 1)]
    assert empty.boxes.shape == (0, 4)
    assert empty.boxes.dtype == torch.float32
    assert empty.labels.shape == (0,)
    assert empty.labels.dtype == torch.int64
    assert torch.equal(empty.image[0], empty.image[2])


def test_a_image_whose_objects_are_all_crowds_is_kept(tmp_path: Path) -> None:
    colours().save(tmp_path / "a.png")
    write(tmp_path, {"a.png": (24, 40)}, [{"image": 10, "box": [0, 0, 9, 9], "crowd": 1}])
    dataset = dataset_of(tmp_path)
    assert len(dataset) == 1
    assert [len(dataset[(epoch, 0)].labels) for epoch in range(8)] == [0] * 8


def test_a_key_decides_the_sample_and_nothing_else_does(tmp_path: Path) -> None:
    colours(60, 80).save(tmp_path / "a.png")
    write(tmp_path, {"a.png": (60, 80)}, [{"image": 10, "box": [10, 10, 40, 30]}])
    dataset, again = dataset_of(tmp_path), dataset_of(tmp_path)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = [dataset[(epoch, 0)] for epoch in range(12)]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])
    random.seed(5)
    for epoch in reversed(range(12)):
        sample = again[(epoch, 0)]
        assert torch.equal(sample.image, first[epoch].image)
        assert torch.equal(sample.boxes, first[epoch].boxes)
    assert len({tuple(sample.image.shape) for sample in first}) > 1
    other = dataset_of(tmp_path, seed=1)
    assert [other.plan((epoch, 0)) for epoch in range(12)] != [dataset.plan((epoch, 0)) for epoch in range(12)]


@given(st.integers(-5, 2**40), st.integers(0, 500), st.integers(0, 200_000))
def test_neighbouring_keys_are_unrelated(seed: int, epoch: int, index: int) -> None:
    keys = [(seed, epoch, index), (seed + 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)]
    assert len({random_of(*key).random() for key in keys}) == 4
    assert random_of(*keys[0]).random() == random_of(*keys[0]).random()


def test_random_numbers_are_those_of_earlier_versions() -> None:
    # A change here changes what every resumed run sees.
    assert random_of(0, 1, 2).random() == 0.7080284517039316


def test_the_plan_tells_the_size_without_a_file(tmp_path: Path) -> None:
    colours(60, 80).save(tmp_path / "a.png")
    write(tmp_path, {"a.png": (60, 80)}, [])
    dataset = dataset_of(tmp_path)
    sizes = [tuple(dataset[(epoch, 0)].image.shape[1:]) for epoch in range(10)]
    (tmp_path / "a.png").unlink()
    assert [dataset.plan((epoch, 0)).size for epoch in range(10)] == sizes


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "folder":
        path.mkdir()
    elif how == "other size":
        colours(25, 40).save(path)


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("missing", "does not exist"),
        ("truncated", "not a complete image"),
        ("empty", "cannot be read"),
        ("text", "not an image"),
        ("folder", "cannot be read"),
        ("other size", "40 x 25 pixels .* says 40 x 24"),
    ],
)
def test_a_spoilt_image_is_named(tmp_path: Path, ending: str, how: str, problem: str) -> None:
    name = f"sub/a.{ending}"
    (tmp_path / "sub").mkdir()
    colours().save(tmp_path / name)
    write(tmp_path, {name: (24, 40)}, [])
    dataset = dataset_of(tmp_path)
    spoil(tmp_path / name, how)
    with pytest.raises(ValueError, match=problem) as caught:
        dataset[(0, 0)]
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert f"image id 10 of {tmp_path / 'instances.json'}" in message
    assert "detr-container data check" in message


@pytest.mark.shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images_and_their_boxes(shared_data: Path, split: str) -> None:
    coco = shared_data / "coco_permissive"
    path = coco / "annotations" / f"instances_{split}2017.json"
    records = json.loads(path.read_text())
    annotations = read_annotations(path, coco / f"{split}2017")
    dataset = DetectionDataset(annotations, Augmentation((200,), 333))
    names = {each["id"]: each["name"] for each in records["categories"]}
    seen = 0
    for index in range(len(dataset)):
        sample = dataset[(0, index)]
        height, width = sample.original_size
        expected = [
            (names[each["category_id"]], *each["bbox"])
            for each in records["annotations"]
            if each["image_id"] == sample.image_id and not each["iscrowd"]
        ]
        assert len(sample.labels) == len(expected)
        for label, (cx, cy, w, h), (name, left, top, *sides) in zip(
            sample.labels.tolist(), sample.boxes.tolist(), expected, strict=True
        ):
            assert annotations.categories[label].name == name
            assert ((cx - w / 2) * width, (cy - h / 2) * height) == pytest.approx((left, top), abs=0.02)
            assert (w * width, h * height) == pytest.approx(sides, abs=0.02)
        seen += len(expected)
    assert seen == {"train": 383, "val": 399}[split]
