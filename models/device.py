"""Between the host and a device, waiting only where somebody says so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    values: Sequence[float] | Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Host numbers as a tensor on `device`, without waiting for the copy."""
    return sent(torch.tensor(values, dtype=dtype), device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, without waiting for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Fetched:
    """A tensor of a device on its way to the host; on a CPU it is there, and is not copied."""

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy, into page-locked memory."""
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> Tensor:
        """The tensor on the host, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
