"""One image file to RGB pixels: what may be opened, how large it may be, and which decoder is trusted with it.

Pillow reads the header of every file and decodes all formats but JPEG. torchvision's JPEG decoder is a fifth faster and
came through thousands of damaged files; its PNG decoder, 1.6 times as fast as Pillow's, does not check what it reads,
and one wrong bit can end the process.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detr_container.base.files import open_regular
from detr_container.base.shortage import out_of_files, out_of_memory

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
"""Formats that are opened. Pillow knows others, some of which run a program (EPS) or are no images (FITS, PDF)."""
LARGEST_PIXELS, LARGEST_BYTES = 100_000_000, 2**29
"""The largest image and file: its pixels take 0.3 GB once decoded, before a model has seen them."""
_ORIENTATION = 0x0112
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, struct.error, zlib.error),
)
"""What Pillow's readers raise on damaged files."""
_KNOWN = "brightness for certain: save it with 8 or 16 bits"
_SMALLER = "cut the image into tiles, or scale it down"


class _RefusedError(ValueError):
    """An image that is sound, and not taken nevertheless."""


def read_image(path: Path, apply_orientation: bool = False) -> Tensor:
    """The image in a file as RGB, [3, h, w] uint8; apply_orientation: turned upright as its orientation tag says.

    Otherwise pixels are as stored, as COCO's boxes expect.
    Transparency is dropped; of an animation the first image counts; 16 bits keep their upper 8, and floats are
    brightness from 0 to 1. Raises OSError when the file cannot be read, ValueError when it is no regular file, too
    large, or cannot be decoded, and RuntimeError when memory or open files run out meanwhile.
    """
    with faultless(path):
        return decode(read_bytes(path), apply_orientation)


@contextmanager
def faultless(path: Path) -> Iterator[None]:
    """Blame no lack of memory or of open files on the file that is being read: raise RuntimeError for it."""
    try:
        yield
    except Exception as error:
        lack = errno.ENOMEM if out_of_memory(error) else errno.EMFILE if out_of_files(error) else 0
        if lack:
            raise RuntimeError(f"{os.strerror(lack)} while {path} was read") from error
        raise


def read_bytes(path: Path) -> bytes:
    """The content of an image file. Raises OSError and ValueError as `read_image`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_BYTES:
            raise ValueError(f"the file has {size:,} bytes, more than {LARGEST_BYTES:,}: {_SMALLER}")
        # Python sets aside as much as it is asked for, however small the file.
        return file.read(size)


def decode(data: bytes, apply_orientation: bool = False) -> Tensor:
    """The image in a file's content, as `read_image` gives it; MemoryError or RuntimeError: memory ran out."""
    try:
        pixels, tag = _decoded(data, apply_orientation)
    except _RefusedError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"the image has more than {LARGEST_PIXELS:,} pixels: {_SMALLER}") from None
    except UnidentifiedImageError:
        raise ValueError(f"not an image in any format known here ({', '.join(FORMATS)})") from None
    except _DAMAGE as error:
        # Pillow's decoders say so in an error like all the others.
        if out_of_memory(error) or "out of memory" in str(error).lower():
            raise MemoryError(str(error)) from error
        raise ValueError(f"not a complete image ({error})") from error
    return _turned(pixels, tag) if apply_orientation else pixels


def _decoded(data: bytes, apply_orientation: bool) -> tuple[Tensor, int]:
    """The pixels as stored, and the orientation tag, which is read only where it is needed."""
    with _opened(data) as image:
        # A PNG's tag is searched behind its pixels: they come first, and what is wrong with them.
        tag = _tag_of(image) if image.format == "TIFF" else 0
        pixels = _decoded_jpeg(data) if image.format in ("JPEG", "MPO") else None
        if pixels is None:
            if image.format == "PNG":
                with _opened(data) as again:
                    # Loading alone does not compare the checksums of the pixels' chunks.
                    again.verify()
            image.load()
            pixels = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
            if tag and _tag_of(image) != tag:
                # Pillow has turned it, as it does with TIFFs, and taken the tag out.
                pixels = _turned(pixels, {6: 8, 8: 6}.get(tag, tag))
        return pixels, tag or (_tag_of(image) if apply_orientation else 0)


def _decoded_jpeg(data: bytes) -> Tensor | None:
    """The pixels of a JPEG; None for a kind that only Pillow knows, or a damaged one, of which Pillow says more."""
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return None


def _turned(pixels: Tensor, tag: int) -> Tensor:
    """An image [3, h, w] as an orientation tag of EXIF (1 to 8) says; those from 5 on exchange height and width."""
    pixels = pixels.transpose(1, 2) if tag >= 5 else pixels
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(tag)
    return pixels.flip(flipped) if flipped else pixels


def orientation(data: bytes) -> int:
    """The orientation tag of a file's content, 1 to 8; 1, upright, also where there is none or it cannot be read."""
    try:
        with _opened(data) as image:
            return _tag_of(image)
    except (Image.DecompressionBombError, *_DAMAGE):
        return 1


def format_of(data: bytes) -> str:
    """What a file's content is, in Pillow's words ("JPEG"); empty where it is no image."""
    try:
        with _opened(data) as image:
            return image.format or ""
    except (Image.DecompressionBombError, *_DAMAGE):
        return ""


def _tag_of(image: Image.Image) -> int:
    try:
        tag = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return int(tag) if tag in range(1, 9) else 1


def _opened(data: bytes) -> Image.Image:
    """An image whose header has been read and whose pixels have not; raises ValueError when it has too many."""
    image = Image.open(io.BytesIO(data), formats=known_formats())
    if image.width * image.height > LARGEST_PIXELS:
        size = f"{image.width:,} x {image.height:,} pixels"
        image.close()
        raise _RefusedError(f"the image has {size}, more than {LARGEST_PIXELS:,} in all: {_SMALLER}")
    return image


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this version of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels [h, w, 3] of a loaded image; raises ValueError for numbers of which it is not known what is white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return np.array(image.convert("RGB"))
    # Pillow would cut these off at 255, which leaves a blank image.
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise _RefusedError(f"its pixels are numbers from {low:g} to {high:g}, and only 0 to 1 is {_KNOWN}")
        grey = (255 * values).round().astype(np.uint8)
    else:
        if low < 0 or high > 65535:
            raise _RefusedError(f"its pixels are whole numbers from {low} to {high}, and only 0 to 65535 is {_KNOWN}")
        grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
