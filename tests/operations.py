"""What a GPU would be asked to do: the operations that reach a device, counted on a CPU.

Where a CPU computes in a way of its own (dropout, attention with dropout, gradients of kernels), what other devices do
is put in its place, so that an operation here stands for one on a GPU. It may be more than one kernel there (a
convolution's gradient is two or three) and a GPU's autocast casts a little more: a measure to compare with, no more.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detr_container.models import smca
from detr_container.models.layers import attention, dropout, folded_convolution, levels

# They compute nothing: they only make room, or look at a tensor in another way.
FREE = (
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "_unsafe_view", "lift_fresh"),
    *("_local_scalar_dense", "promote_types", "_record_function_enter_new", "_record_function_exit"),
)


class Operations(TorchDispatchMode):
    """Counts operations by name, but for views and memory that is not written."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not view and name not in FREE:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.found.values())


def as_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """Let the layers do on a CPU what they do on other devices."""

    def fused_dropout(x: Tensor, p: float) -> Tensor:
        return torch.native_dropout(x, p, True)[0]

    def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float) -> Tensor:
        # Its dropout is within the kernel, which a CPU's has not.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def without_dropout(*arguments: Any, dropout_p: float = 0.0, **named: Any) -> Tensor:
        return attend(*arguments, **named)

    attend = F.scaled_dot_product_attention
    patch.setattr(F, "scaled_dot_product_attention", without_dropout)
    patch.setattr(attention, "dropping_attention", fused_attention)
    for module in (smca, levels):
        patch.setattr(module, "folds", lambda features: features.dtype == torch.bfloat16)
    patch.setattr(dropout, "cpu_dropout", fused_dropout)
    patch.setattr(dropout, "dropped_relu", lambda x, p: F.relu(fused_dropout(x, p)))
    patch.setattr(folded_convolution, "on_cpu", lambda x: False)
