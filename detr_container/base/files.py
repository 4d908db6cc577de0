"""Files that are either whole or not there: atomic replacement, JSON, and JSON lines that survive a kill."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is too large",
}

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class _Sink(io.FileIO):
    """A file that remembers why a write failed, since some writers (torch.save) replace the reason by their own."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading, as bytes; links to one are followed.

    Raises ValueError for a pipe, a device, a socket or a folder, which could be waited for, or read from, without end;
    OSError for what the system refuses.
    """
    _refuse_unless_regular(path, os.stat(path).st_mode)
    # Another file may have taken the name since; a pipe without a writer is then opened, not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _refuse_unless_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_unless_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{path} is {kind}, and only regular files are read: name a file, or copy the content to one")


def atomic_write(
    path: Path | str, writer: Callable[[BinaryIO], object], size: int | None = None, follow: bool = False
) -> Path:
    """Write a file so that at every moment, power cuts included, the old or the new one is there in full.

    writer: receives the open binary file; whatever it raises passes through, and the old file stays as it was.
    size: the number of bytes to be written where it is known, for the message when they do not fit.
    follow: write to where a link leads; otherwise a link is refused. Missing folders are made. Returns the path.
    Raises OSError, saying what to do, when the disk or quota is full or the file exceeds the process's limit.
    """
    path = Path(path)
    if not follow:
        refuse_link(path)
    target = Path(os.path.realpath(path))
    make_folder(target.parent)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a file is to be written, but a folder has this name", str(path))
    temporary = target.parent / f".{target.name[:180]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    sink: _Sink | None = None
    try:
        sink = _Sink(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w")
        _fill(sink, writer)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        written = _discard(sink, temporary)
        reason = sink.failure if sink is not None and sink.failure is not None else error
        if isinstance(reason, OSError) and reason.errno in _NO_ROOM:
            raise _no_room(path, reason, size, written) from error
        raise
    return path


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, unless they are there. Raises OSError, naming what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        # The system names the folder that it could not make, not the file that has a folder's name.
        way = next(above for above in (folder, *folder.parents) if os.path.lexists(above))
        raise NotADirectoryError(
            errno.ENOTDIR, "this is not a folder, and one is needed here: choose another name", str(way)
        ) from error


def refuse_link(path: Path | str) -> None:
    """Raise OSError when a path is a symbolic link, through which something else would be overwritten or removed."""
    if os.path.islink(path):
        raise OSError(
            errno.ELOOP,
            f"{path} is a symbolic link to {os.readlink(path)}, and nothing is written or removed through a link: "
            "put a copy, or nothing, in its place",
        )


def refuse_links(folder: Path, patterns: Iterable[str]) -> None:
    """Raise OSError when anything in a folder that matches a pattern is a symbolic link; the folder itself may be one.

    patterns: those of a folder before those of what is in it, which are then not followed.
    """
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            refuse_link(path)


def write_json(path: Path | str, value: Any, follow: bool = False) -> Path:
    """Write `value` as indented JSON, atomically.

    Paths become strings and arrays or tensors lists; a number that is not finite becomes null, as JSON has none.
    """
    data = (_dumps(value, indent=2) + "\n").encode()
    return atomic_write(path, lambda file: file.write(data), len(data), follow)


def write_jsonl(path: Path | str, records: Iterable[dict[str, Any]]) -> Path:
    """Write all records as JSON lines, atomically: to shorten a log that ran ahead of the checkpoint, say."""
    data = "".join(_dumps(record) + "\n" for record in records).encode()
    return atomic_write(path, lambda file: file.write(data), len(data))


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """All records of a JSON-lines file, oldest first; a last line cut short by a kill is left out.

    Raises ValueError with the line's number when any other line is not a JSON object.
    """
    with open_regular(path) as file:
        data = file.read()
    records = []
    for number, line in enumerate(data[: whole(data)].splitlines(), start=1):
        record = _record(line)
        if record is None:
            raise ValueError(
                f"{path}, line {number}: not a JSON object ({line[:60]!r}); every line must hold one. "
                "Delete that line, or move the file away"
            )
        records.append(record)
    return records


class JsonLines:
    """A log of JSON objects, one a line, written by one process and readable at any time.

    Every line reaches the operating system in one write before `append` returns, so a killed process loses nothing
    that it logged; opening a log again removes the half line that a power cut may have left.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        refuse_link(self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o666)
        _refuse_unless_regular(self.path, os.fstat(self._descriptor).st_mode)
        data = self.path.read_bytes()
        kept = whole(data)
        os.ftruncate(self._descriptor, kept)
        if kept and not data[:kept].endswith(b"\n"):
            self._write(b"\n")

    def append(self, record: dict[str, Any]) -> None:
        """Add one line. Raises OSError when there is no room; the log then ends with the line before."""
        self._write((_dumps(record) + "\n").encode())

    def close(self) -> None:
        """Bring the log to the disk and close it; a second call does nothing."""
        if self._descriptor >= 0:
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: this log is closed; open it again to append")
        end = os.fstat(self._descriptor).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            if error.errno in _NO_ROOM:
                raise _no_room(self.path, error, len(data), len(data) - len(rest)) from error
            raise


