"""One writer for a folder: a second job learns who has it."""

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
from typing import Annotated, Any, Self

from pydantic import Field

from .alive import mark
from .checked import Schema, read_json
from .files import make_folder, refuse_link
from .leftovers import sweep

_log = logging.getLogger(__name__)
NAME = ".lock"
# A look at the lock (`holder`) takes it for a moment, and a killed holder lets go a moment late.
_MOMENT = 2.0
# A lock on NFS of a node that has failed lasts until the server's lease on it runs out, 90 seconds by default.
_LEASE = 180.0
_CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

Seconds = Annotated[float, Field(ge=0, le=1e11)]
"""Since 1970."""


class HinderedError(OSError):
    """What a start ends with when something outside the program, which may be gone at the next start, is in its way."""


class LockFile(Schema):
    """.lock: who holds it."""

    host: str
    pid: Annotated[int, Field(ge=1, le=2**31)]
    process: str = ""
    job: str
    since: Seconds


class FolderLock:
    """Held, while entered, by one process on all machines that see the folder; the system lets go when it dies.

    job: the scheduler's name of this job, if any. After a node's failure a job may start again before the file server
    has noticed, so a lock that the same job holds is waited for. Raises ValueError when somebody else has the folder,
    and HinderedError when an earlier start of this job, on a machine that cannot be reached, keeps it.
    On a file system that cannot lock, what the holder wrote in the file counts: one on this machine that has ended is
    overruled, one on another machine is believed.
    """

    def __init__(self, folder: Path, job: str = "") -> None:
        self.path, self.job = folder / NAME, job
        self._descriptor, self._lockless = -1, False

    def __enter__(self) -> Self:
        self._created = not self.path.parent.exists()
        make_folder(self.path.parent)
        began = time.monotonic()
        while not self._taken():
            other = _content(self.path)
            former = bool(self.job) and other.get("job") == self.job
            if time.monotonic() - began > (_LEASE if former else _MOMENT):
                if former:
                    raise HinderedError(
                        f"{self.path.parent} is still in use by {describe(other)}, an earlier start of this job, after "
                        f"{_LEASE:.0f} seconds: its machine may be cut off. Another start tries again; end that process"
                    )
                raise ValueError(
                    f"{self.path.parent} is in use by {describe(other)}: two jobs in one folder would spoil each "
                    f"other's files. Wait for it, stop it, or choose another name{self._aside()}"
                )
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if self._created:
            # Nothing was written, because something was wrong: leave no trace.
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _taken(self) -> bool:
        """Open the file, lock it and write who has it, unless somebody else has, or has just removed it."""
        refuse_link(self.path)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor, created = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                self._descriptor, created = os.open(self.path, flags), False
            except FileNotFoundError:
                return False
        try:
            mine = self._locked(created) and os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except FileNotFoundError:
            mine = False
        except BaseException:
            os.close(self._descriptor)
            raise
        if not mine:
            os.close(self._descriptor)
            return False
        # Whoever left its name in the file is dead, or it would hold the lock.
        sweep(self.path.parent, _content(self.path).get("pid"))
        own = {"host": platform.node(), "pid": os.getpid(), "process": mark(os.getpid()), "job": self.job}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({**own, "since": time.time()}).encode(), 0)
        return True

    def _locked(self, created: bool) -> bool:
        """Whether this process has the file. created: it is new, which is what decides where nothing can be locked."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as reason:
            if reason.errno not in _CANNOT:
                raise
            self._lockless = True
            other = _content(self.path)
            if not created and _gone(other, self.job):
                sweep(self.path.parent, other.get("pid"))
                self._remove(other)
            return created
        return True

    def _remove(self, ended: dict[str, Any]) -> None:
        """Remove the file of a holder that has ended, unless another process has put its own in the place."""
        aside = self.path.with_name(f"{NAME}.{platform.node()}-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if _content(aside) != ended:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _aside(self) -> str:
        """What to add where only the file shows it."""
        if not self._lockless:
            return ""
        return f". This file system cannot lock, so that the file counts: if that process has ended, remove {self.path}"


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds a folder's lock: host, pid, job, since (seconds since 1970); None when nobody does."""
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _content(path)
    except OSError as reason:
        other = _content(path)
        return other if reason.errno in _CANNOT and not _gone(other) else None
    finally:
        os.close(descriptor)
    return None


def tidy(folder: Path) -> None:
    """Remove the lock and the half-written files of a killed process, unless somebody has the folder now."""
    if (folder / NAME).exists() and holder(folder) is None:
        with contextlib.suppress(ValueError, OSError), FolderLock(folder):
            pass


def describe(other: dict[str, Any]) -> str:
    """A holder in words."""
    if not other:
        return "another process"
    job = f" of job {other['job']}" if other.get("job") else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(other.get("since", 0)))
    return f"process {other.get('pid')} on {other.get('host')}{job}, since {since}"


def _gone(other: dict[str, Any], job: str = "") -> bool:
    """Whether a holder has certainly ended: on this machine, or because its job, which is started again, is this one.

    An empty file is that of a process that is just taking it.
    """
    if job and other.get("job") == job:
        return True
    known = other.get("host") == platform.node() and other.get("process")
    return bool(known) and mark(other["pid"]) != other["process"]


def _content(path: Path) -> dict[str, Any]:
    """What the holder wrote; nothing where that cannot be read, which may be because it is just being written."""
    try:
        return read_json(path, LockFile, largest=1 << 16)
    except (OSError, ValueError):
        return {}
