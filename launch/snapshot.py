"""A copy of the code that a queued job will run, so that edits in the checkout change no queued job."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from detr_container.base.checked import Schema, read_json
from detr_container.base.files import write_json
from detr_container.base.ownership import keep_own

NOTE = "snapshot.json"
"""The file that records where a copy came from."""


class NoteFile(Schema):
    """snapshot.json."""

    package: str
    sha256: str
    git: dict[str, Any] | None = None


def read_note(copy: Path) -> dict[str, Any] | None:
    """Where a copy came from; None for what is no copy. Raises ValueError when its note is damaged."""
    note = copy / NOTE
    return read_json(note, NoteFile) if note.exists() else None


def take_snapshot(package: Path, target: Path, facts: dict[str, Any]) -> Path:
    """Copy a package with everything in it, links followed, to `target/<its name>`; returns `target`.

    package: its folder. facts: what else to remember of its origin, beside the path and a SHA-256 of all files.
    """
    copied = shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    digest = hashlib.sha256()
    for path in sorted(path for path in copied.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(copied)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    write_json(target / NOTE, {"package": str(package), "sha256": digest.hexdigest(), **facts})
    keep_own(target)
    return target
