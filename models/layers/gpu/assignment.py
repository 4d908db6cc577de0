"""Whether a device can find matches by itself, which is tried before a run begins; `assignment_kernel` finds them."""

from __future__ import annotations

import subprocess
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_SLOTS = 128
"""More than COCO's images have objects."""


@lru_cache
def refusal(device: torch.device, queries: int) -> str:
    """Why matches of so many queries cannot be found on a device, in one line; empty where they can. Waits for it."""
    failures: tuple[type[Exception], ...] = (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError)
    try:
        from triton import TritonError

        failures = (*failures, TritonError)
        return _trial(device, queries)
    except failures as error:
        if device.type == "cpu":
            return "there is no GPU"
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _trial(device: torch.device, queries: int) -> str:
    """What is wrong with matches of random costs; empty if nothing is."""
    from .assignment_kernel import assign

    generator = torch.Generator().manual_seed(0)
    # The second has more objects than queries, and the same kernel.
    for fewer, slots in sorted({(queries, _SLOTS), (min(queries, _SLOTS - 5), max(queries, _SLOTS))}):
        counts = (slots, 0, 1, min(fewer, slots) // 2)
        costs = torch.randn(2, len(counts), fewer, slots, generator=generator)
        valid = torch.arange(slots) < torch.tensor(counts)[:, None]
        matches = assign(costs.to(device), valid.to(device)).cpu()
        for layer, image in np.ndindex(2, len(counts)):
            if not is_best(costs[layer, image, :, : counts[image]], matches[layer, image]):
                return f"Triton's matches of {fewer} queries and {counts[image]} objects are not the best ones"
    return ""


def is_best(costs: Tensor, matches: Tensor) -> bool:
    """Whether these matches are possible, and none cost less; costs: [Q, N]; matches: [T], -1 beyond N."""
    from scipy.optimize import linear_sum_assignment

    table, mine = costs.double().numpy(), matches.numpy()
    rows, columns = linear_sum_assignment(table)
    slots = np.flatnonzero(mine >= 0)
    if len(slots) != len(rows) or len(np.unique(mine[slots])) != len(rows):
        return False
    if (slots >= table.shape[1]).any() or (mine >= table.shape[0]).any():
        return False
    best = table[rows, columns].sum()
    rounding = 1e-12 * len(rows) * np.abs(table).max(initial=0)
    return bool(abs(table[mine[slots], slots].sum() - best) <= rounding)
