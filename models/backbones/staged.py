"""A network as an ordered list of stages.

Freezing, norm policy and learning-rate groups go by stage, so that no network is frozen in silence because its
parameters are called something else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

from torch import nn

from ..activation_checkpointing import blocks


class Staged(nn.Module, ABC):
    """A network that is a list of stages, of which the first may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen_stages = 0

    @abstractmethod
    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """Name and modules of every stage, in the order of computation; together they hold every parameter."""

    def freeze(self, stages: int) -> Self:
        """Keep the weights and statistics of the first `stages` stages as they are."""
        names = [name for name, _ in self.stages()] if stages else []
        if not 0 <= stages <= len(names):
            raise ValueError(
                f"frozen_stages={stages}, but this backbone has {len(names)} stages ({', '.join(names)}): "
                f"set backbone.frozen_stages to 0 .. {len(names)}"
            )
        self.frozen_stages = stages
        for module in self._frozen():
            module.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, except that frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> Iterator[nn.Module]:
        # Some networks must be examined for their stages.
        for _, modules in self.stages()[: self.frozen_stages] if self.frozen_stages else []:
            yield from modules

    def checkpointed(self) -> list[nn.Module]:
        """The parts of the stages that train whose activations can be made again for the gradient, one by one."""
        training = self.stages()[self.frozen_stages :]
        return [part for _, modules in training for part in blocks(nn.ModuleList(modules))]

    def count_parameters(self) -> list[tuple[str, int, int]]:
        """(stage, trained, frozen) numbers of parameters."""
        rows, counted = [], set[int]()
        for name, modules in self.stages():
            held = {id(parameter): parameter for module in modules for parameter in module.parameters()}
            # One that stages share belongs to the first.
            parameters = [parameter for number, parameter in held.items() if number not in counted]
            counted |= held.keys()
            trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
            rows.append((name, trained, sum(parameter.numel() for parameter in parameters) - trained))
        return rows


def stages_of(root: nn.Module, ends: Sequence[str]) -> list[tuple[str, list[nn.Module]]]:
    """A network's modules in order, cut after each of `ends` (paths with `_` for dots); what is left is `rest`."""
    stages: list[tuple[str, list[nn.Module]]] = []
    modules: list[nn.Module] = []
    for name, module in _pieces(root, "", ends):
        modules.append(module)
        if name in ends:
            stages.append((name, modules))
            modules = []
    if modules:
        stages.append(("rest", modules))
    return stages


def _pieces(module: nn.Module, prefix: str, ends: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every part, as small as needed for each of `ends` to be the end of one."""
    own = list(module.parameters(recurse=False))
    if own:
        yield f"{prefix}own", nn.ParameterList(own)
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if path not in ends and any(end.startswith(f"{path}_") for end in ends):
            yield from _pieces(child, f"{path}_", ends)
        else:
            yield path, child
