"""How this process keeps the memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A feature map of a large image at stride 4 fits; glibc by itself goes to 32 MiB at most.
_LARGEST_KEPT = 256 << 20


def keep_freed_memory() -> bool:
    """Keep what a step frees for the next step, instead of handing it back to the system in between.

    Otherwise glibc returns what is large at once and some of the rest after every backward pass, and each page of it
    is faulted in again in the next forward pass. What is kept is bounded by what a step needs. Returns False where the
    C library is another, which is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
