"""How much of the time of training steps a GPU computes, and how much the host waits for it, by PyTorch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

STEPS = 4
"""Steps that are watched."""
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""What a step may wait in; not cudaDeviceSynchronize, in which only measurements do."""


def device_shares(step: Callable[[], object]) -> dict[str, float]:
    """The shares of the time of a step, after it has been warmed up.

    busy: in which a GPU computes or copies; host_waits: in which the host waits for it. The time is that of steps that
    nobody watches, since watching slows the host down. kernels: how many a step has, copies included. What the profiler
    cannot see is left out.
    """
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    taken = 1e6 * (time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    return shares_of(watched.events() or [], taken)


def shares_of(events: Iterable[FunctionEvent], taken: float) -> dict[str, float]:
    """As `device_shares`; taken: microseconds in all."""
    kernels, waits, runtime = list[tuple[float, float]](), 0.0, False
    for event in events:
        span = event.time_range
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernels.append((span.start, span.end))
        elif event.name.startswith("cuda"):
            runtime = True
            waits += span.elapsed_us() if event.name in _WAITS else 0.0
    shares = {"busy": min(1.0, covered(kernels) / taken), "kernels": len(kernels) / STEPS} if kernels else {}
    return shares | ({"host_waits": min(1.0, waits / taken)} if runtime else {})


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length that spans, (start, end), cover together; what several cover counts once."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length
