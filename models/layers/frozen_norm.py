"""Batch normalisation whose statistics, scale and shift are fixed: one multiplication and one addition per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """y = x * scale + shift per channel; both are made of the four buffers when these change, not at each call.

    They change by loading and by moving to another device or type. The state dict is torchvision's.
    """

    scale: Tensor
    shift: Tensor
    _narrow: dict[torch.dtype, tuple[Tensor, Tensor]]

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        # Buffers, so that they follow the model to its device; whoever averages or broadcasts buffers does so with all.
        self.register_buffer("scale", torch.empty(num_features), persistent=False)
        self.register_buffer("shift", torch.empty(num_features), persistent=False)
        self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        self.scale = self.weight * (self.running_var + self.eps).rsqrt()
        self.shift = self.bias - self.running_mean * self.scale
        # Not buffers: nobody who averages those should meet several types.
        self._narrow = {}

    def of_type(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift in a type, rounded once."""
        if dtype == self.scale.dtype:
            return self.scale, self.shift
        if dtype not in self._narrow:
            # What is made in inference mode could not be used in training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self._narrow[dtype] = self.scale.to(dtype), self.shift.to(dtype)
        return self._narrow[dtype]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fold()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Anew, since in another type the folded values are not the converted ones.
        self._fold()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        scale, shift = (each[:, None, None] for each in self.of_type(x.dtype))
        return x * scale + shift if x.device.type == "cpu" else torch.addcmul(shift, x, scale)


class FrozenNormAct(FrozenNorm):
    """A frozen norm with timm's `drop` and `act` after it; the state dict is that of timm's frozen norm."""

    def __init__(self, num_features: int, eps: float, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(num_features, eps)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


def freeze_norms(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d below `module` by one whose statistics, scale and shift are fixed.

    Returns `module`, or its replacement when it is itself a BatchNorm2d. What timm has put into one, a dropout and an
    activation, stays.
    """
    if isinstance(module, nn.BatchNorm2d):
        if module.running_mean is None or module.running_var is None or not module.affine:
            raise ValueError("a BatchNorm2d without statistics or scale cannot be frozen: use backbone.norm=batch")
        inside = dict(module.named_children())
        frozen = (FrozenNormAct if inside else FrozenNorm)(module.num_features, eps=module.eps, **inside)
        state = {name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"}
        frozen.load_state_dict(state)
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_norms(child))
    return module
