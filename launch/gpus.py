"""Which GPUs of this machine a run gets: its own, as long as there are enough, among all runs that are started here."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

VARIABLE = "CUDA_VISIBLE_DEVICES"
_SECONDS = 30


class Claim(NamedTuple):
    """devices: values for the variable; shared: how many other runs, at least, have one of them as well."""

    devices: list[str]
    shared: int


def visible(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that may be used: numbers, UUIDs or MIG ids as the variable names them, else those that there are."""
    if VARIABLE in environ:
        given = [device.strip() for device in environ[VARIABLE].split(",")]
        # As CUDA reads it: nothing counts from the first that is no device on.
        return list(itertools.takewhile(lambda device: bool(re.fullmatch(r"\d+|(GPU|MIG)-[\w/.-]+", device)), given))
    found: list[str] = []
    for line in _listed():
        if slice_of := re.search(r"^\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if found and found[-1].isdigit():
                # One that is divided is used by its parts.
                found.pop()
            found.append(slice_of[1])
        elif whole := re.match(r"GPU (\d+):", line):
            found.append(whole[1])
    return found


@contextlib.contextmanager
def claimed(count: int, environ: Mapping[str, str]) -> Iterator[Claim]:
    """So many GPUs, held against this person's other runs on this machine while entered; fewer where there are fewer.

    Those that the fewest runs have come first; once every one is taken, they are shared in turns. The system lets go
    of them when this process dies.
    """
    devices = visible(environ)
    count = min(count, len(devices))
    with ExitStack() as held:
        mine: list[str] = []
        shared = 0
        folder = _folder() if count else Path()
        for shared in itertools.count():
            for device in devices:
                if len(mine) < count and device not in mine and _take(folder, device, shared, held):
                    mine.append(device)
            if len(mine) == count:
                break
        yield Claim(sorted(mine, key=devices.index), shared)


def _take(folder: Path, device: str, level: int, held: ExitStack) -> bool:
    """Hold one place at a device: level 0 is for who has it alone, the next for who shares it with one, and so on."""
    name = f"{hashlib.sha256(_identity(device).encode()).hexdigest()[:16]}-{level}"
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    return True


def _identity(device: str) -> str:
    """The UUID of a GPU that is given by its number, so that both names are of one device."""
    if device.isdigit():
        for line in _listed():
            if found := re.match(rf"GPU {int(device)}: .*\(UUID: ([^)]+)\)", line):
                return found[1]
    return device


def _listed() -> list[str]:
    """What nvidia-smi lists; nothing where there is none."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _folder() -> Path:
    """Where this person's runs on this machine see each other. Raises ValueError when another person has made it."""
    folder = Path(tempfile.gettempdir()) / f"detr-container-gpus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(f"{folder} is not a folder of yours: remove it, or set TMPDIR to a folder that is")
    return folder
