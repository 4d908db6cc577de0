"""Batch normalisation with the statistics of all processes together.

On a GPU the computation is that of `nn.SyncBatchNorm`, which takes no tensors of a CPU; for those the same is computed
here. Within one process, and in evaluation mode, it is `nn.BatchNorm2d`, whose state dict it always has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm


class SyncNorm(nn.BatchNorm2d):
    """As `nn.BatchNorm2d` on the batches of all processes, of any sizes, joined.

    All processes call it equally often in training, and go backward through it equally often.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        if not self.training or not several_processes():
            return super().forward(x)
        if self.momentum is None or self.running_mean is None or self.running_var is None or not self.affine:
            raise ValueError("a norm without scale, statistics or momentum cannot be shared: use backbone.norm=batch")
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if x.device.type == "cuda":
            group = dist.group.WORLD
            statistics = self.running_mean, self.running_var, self.eps, self.momentum
            on_gpu: Tensor = SyncBatchNorm.apply(
                x, self.weight, self.bias, *statistics, group, dist.get_world_size(group)
            )
            return on_gpu
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        # The number of values beside their sums, since it is not the same in all processes.
        own = wide.new_full((1,), x.numel() // x.shape[1])
        sums = _summed(torch.cat((wide.sum((0, 2, 3)), own)))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # About the mean, once it is known: a difference of squares would round away small variances.
        centred = wide - mean[:, None, None]
        variance = _summed(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncNormAct(SyncNorm):
    """A shared norm with timm's `drop` and `act` after it; the state dict is that of timm's norm."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


class _Sum(torch.autograd.Function):
    """The sum of all processes' tensors. That of torch.distributed.nn is deprecated, and says so to whoever trains."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Each process's loss depends on every process's tensor.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _summed(own: Tensor) -> Tensor:
    """The sum over processes, and gradients of it."""
    total: Tensor = _Sum.apply(own)
    return total


def several_processes() -> bool:
    """Whether this one trains with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share_norms(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d below `module` by one that shares its statistics, with the same tensors.

    Returns `module`, or its replacement when it is itself a BatchNorm2d. What timm has put into one, a dropout and an
    activation, stays.
    """
    if isinstance(module, nn.BatchNorm2d):
        inside = dict(module.named_children())
        shared = (SyncNormAct if inside else SyncNorm)(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        for held in ("_parameters", "_buffers", "_modules"):
            setattr(shared, held, getattr(module, held))
        shared.training = module.training
        return shared
    for name, child in module.named_children():
        setattr(module, name, share_norms(child))
    return module
