"""Small images and image files that tests make."""

import struct
import zlib

import numpy as np
from PIL import Image


def colours(height: int = 24, width: int = 40) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)


def png(width: int, height: int, data: bytes, wrong: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data, wrong) + chunk(b"IEND", b"")
