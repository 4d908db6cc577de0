"""Dropout, and of a ReLU's output: on a CPU by our own kernels, elsewhere by torch's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .cpu.dropout import dropout as cpu_dropout
from .cpu.dropout import dropped_relu


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element of `x` with probability `p` and scale the others by 1 / (1 - p)."""
    return cpu_dropout(x, p) if x.device.type == "cpu" else F.dropout(x, p)


class Dropout(nn.Module):
    """`dropout` in training, nothing in evaluation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return dropout(x, self.p) if self.training and self.p else x


class DroppedReLU(Dropout):
    """Dropout of a ReLU's output."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        if self.training and self.p and x.device.type == "cpu":
            return dropped_relu(x, self.p)
        # ReLU and dropout commute; ReLU's output is what the next layer keeps for its gradient.
        return F.relu(super().forward(x))
