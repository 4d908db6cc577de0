"""Layer normalisation that keeps bfloat16 (Ba et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """As `nn.LayerNorm`, but what comes in bfloat16 leaves in bfloat16.

    Autocast would compute in float32 and so make everything after it wider: what is added to it, and the casts back.
    Mean and variance are float32 within the kernel in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in `normalized_shape` to the same."""
        with torch.autocast(x.device.type, enabled=False):
            # Kernels of GPUs want one type of all.
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def float32_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A norm with a float32 result (or wider), whatever it is given and whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = norm(x.to(torch.promote_types(x.dtype, torch.float32)))
        return y
