"""Columns of numbers in a compressed .npz, read back against what they must be: type, shape and length.

A file may be cut short or damaged; then it is named in one line, and nothing is set aside on its word.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detr_container.base.checked import read_bytes
from detr_container.base.files import atomic_write

Columns = Mapping[str, tuple[np.dtype[Any], tuple[int | None, ...]]]
"""By name the type of a column and the shape of an entry; None: of any length."""
_LARGEST = 1 << 33
"""Bytes of a column: ten times what the largest public data sets make."""
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError),
    *(SyntaxError, tokenize.TokenError),
)
"""What zipfile, and NumPy of a header, raise for other content than they write."""
REMEDY = "Put back a copy of it, or evaluate again"


def write_columns(path: Path, **columns: NDArray[Any]) -> None:
    """Write them as a compressed .npz, whole or not at all; the same columns give the same bytes."""
    # Bytes first, so that it is not zipfile that meets a full disk.
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **columns)
    data = packed.getbuffer()
    atomic_write(path, lambda file: file.write(data), len(data))


def read_columns(path: Path, expected: Columns, what: str, optional: Columns | None = None) -> dict[str, NDArray[Any]]:
    """What `write_columns` wrote. what: of what it is a file, in words; optional: columns all there, or none of them.

    Raises ValueError for anything else, OSError for what the system refuses.
    """
    content = io.BytesIO(read_bytes(path, _LARGEST))
    try:
        with zipfile.ZipFile(content) as archive:
            names = archive.namelist()
            more = optional if optional and any(f"{name}.npy" in names for name in optional) else {}
            return {name: _column(archive, name, *form) for name, form in {**expected, **more}.items()}
    except _DAMAGE as error:
        reason = error.args[0] if error.args else "cut short"
        raise ValueError(f"{path} is no whole file of {what} ({reason}); was it cut short? {REMEDY}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no file of {what}: {error}. {REMEDY}") from error


def _column(
    archive: zipfile.ZipFile, name: str, expected: np.dtype[Any], entry: tuple[int | None, ...]
) -> NDArray[Any]:
    """One column of a file. Raises ValueError for what is not one, and as zipfile for what cannot be unpacked."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.file_size > _LARGEST:
        raise ValueError(f"{name} is too large, or packed in another way")
    content = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError(f"{name} is of another version of NumPy's format")
    shape, by_columns, kind = np.lib.format.read_array_header_1_0(content)
    # The header is compared with what there is before anything is made as large as it says.
    data = content.getbuffer()[content.tell() :]
    fits = len(shape) == 1 + len(entry) and all(k in (None, side) for k, side in zip(entry, shape[1:], strict=True))
    if kind != expected or by_columns or not fits or expected.itemsize * math.prod(shape) != len(data):
        asked = "".join(f", {'any' if k is None else k}" for k in entry)
        raise ValueError(f"{name} is {kind} of shape {shape}, not {expected} of [n{asked}]")
    return np.frombuffer(data, dtype=expected).reshape(shape).copy()
