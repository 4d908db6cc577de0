"""Data sets that are made here: one appears when it is complete, and never half."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detr_container.base.checked import read_plain
from detr_container.base.files import make_folder


@dataclass(frozen=True)
class MadeConfig:
    """What determines a data set. Numbers of images, the side of their squares in pixels, and the seed."""

    train: int
    val: int
    size: int
    seed: int

    def check_drawing(self, least: int, usual: int) -> None:
        """Raise ValueError for a side below the `least` one, in pixels, or a seed that is none."""
        if self.size < least:
            raise ValueError(
                f"size={self.size} is too small to tell the shapes apart: use {least} pixels or more ({usual} is usual)"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: use a whole number of 0 or above")


def make_once(root: Path, write: Callable[[Path], None], check_same: Callable[[Path], None]) -> bool:
    """Let `write` fill a folder that becomes `root`; False when something is there, which `check_same` has approved.

    Raises what `check_same` does, and OSError, which names the folder, when it cannot be written.
    """
    root = Path(os.path.abspath(root))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        check_same(root)
        return False
    partial_root = root.with_name(f".{root.name}.partial-{os.getpid()}-{time.time_ns()}")
    make_folder(partial_root)
    try:
        write(partial_root)
        try:
            partial_root.rename(root)
        except OSError:
            if not root.exists():
                raise
            # Another process finished first: all is well if it made the same.
            check_same(root)
            return False
    except OSError as error:
        # What writes images does not say where.
        error.filename = error.filename or str(root)
        raise
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return True


def check_same(root: Path, config: MadeConfig, manifest: str, kind: str, parts: Sequence[tuple[str, str, int]]) -> None:
    """Raise FileExistsError unless `root` is a whole data set of this kind that was made with these settings.

    manifest: the file that records how it was made; parts: what there must be, a name, a pattern and a number each.
    """
    remedy = "delete it, or name another folder"
    if not (root / manifest).is_file():
        raise FileExistsError(f"{root} exists and is not a data set of {kind}: name another folder")
    try:
        found = read_plain(root / manifest)
    except ValueError as error:
        raise FileExistsError(f"{root} exists and its {manifest} cannot be read ({error}): {remedy}") from error
    if found != asdict(config):
        raise FileExistsError(f"{root} was made with {found}, not with {asdict(config)}: {remedy}")
    for what, pattern, count in parts:
        if (there := sum(1 for _ in root.glob(pattern))) != count:
            raise FileExistsError(f"{root} is damaged ({there} of {count} {what} are there): {remedy}")


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
