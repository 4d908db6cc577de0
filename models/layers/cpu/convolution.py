"""The gradient of a convolution with respect to its kernel, by the way that is fastest on a CPU.

With channels last it is faster at everything but this, which took it a third longer than here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_gradient(gradient: Tensor, x: Tensor, kernel: Tensor, geometry: tuple[list[int], ...]) -> Tensor:
    """[outputs, inputs, rows, columns]; geometry: stride, padding and dilation; of one group."""
    if kernel.shape[2:] == (1, 1):
        stride = geometry[0][0]
        rows = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).flatten(0, 2)
        return (gradient.permute(0, 2, 3, 1).flatten(0, 2).t() @ rows)[:, :, None, None]
    # Of the kernel only the shape and the layout are asked for.
    shaped = torch.empty(kernel.shape, dtype=x.dtype)
    return torch.ops.aten.convolution_backward(
        gradient.contiguous(), x.contiguous(), shaped, None, *geometry, False, [0, 0], 1, [False, True, False]
    )[1]
