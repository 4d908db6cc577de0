"""Image files: every kind becomes RGB, and what is damaged, too large or no file is refused."""

import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from synthetic_images import colours, png

from detr_container.datasets.images import read_image


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
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
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
    path = tmp_path / f"image.{ending}"
    for tag in range(9):
        exif = Image.Exif()
        exif[0x0112] = tag
        colours(40, 60).save(path, exif=exif, **options)
        assert torch.equal(read_image(path), stored)
        with Image.open(tmp_path / f"upright.{ending}") as image:
            image.getexif()[0x0112] = tag
            expected = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(read_image(path, apply_orientation=True), expected), tag


def test_sixteen_bit_images_keep_their_contrast(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("values", [[0.0, 255.0], [-1.0, 1.0], [0.0, float("nan")], [0, 70_000]])
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, values: list[float]) -> None:
    kind = np.int32 if isinstance(values[0], int) else np.float32
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"its pixels are .* save it with 8 or 16 bits"):
        read_image(tmp_path / "deep.tif")


def test_what_is_too_large_or_no_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "huge.png").write_bytes(png(20_000, 20_000, zlib.compress(bytes(100))))
    (tmp_path / "wide.png").write_bytes(png(11_000, 10_000, zlib.compress(bytes(100))))
    with open(tmp_path / "long.tif", "wb") as file:
        file.truncate(2**30)
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, message in (
        ("huge.png", "more than 100,000,000"),
        ("wide.png", "11,000 x 10,000 pixels, more than 100,000,000"),
        ("long.tif", "1,073,741,824 bytes"),
        ("pipe.jpg", "pipe"),
    ):
        with pytest.raises(ValueError, match=message):
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
from synthetic_images import colours, png
warnings.simplefilter("ignore")
def saved(kind, mode="RGB", **options):
    file = io.BytesIO()
    colours(64, 80).convert(mode).save(file, kind, **options)
    return file.getvalue()
files = [saved("PNG"), saved("PNG", "P"), saved("PNG", "RGBA"), saved("JPEG"), saved("JPEG", progressive=True)]
files += [saved("GIF"), saved("WEBP"), saved("BMP"), saved("TIFF"), saved("TIFF", compression="tiff_lzw")]
files += [saved("TIFF", "F"), saved("TIFF", "1", compression="group4"), saved("TGA"), saved("PPM")]
files += [saved("JPEG2000"), png(16, 16, b"x", 1), *([saved("AVIF")] if features.check("avif") else [])]
counts = {"read": 0, "refused": 0}
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
        counts["read"] += 1
    except ValueError as error:
        assert str(error) and "\\n" not in str(error), repr(error)
        counts["refused"] += 1
    assert 1 <= orientation(bytes(data)) <= 8
print(counts["read"], counts["refused"])
"""


def test_damaged_files_of_every_kind_are_read_or_refused(repository: Path) -> None:
    """In a process of its own, which a decoder that trusts what it reads would end."""
    path = os.pathsep.join([str(repository), str(repository / "tests")])
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


def test_the_first_image_of_an_animation_is_read(tmp_path: Path) -> None:
    first, second = colours().convert("P"), colours().convert("L").convert("P")
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    expected = torch.from_numpy(np.array(first.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "two.gif"), expected)
