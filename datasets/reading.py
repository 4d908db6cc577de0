"""Image files read as training reads them, many at a time: what came of each, for the checkers of data sets."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .images import decode, faultless, format_of, orientation, read_bytes
from .progress_bar import track

BLOCK = 1024
"""Images handed to the pool at a time, so that COCO's 118,287 do not all wait in memory."""

FLAT = 4
"""Levels of brightness, of 256, below which an image shows nothing."""


@dataclass(frozen=True)
class Seen:
    """What came of reading one file: a hash of its bytes, its (height, width), or why it cannot be read.

    turned: it has an orientation tag other than upright; flat: all of its pixels are about the same; format: what it
    is, whatever its name says.
    """

    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    flat: bool = False
    kind: str = ""
    problem: str = ""
    format: str = ""


Reader = Callable[[Path], Seen | None]


def read_one(path: Path, apply_orientation: bool = False) -> Seen:
    """Read and decode one file exactly as training does. Raises RuntimeError when memory or open files run out."""
    try:
        with faultless(path):
            data = read_bytes(path)
            image = decode(data, apply_orientation)
    except FileNotFoundError:
        return Seen(kind="missing-image", problem="the file does not exist")
    except (OSError, ValueError) as error:
        return Seen(kind="unreadable-image", problem=f"the file cannot be read: {error}")
    flat = int(image.amax()) - int(image.amin()) < FLAT
    size = (int(image.shape[1]), int(image.shape[2]))
    return Seen(digest_of(data), size, orientation(data) != 1, flat, format=format_of(data))


def read_if_missing(path: Path) -> Seen | None:
    """Read a file only where it is not there, which says why; None: it is there, and was not read."""
    try:
        there = path.is_file()
    except OSError:
        # Too long a name, say; reading it says why.
        there = False
    return None if there else read_one(path)


def read_digest(path: Path) -> Seen | None:
    """Read a file for its content alone; None where that cannot be read. Raises RuntimeError as `read_one`."""
    try:
        with faultless(path):
            return Seen(digest_of(read_bytes(path)))
    except (OSError, ValueError):
        return None


def digest_of(data: bytes) -> bytes:
    """A hash of a file's content."""
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(frozen=True)
class Files:
    """So many files; path: of each by its number; title: what the progress bar says."""

    count: int
    path: Callable[[int], Path]
    title: str


def read_files(
    files: Files, reader: Reader, others: Reader, sample: int = 0, workers: int = 2, progress: bool = False
) -> Iterator[Seen | None]:
    """What came of each file, in order.

    reader: of a sample of them, always the same ones, or of all with 0; others: of those that were not drawn.
    workers: threads, for reading, hashing and decoding all let go of the interpreter's lock, while a process would
    first spend seconds on importing torch.
    """
    every = range(files.count)
    drawn: Container[int] = set(random.Random(0).sample(every, sample)) if 0 < sample < files.count else every

    def read(index: int) -> Seen | None:
        return reader(files.path(index)) if index in drawn else others(files.path(index))

    def blocks() -> Iterator[Seen | None]:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, files.count, BLOCK):
                yield from pool.map(read, range(start, min(start + BLOCK, files.count)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd files; what matters is whether they decode.
        yield from track(blocks(), files.count, files.title, progress)


def repeated(digests: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Files whose content an earlier one has: its number, and that of the first; empty digests are nothing's."""
    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        if digest and first.setdefault(digest, index) != index:
            yield index, first[digest]


def shared(first: Sequence[bytes], second: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Files of `second` whose content is also in `first`: its number there, and the number in `first`."""
    contents = {digest: index for index, digest in enumerate(first) if digest}
    for index, digest in enumerate(second):
        if digest in contents:
            yield index, contents[digest]
