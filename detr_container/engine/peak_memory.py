"""The most memory that a phase of a process takes, whatever came before it."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

GIB = 2**30
MEANING = {
    "cuda": "memory of the GPU that tensors take",
    "cpu": "resident memory of the process",
    "cpu, not reset": "resident memory of the process, since its start",
}


def begin_phase(device: torch.device) -> str:
    """Forget the peak so far, and hand back what is free. Returns what `peak_memory` will mean, a key of MEANING.

    Only Linux can forget a CPU's peak; elsewhere it is that since the start of the process.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return "cuda"
    # What the C library keeps for later (see `keep_freed_memory`) would count as if it was in use.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # See proc(5): 5 sets the "high water mark" of resident memory to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return "cpu, not reset"
    return "cpu"


def peak_memory(device: torch.device) -> float:
    """Most memory in GiB since `begin_phase`; see MEANING."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    with suppress(OSError):
        # getrusage would count what the process had that started this one, and cannot be reset.
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB
