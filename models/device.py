"""Host numbers on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    values: Sequence[float] | Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Host numbers as a tensor on `device`, without waiting for the copy."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