def _fill(sink: _Sink, writer: Callable[[BinaryIO], object]) -> None:
    """Let `writer` write, and bring everything to the disk."""
    buffered = io.BufferedWriter(sink, buffer_size=1 << 20)
    try:
        writer(buffered)
        buffered.flush()
        os.fsync(sink.fileno())
    finally:
        # Closing flushes what is left; after a failed write that fails again, and the first reason is to be reported.
        with contextlib.suppress(OSError):
            buffered.close()


def _discard(sink: _Sink | None, temporary: Path) -> int:
    """Remove the temporary file; returns the bytes it held."""
    written = 0
    with contextlib.suppress(OSError):
        written = temporary.stat().st_size
    with contextlib.suppress(OSError):
        temporary.unlink()
    if sink is not None:
        with contextlib.suppress(OSError):
            sink.close()
    return written


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; file systems that cannot sync a folder do it by themselves."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _no_room(path: Path, reason: OSError, size: int | None, written: int) -> OSError:
    """The error for a file that does not fit, with what is needed, what is free, and what to do."""
    needed = f"{size:,} bytes" if size is not None else f"more than {written:,} bytes"
    try:
        free = f"{shutil.disk_usage(path.absolute().parent).free:,} bytes are free there"
    except OSError:
        free = "the free space is unknown"
    number = reason.errno or errno.ENOSPC
    if number == errno.EFBIG:
        remedy = "Raise the limit on the size of files (`ulimit -f unlimited`), or choose a file system without one"
    else:
        remedy = "Free some space, keep fewer checkpoints, or choose a folder on another disk"
    return OSError(
        number,
        f"cannot write {path}: {_NO_ROOM[number]} ({needed} needed, {free}). The old file is as it was. {remedy}",
    )


def _dumps(value: Any, indent: int | None = None) -> str:
    try:
        text = json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except ValueError:
        text = None
    # Only values that JSON has not come here, so the usual case does not pay for walking through everything.
    if text is None or "\\ud" in text:
        text = json.dumps(_finite(value), indent=indent, allow_nan=False, default=_plain)
    return text


def _plain(value: Any) -> Any:
    """What the json module cannot write by itself: paths, numpy's and torch's arrays and scalars."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    raise TypeError(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be written as JSON: "
        "turn it into numbers, strings, lists or dicts first"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | Path):
        # The bytes of a file name that is not UTF-8 are halves of characters in Python, and no text elsewhere.
        return str(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_finite(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def _record(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def whole(data: bytes) -> int:
    """Of JSON lines: how many leading bytes are whole lines.

    A last line without its line break counts if it is an object: a cut one lacks its closing brace.
    """
    end = data.rfind(b"\n") + 1
    return len(data) if _record(data[end:]) is not None else end
