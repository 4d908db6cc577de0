"""How busy a GPU is follows from the events of the profiler: kernels that overlap count once."""

import pytest
import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from detr_container.measure.device_share import STEPS, covered, device_shares, shares_of


def test_what_overlaps_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (2, 2.5), (7, 8)]) == 6


def _event(name: str, start: float, end: float, device: DeviceType, annotation: bool = False) -> FunctionEvent:
    return FunctionEvent(
        id=0, name=name, thread=0, start_us=start, end_us=end, device_type=device, is_user_annotation=annotation
    )


def test_shares() -> None:
    gpu, cpu = DeviceType.CUDA, DeviceType.CPU
    events = [
        _event("a kernel", 0, 30, gpu),
        _event("another", 20, 40, gpu),
        # The whole step by its name, which is no work.
        _event("Optimizer.step", 0, 100, gpu, annotation=True),
        _event("cudaLaunchKernel", 0, 1, cpu),
        _event("cudaStreamSynchronize", 50, 60, cpu),
        _event("cudaDeviceSynchronize", 60, 90, cpu),
        _event("aten::mm", 0, 50, cpu),
    ]
    assert shares_of(events, 200) == {"busy": 0.2, "kernels": 2 / STEPS, "host_waits": 0.05}
    assert shares_of([_event("a kernel", 0, 30, gpu)], 20) == {"busy": 1.0, "kernels": 1 / STEPS}


def test_a_cpu_has_no_shares() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert watched.events()
    assert shares_of(watched.events(), 100) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_shares_on_a_gpu() -> None:
    ones = torch.ones(2048, 2048, device="cuda")
    shares = device_shares(lambda: float((ones @ ones).sum()))
    assert 0.05 < shares["busy"] <= 1
    assert 0 < shares["host_waits"] <= 1
    # The product, the sum and the copy at least.
    assert 3 <= shares["kernels"] < 10
