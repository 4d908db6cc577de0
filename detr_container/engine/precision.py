"""The precision in which a model computes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where that is asked for; boxes, matching and losses leave it by themselves."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
