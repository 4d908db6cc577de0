"""Run a program in a world without `flock`, as on some network file systems: the kernel itself refuses the call.

python without_flock.py PROGRAM ARGUMENTS: a seccomp filter answers every flock with ENOLCK.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {"x86_64": 73, "aarch64": 32}
"""The number of flock, by machine."""


def forbid_flock() -> None:
    """For this process and what it starts."""
    load, compare, give = 0x20, 0x15, 0x06
    program = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (load, 0, 0, 0),
            (compare, 0, 1, CALLS[platform.machine()]),
            (give, 0, 0, 0x00050000 | errno.ENOLCK),
            (give, 0, 0, 0x7FFF0000),
        )
    )
    lines = ctypes.create_string_buffer(program, len(program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(lines)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filters), 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel takes no filter")


if __name__ == "__main__":
    forbid_flock()
    os.execv(sys.argv[1], sys.argv[1:])
