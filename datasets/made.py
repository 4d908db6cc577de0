"""Data sets that are made here: one appears when it is complete, and never half."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def make_once(root: Path, write: Callable[[Path], None], check_same: Callable[[Path], None]) -> bool:
    """Let `write` fill a folder that becomes `root`; False when something is there, which `check_same` has approved.

    Raises what `check_same` does, and OSError, which names the folder, when it cannot be written.
    """
    root = Path(os.path.abspath(root))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        check_same(root)
        return False
    partial_root = root.with_name(f".{root.name}.partial-{os.getpid()}-{time.time_ns()}")
    partial_root.mkdir(parents=True)
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


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
