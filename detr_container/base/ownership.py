"""Whose files decide what this person runs: only one's own, which nobody else can change."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path


def refuse_foreign(paths: Iterable[Path], remedy: str) -> None:
    """Raise ValueError when another person owns, or can write, one of the files, or anything within one of the folders.

    remedy: what to do instead, for the message. What is not there decides nothing.
    """
    for path in paths:
        for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
            try:
                found = each.lstat()
            except FileNotFoundError:
                continue
            if found.st_uid != os.geteuid():
                raise ValueError(
                    f"{each} is {_name(found.st_uid)}'s, and what it says would run in your name: {remedy}"
                )
            if stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ValueError(
                    f"{each} can be changed by others than you, and what it says would run in your name: look at it, "
                    f"then `chmod -R go-w {path}`, or {remedy}"
                )


def keep_own(path: Path) -> None:
    """Let nobody but its owner change a file, or the files in a folder, whatever the umask; links are left alone."""
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not each.is_symlink():
            each.chmod(stat.S_IMODE(each.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
