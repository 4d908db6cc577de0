"""What killed processes have left in a run's folder, removed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.tmp")


def sweep(folder: Path, process: object) -> None:
    """Remove the half-written files of a process that had the folder's lock and is dead, as the lock's taker knows.

    process: its number. Other processes' files, which may be of another machine and alive, are not touched.
    """
    for path in folder.rglob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match[1] == str(process) and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()
