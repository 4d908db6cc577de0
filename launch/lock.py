"""One writer for a folder: a second job is told who has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_log = logging.getLogger(__name__)
NAME = ".lock"
# A look at the lock (`holder`) takes it for a moment, and a killed holder lets go a moment late.
_MOMENT = 2.0
# A lock on NFS of a node that has failed lasts until the server's lease on it runs out, 90 seconds by default.
_LEASE = 180.0


class FolderLock:
    """Held, while entered, by one process on all machines that see the folder; the system lets go when it dies.

    job: the scheduler's name of this job, if any. After a node's failure a job may start again before the file server
    has noticed, so a lock that the same job holds is waited for. Raises ValueError when somebody else has the folder.
    A file system that cannot lock is worked on with a warning.
    """

    def __init__(self, folder: Path, job: str = "") -> None:
        self.path, self.job = folder / NAME, job
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._made = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        while not self._taken():
            other = _content(self.path)
            patience = _LEASE if self.job and other.get("job") == self.job else _MOMENT
            if time.monotonic() - began > patience:
                raise ValueError(
                    f"{self.path.parent} is in use by {describe(other)}: two jobs in one folder would spoil each "
                    "other's files. Wait for it, stop it, or choose another name"
                )
            time.sleep(0.1)
        content = {"host": platform.node(), "pid": os.getpid(), "job": self.job, "since": time.time()}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if self._made:
            # Nothing was written, because something was wrong: leave no trace.
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _taken(self) -> bool:
        """Open the file and lock it, unless somebody else has, or has just removed it."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            if isinstance(reason, BlockingIOError):
                os.close(self._descriptor)
                return False
            if reason.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _log.warning(
                "%s cannot be locked on this file system (%s): nothing keeps a second job out of the folder",
                self.path,
                reason.strerror,
            )
        try:
            same = os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(self._descriptor)
        return same


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds a folder's lock: host, pid, job, since (seconds since 1970); None when nobody does."""
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _content(path)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def describe(other: dict[str, Any]) -> str:
    """A holder in words."""
    if not other:
        return "another process"
    job = f" of job {other['job']}" if other.get("job") else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(other.get("since", 0)))
    return f"process {other.get('pid')} on {other.get('host')}{job}, since {since}"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
