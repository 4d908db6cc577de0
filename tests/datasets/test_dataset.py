import errno
import json
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.check import check_dataset
from detr_container.datasets.dataset import DetectionDataset, random_of
from detr_container.datasets.images import read_image
from detr_container.datasets.transforms import Augmentation
from detr_container.shortage import ShortageError, asking

AS_THEY_ARE = Augmentation((1,), 100_000, augment="none")
TRAINING = Augmentation((48, 64), 120, crop_resize=(40, 60), crop_range=(30, 50), augment="detr")


def colours(height: int = 24, width: int = 40) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)


def write(folder: Path, pictures: dict[str, tuple[int, int]], objects: list[dict[str, Any]]) -> Path:
    """A COCO file of pictures {name: (height, width)}, whose ids are 10, 11, ..., and of objects {image, box, ...}."""
    images = [
        {"id": 10 + number, "file_name": name, "height": size[0], "width": size[1]}
        for number, (name, size) in enumerate(pictures.items())
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
    """An evaluation transform that leaves pictures of this size as they are."""
    return Augmentation((min(height, width),), max(height, width))


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGB", "jpg"),
        ("L", "jpg"),
        ("CMYK", "jpg"),
        ("RGB", "png"),
        ("L", "png"),
        ("1", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("P", "gif"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
        ("L", "tiff"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"picture.{ending}"
    colours().convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == torch.uint8
    with Image.open(path) as saved:
        expected = torch.from_numpy(np.array(saved.convert("RGB")))
    assert torch.equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_orientation_tags_are_applied_on_request_alone(tmp_path: Path, ending: str) -> None:
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    colours(40, 60).save(tmp_path / f"upright.{ending}", **options)
    stored = read_image(tmp_path / f"upright.{ending}")
    path = tmp_path / f"picture.{ending}"
    for tag in range(9):
        exif = Image.Exif()
        exif[0x0112] = tag
        colours(40, 60).save(path, exif=exif, **options)
        assert torch.equal(read_image(path), stored)
        with Image.open(tmp_path / f"upright.{ending}") as image:
            image.getexif()[0x0112] = tag
            expected = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(read_image(path, apply_orientation=True), expected), tag


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


def test_sixteen_bit_pictures_keep_their_contrast(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image.shape == (3, 32, 32)
    assert (image[1].int() - torch.from_numpy((values >> 8).astype(np.int32))).abs().max() <= 1


def ramp(path: Path, kind: str) -> None:
    """A grey ramp whose numbers are those of a kind of microscope or camera."""
    values = np.linspace(0, 1, 1024).reshape(32, 32)
    scale = {"uint16": 65535, "int32": 65535, "float32": 1}[kind]
    Image.fromarray((values * scale).astype(kind)).save(path)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_deep_tiffs_keep_their_contrast(tmp_path: Path, kind: str) -> None:
    ramp(tmp_path / "deep.tif", kind)
    image = read_image(tmp_path / "deep.tif")
    expected = (np.linspace(0, 1, 1024).reshape(32, 32) * 255).round()
    assert image.shape == (3, 32, 32)
    assert (image[1].int() - torch.from_numpy(expected).int()).abs().max() <= 1


def memory_error(*_: Any, **__: Any) -> Any:
    raise MemoryError


def told_by_a_decoder(*_: Any, **__: Any) -> Any:
    raise OSError("out of memory error when reading image file")


def no_memory(*_: Any, **__: Any) -> Any:
    return torch.empty(2**50)


def no_files(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "1.png")


@pytest.mark.parametrize(
    ("where", "lack", "ending"),
    [
        ("PIL.ImageFile.ImageFile.load", memory_error, "png"),
        ("PIL.ImageFile.ImageFile.load", told_by_a_decoder, "png"),
        ("detr_container.datasets.images.decode_jpeg", no_memory, "jpg"),
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
        with pytest.raises(ShortageError) as told, asking("it", {"a.b": 3}):
            read()
        ran_out = "too many open files" if lack is no_files else "not enough memory"
        assert str(told.value).startswith(f"{ran_out} for it (")
        assert f"while {tmp_path / name} was read" in str(told.value)


@pytest.mark.parametrize("values", [[0.0, 255.0], [-1.0, 1.0], [0.0, float("nan")], [0, 70_000]])
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, values: list[float]) -> None:
    kind = np.int32 if isinstance(values[0], int) else np.float32
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"its pixels are .* save it with 8 or 16 bits"):
        read_image(tmp_path / "deep.tif")


def png(width: int, height: int, data: bytes, wrong: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data, wrong) + chunk(b"IEND", b"")


def test_what_is_too_large_or_no_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "huge.png").write_bytes(png(20_000, 20_000, zlib.compress(bytes(100))))
    (tmp_path / "wide.png").write_bytes(png(11_000, 10_000, zlib.compress(bytes(100))))
    with open(tmp_path / "long.tif", "wb") as file:
        file.truncate(2**30)
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, said in (
        ("huge.png", "more than 100,000,000"),
        ("wide.png", "11,000 x 10,000 pixels, more than 100,000,000"),
        ("long.tif", "1,073,741,824 bytes"),
        ("pipe.jpg", "pipe"),
    ):
        with pytest.raises(ValueError, match=said):
            read_image(tmp_path / name)
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match="device"):
            read_image(Path(device))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_checksums_of_a_png_are_compared(tmp_path: Path) -> None:
    data = zlib.compress(bytes(16 * (1 + 3 * 16)))
    (tmp_path / "right.png").write_bytes(png(16, 16, data))
    (tmp_path / "wrong.png").write_bytes(png(16, 16, data, wrong=1))
    assert not read_image(tmp_path / "right.png").any()
    with pytest.raises(ValueError, match="checksum"):
        read_image(tmp_path / "wrong.png")


DAMAGE_IMAGES = """
import io, random, sys, warnings
from PIL import Image, features
from detr_container.datasets.images import decode, orientation
from test_dataset import colours, png
warnings.simplefilter("ignore")
def saved(kind, mode="RGB", **options):
    file = io.BytesIO()
    colours(64, 80).convert(mode).save(file, kind, **options)
    return file.getvalue()
files = [saved("PNG"), saved("PNG", "P"), saved("PNG", "RGBA"), saved("JPEG"), saved("JPEG", progressive=True)]
files += [saved("GIF"), saved("WEBP"), saved("BMP"), saved("TIFF"), saved("TIFF", compression="tiff_lzw")]
files += [saved("TIFF", "F"), saved("TIFF", "1", compression="group4"), saved("TGA"), saved("PPM")]
files += [saved("JPEG2000"), png(16, 16, b"x", 1), *([saved("AVIF")] if features.check("avif") else [])]
told = {"read": 0, "refused": 0}
for number in range(600):
    draw, data = random.Random(number), bytearray(files[number % len(files)])
    if number % 3 == 0:
        del data[draw.randrange(len(data)):]
    for _ in range(draw.choice((1, 1, 4))):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    try:
        image = decode(bytes(data), apply_orientation=number % 2 == 0)
        assert image.ndim == 3 and image.shape[0] == 3 and str(image.dtype) == "torch.uint8"
        told["read"] += 1
    except ValueError as error:
        assert str(error) and "\\n" not in str(error), repr(error)
        told["refused"] += 1
    assert 1 <= orientation(bytes(data)) <= 8
print(told["read"], told["refused"])
"""


def test_damaged_files_of_every_kind_are_read_or_refused(repository: Path) -> None:
    """In a process of its own, which a decoder that trusts what it reads would end."""
    path = os.pathsep.join([str(repository), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE_IMAGES],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read, refused = map(int, done.stdout.split())
    assert read + refused == 600
    assert min(read, refused) > 50


def test_the_first_picture_of_an_animation_is_read(tmp_path: Path) -> None:
    first, second = colours().convert("P"), colours().convert("L").convert("P")
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    expected = torch.from_numpy(np.array(first.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "two.gif"), expected)


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


def test_a_picture_whose_objects_are_all_crowds_is_kept(tmp_path: Path) -> None:
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
    ("how", "said"),
    [
        ("missing", "does not exist"),
        ("truncated", "not a complete picture"),
        ("empty", "cannot be read"),
        ("text", "not a picture"),
        ("folder", "cannot be read"),
        ("other size", "40 x 25 pixels .* says 40 x 24"),
    ],
)
def test_a_spoilt_picture_is_named(tmp_path: Path, ending: str, how: str, said: str) -> None:
    name = f"sub/a.{ending}"
    (tmp_path / "sub").mkdir()
    colours().save(tmp_path / name)
    write(tmp_path, {name: (24, 40)}, [])
    dataset = dataset_of(tmp_path)
    spoil(tmp_path / name, how)
    with pytest.raises(ValueError, match=said) as caught:
        dataset[(0, 0)]
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert f"image id 10 of {tmp_path / 'instances.json'}" in message
    assert "detr-container data check" in message


@pytest.mark.shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_pictures_and_their_boxes(shared_data: Path, split: str) -> None:
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
