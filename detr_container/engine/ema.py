"""An exponential moving average of a model's weights and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """average = decay * average + (1 - decay) * weights after each step; the first step's weights as they are.

    module: the averaged model; updates: how many steps it has seen. All tensors of one device and type are updated by
    one kernel, and nothing is copied or waited for.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.updates, self._decay = deepcopy(model), 0, decay
        self.module.requires_grad_(False)

    @torch.no_grad()
    def average(self, model: nn.Module) -> None:
        """Take in the weights after one more step; whoever calls it counts it in `updates`."""
        mine, theirs = _tensors(self.module), _tensors(model)
        floats = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
        rest = [(a, b) for a, b in zip(mine, theirs, strict=True) if not a.is_floating_point()]
        averages, weights = [a for a, _ in floats], [b for _, b in floats]
        if self.updates:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        else:
            torch._foreach_copy_(averages, weights)
        for average, value in rest:
            # Counts, of which nothing is computed; averaged as checkpoints have always had them.
            average.copy_(average * self._decay + value * (1 - self._decay) if self.updates else value)

    def load(self, state: Mapping[str, Any], updates: int) -> None:
        """Take over a checked state."""
        self.module.load_state_dict(state)
        self.updates = updates


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
