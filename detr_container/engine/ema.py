"""An exponential moving average of a model's weights and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """average = decay * average + (1 - decay) * weights after each step; the first step's weights as they are.

    So does torch's `AveragedModel`; timm's `ModelEma`, which DeiT uses, starts from the weights before the first step.
    After n steps the two differ by decay ** n times what the first step changed.

    module: the averaged model; updates: how many steps it has seen. All tensors of one device and type are updated by
    one kernel, and nothing is copied or waited for.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.updates, self._decay = deepcopy(model), 0, decay
        self.module.requires_grad_(False)
        # Where the tensors stand: walking all modules in each step took longer than the average itself.
        self._mine, self._theirs = _places(self.module), _places(model)

    @torch.no_grad()
    def average(self) -> None:
        """Take in the weights after one more step; whoever calls it counts it in `updates`."""
        pairs = [
            (mine[0][mine[1]], theirs[0][theirs[1]]) for mine, theirs in zip(self._mine, self._theirs, strict=True)
        ]
        averages = [average for average, _ in pairs if average.is_floating_point()]
        weights = [weight for average, weight in pairs if average.is_floating_point()]
        if self.updates:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        else:
            torch._foreach_copy_(averages, weights)
        for average, value in pairs:
            if not average.is_floating_point():
                # Counts, of which nothing is computed; averaged as checkpoints have always had them.
                average.copy_(average * self._decay + value * (1 - self._decay) if self.updates else value)

    def load(self, state: Mapping[str, Any], updates: int) -> None:
        """Take over a checked state."""
        self.module.load_state_dict(state)
        self.updates = updates


def _places(model: nn.Module) -> list[tuple[dict[str, Tensor], str]]:
    """Of each parameter and buffer once, the dictionary of its module that has it and its name there.

    Some modules put another tensor in a buffer's place, when they load or in each step.
    """
    found: dict[int, tuple[dict[str, Tensor], str]] = {}
    for kind in ("_parameters", "_buffers"):
        for module in model.modules():
            for name, tensor in getattr(module, kind).items():
                if tensor is not None:
                    found.setdefault(id(tensor), (getattr(module, kind), name))
    return list(found.values())
