"""What every backbone states about itself, and what is done with it by stage.

A backbone is an ordered list of stages. Freezing, norm policy and learning-rate groups go by stage, so that no
network is frozen in silence because its parameters are called something else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ..activation_checkpointing import blocks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module, ABC):
    """A network that turns normalised images into feature maps.

    channels, strides: of each feature map that it gives, finest first; at first all that were built, see `at_strides`;
    mean, std: the input normalisation, for pixels in [0, 1];
    size_multiple: images are padded to a multiple of this many pixels.
    side: the one side in pixels that its square images can have, 0 for any size.
    memory_format: how feature maps lie in memory, whichever computes faster.
    """

    memory_format = torch.channels_last
    side = 0

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        size_multiple: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.channels, self.strides, self.size_multiple = tuple(channels), tuple(strides), size_multiple
        self.mean, self.std = tuple(mean), tuple(std)
        self.frozen_stages = 0
        self._given = tuple(range(len(self.strides)))

    @abstractmethod
    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """Name and modules of every stage, in the order of computation; together they hold every parameter."""

    @abstractmethod
    def every_map(self, images: Tensor) -> list[Tensor]:
        """What `forward` chooses from: the maps of all strides that were built."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] normalised images to one [B, channels, H / stride, W / stride] map per stride."""
        maps = self.every_map(images)
        return [maps[place] for place in self._given]

    def at_strides(self, *strides: int) -> Self:
        """Give the feature maps of these strides only, the deepest of each, in ascending order.

        Raises ValueError for a stride that there is no map of, for another order, and when the deepest map is not among
        them: what makes it would be computed in vain and never be trained.
        """
        asked, offered = (", ".join(map(str, each)) for each in (strides, dict.fromkeys(self.strides)))
        if not strides or not set(strides) <= set(self.strides) or list(strides) != sorted(set(strides)):
            raise ValueError(
                f"feature levels of the strides {asked or 'none'}: this backbone has {offered}; name some of these "
                "once, in ascending order"
            )
        if self.strides[-1] not in strides:
            raise ValueError(
                f"feature levels of the strides {asked}: this backbone was built up to a map of stride "
                f"{self.strides[-1]}, which nothing would read; build it up to one of stride {strides[-1]}"
            )
        places = [len(self.strides) - 1 - self.strides[::-1].index(stride) for stride in strides]
        self._given = tuple(self._given[place] for place in places)
        self.channels = tuple(self.channels[place] for place in places)
        self.strides = tuple(strides)
        return self

    def freeze(self, stages: int) -> Self:
        """Keep the weights and statistics of the first `stages` stages as they are."""
        names = [name for name, _ in self.stages()]
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
        for _, modules in self.stages()[: self.frozen_stages]:
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


def maps_up_to(name: str, strides: Sequence[int], stage: int = -1, stride: int = 0) -> int:
    """How many of a backbone's feature maps to compute so that the one that the head reads is the last.

    name: the backbone's; strides: of all its maps, finest first; stage: which one, counted from the end; stride: the
    deepest of this stride instead, 0 for the one that `stage` says. Raises ValueError when there is none.
    """
    if stride:
        found = [count for count, each in enumerate(strides, start=1) if each == stride]
        if not found:
            offered = ", ".join(map(str, dict.fromkeys(strides)))
            raise ValueError(f"backbone.stride={stride}: {name} has feature maps of the strides {offered}")
        return found[-1]
    count = len(strides)
    if not -count <= stage <= -1:
        raise ValueError(f"backbone.stage={stage}: {name} has {count} feature maps, from -{count} to -1")
    return count + 1 + stage
