"""The learning rate of the DeiT recipe: one for each epoch, by timm's cosine schedule."""

from __future__ import annotations

from functools import lru_cache

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from detr_container.config.classification import ClassificationTrainConfig


def epoch_rate(epoch: int, train: ClassificationTrainConfig) -> float:
    """The learning rate of an epoch from 0.

    As published, epoch e runs at the schedule's rate for e - 1, and the cosine counts from the run's beginning, not
    from the end of warm-up; neither warm-up's start nor the floor grow with the batch.
    """
    return _scheduled(max(0, epoch - 1), train.peak, train.epochs, train.warmup_epochs, train.warmup_lr, train.min_lr)


@lru_cache(maxsize=16)
def _scheduled(at: int, peak: float, epochs: int, warmup: int, start: float, floor: float) -> float:
    """The rate of timm's schedule at an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = CosineLRScheduler(optimizer, epochs, lr_min=floor, warmup_t=warmup, warmup_lr_init=start, cycle_limit=1)
    schedule.step(at)
    return float(optimizer.param_groups[0]["lr"])
