"""A way round a convolution that writes beyond its memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

NARROW = 16
"""Input channels below which oneDNN's 1 x 1 convolutions with a stride are not trusted: one vector of AVX-512. With 2
to 15 the gradient was seen to write up to 8 KB beyond its scratch memory (PyTorch 2.14), with 16 and more never."""


def unsafe(module: nn.Module) -> bool:
    """Whether a CPU's gradient of this layer can write beyond its memory when tensors lie with channels last."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.padding in ((0, 0), "valid", "same")
        and module.in_channels < NARROW
    )


def subsample_first(model: nn.Module) -> nn.Module:
    """Let every unsafe convolution in `model` take each stride-th pixel first, then go on without a stride.

    The values are the same: a 1 x 1 kernel never looks at the pixels between. Returns `model`.
    """
    for module in model.modules():
        if unsafe(module):
            assert isinstance(module, nn.Conv2d)
            module.register_forward_pre_hook(_Subsample(*module.stride))
            module.stride = (1, 1)
    return model


class _Subsample:
    """A hook before a convolution."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        images: Tensor = arguments[0]
        return (images[..., :: self.rows, :: self.columns], *arguments[1:])
