"""How this process keeps the memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THAT_GLIBC_CHOOSES = 32 << 20


def keep_freed_memory() -> bool:
    """Keep what a step frees for the next step, instead of handing it back to the system in between.

    Otherwise glibc returns some hundreds of MiB after every backward pass, and each of their pages is faulted in again
    in the next forward pass: a tenth of a ResNet-50's step on a virtual machine. Memory still grows only to what a
    step needs. Returns False where the C library is another, which is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Setting either ends glibc's own adjusting of both, so the other is set to where that would have led.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_THAT_GLIBC_CHOOSES) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
