"""Memory or open files that run out: reported in one line, with the settings that ask for them and what to do.

Torch, numpy and the system have an error each for it, some of them no more than a RuntimeError with a text. Whoever
does what may take much states by `asking` which settings decide how much; the innermost of nested ones reports it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# What is no error of its own: torch's CPU allocator, sizes that no number holds, CUDA and its libraries, C++ and the
# loader of shared libraries.
_TEXTS = (
    *("allocate memory", "llocation failed", "_ALLOC_FAILED", "out of memory", "bad_alloc", "failed to map segment"),
    *("Storage size calculation overflowed", "integer multiplication overflow", "array is too big"),
    *("Maximum allowed dimension exceeded", "start new thread", os.strerror(errno.ENOMEM)),
)
_FILES = (errno.EMFILE, errno.ENFILE)


class ShortageError(OSError):
    """Memory (errno ENOMEM) or open files (EMFILE) did not suffice; the message is for the person."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


@contextmanager
def asking(what: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Raise ShortageError, naming `what` is done within and the settings it is for, when something runs out."""
    try:
        yield
    except ShortageError:
        raise
    except Exception as error:
        if out_of_memory(error):
            number, lack, remedy = errno.ENOMEM, "not enough memory", "give it more memory (or see `ulimit -v`)"
        elif out_of_files(error):
            number, lack, remedy = errno.EMFILE, "too many open files", "raise the limit (`ulimit -n 4096`)"
        else:
            raise
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        lower = f"lower what asks for it, {listed}, or " if listed else ""
        raise ShortageError(f"{lack} for {what} ({_reason(error)}): {lower}{remedy}", number) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, or that a size is beyond any memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    by_text = isinstance(error, (RuntimeError, ImportError, ValueError)) and any(text in str(error) for text in _TEXTS)
    return isinstance(error, MemoryError) or by_text


def out_of_files(error: BaseException) -> bool:
    """Whether an error means that no more files may be open."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in _FILES
    return isinstance(error, (OSError, RuntimeError)) and os.strerror(errno.EMFILE) in str(error)


def _reason(error: BaseException) -> str:
    """One line of an error's message. What comes from a loader process ends with it, after a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "Original Traceback (most recent call last):" in lines else 0]
