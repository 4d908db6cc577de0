"""What every backbone states about itself, and which of its feature maps it gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from .staged import Staged

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(Staged):
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
        self._given = tuple(range(len(self.strides)))

    @abstractmethod
    def every_map(self, images: Tensor) -> list[Tensor]:
        """What `forward` chooses from: the maps of all strides that were built."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] normalised images to one [B, channels, H / stride, W / stride] map per stride."""
        maps = self.every_map(images)
        return [maps[place] for place in self._given]

    def pooled(self, images: Tensor) -> Tensor | None:
        """[B, 3, H, W] to the [B, C] feature of the whole image that the network has of its own (of a class token).

        None, at no cost, where it has none: a classifier then takes the mean of the last map over its positions.
        """
        del images
        return None

    def no_weight_decay(self) -> set[str]:
        """Names of parameters of two dimensions or more that a classifier's weight decay does not act on."""
        return set()

    def fitted(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Weights from a file, under this network's names, where they depend on the size of the images: for its own.

        source: the file, in words. Raises ValueError where they cannot be made so.
        """
        del source
        return dict(state)

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
