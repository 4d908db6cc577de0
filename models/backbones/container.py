"""CONTAINER-LIGHT, a context aggregation network (Gao et al. 2021), as its authors released it.

Four stages at strides 4, 8, 16 and 32. Every block adds to x, in turn: a 3 x 3 depthwise convolution that encodes
position, an aggregation of context between two 1 x 1 convolutions, and an MLP. Stages 1 to 3 aggregate with a static
affinity, the last one mixes it with self-attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..layers.context_aggregation import MixedAggregation, StaticAggregation
from ..layers.depthwise import Depthwise
from ..layers.frozen_norm import FrozenNorm, freeze_norms
from ..layers.pointwise import PatchEmbed, Pointwise
from .backbone import Backbone


@dataclass(frozen=True)
class Size:
    """Channels, blocks and MLP ratio of each stage; attention heads of the last one.

    The first stage has stride 4, and each further one doubles it.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]
    heads: int

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each stage's feature map, in pixels."""
        return tuple(4 << stage for stage in range(len(self.channels)))


SIZES = {
    "container_light": Size((64, 128, 320, 512), (3, 4, 8, 3), (8, 8, 4, 4), heads=16),
    # Ours, not the paper's: for small images, a CPU and debugging. Three stages, so that features have stride 16.
    "container_light_small": Size((32, 64, 128), (1, 1, 2), (4, 4, 4), heads=4),
    "container_light_tiny": Size((16, 32, 64), (1, 1, 1), (2, 2, 2), heads=2),
}


class Block(nn.Module):
    """x += position(x); x += aggregation between 1 x 1 convolutions; x += MLP, the last two with stochastic depth."""

    def __init__(
        self, channels: int, ratio: int, aggregation: StaticAggregation | MixedAggregation, drop: float
    ) -> None:
        super().__init__()
        self.position = Depthwise(channels, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = Pointwise(channels, aggregation.expansion * channels)
        self.aggregation = aggregation
        self.conv2 = Pointwise(channels, channels)
        self.mlp = nn.Sequential(
            Pointwise(channels, ratio * channels), nn.GELU(), Pointwise(ratio * channels, channels)
        )
        self.drop_path = StochasticDepth(drop, "row") if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        x = self.position(x, residual=True)
        x = x + self.drop_path(self.conv2(self.aggregation(self.conv1(x, self.norm1))))
        inner, act, outer = self.mlp
        return x + self.drop_path(outer(act(inner(x, self.norm2))))


class ContainerLight(Backbone):
    """The stages of CONTAINER-LIGHT, for images of any size."""

    # With channels last, a CPU takes half as long again for the gradients of the depthwise convolutions.
    memory_format = torch.contiguous_format

    def __init__(
        self, size: Size, outputs: int | None = None, frozen_norm: bool = False, drop_path: float = 0.0
    ) -> None:
        """Build the first `outputs` stages (default: all) with fixed or trained BatchNorm.

        drop_path: the drop probability of the whole network's last block, rising linearly from 0 at the first.
        """
        channels = size.channels[:outputs]
        strides = size.strides[:outputs]
        # The strided convolutions floor, so the map covers the image only if the stride divides its sides.
        super().__init__(channels, strides, size_multiple=strides[-1])
        drops = torch.linspace(0, drop_path, sum(size.depths)).tolist()
        self.embeds, self.blocks = nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for stage, width in enumerate(channels):
            self.embeds.append(PatchEmbed(inputs, width, 2 if stage else 4))
            mixes = stage == len(size.channels) - 1
            blocks = []
            for _ in range(size.depths[stage]):
                aggregation = MixedAggregation(width, size.heads) if mixes else StaticAggregation(width)
                blocks.append(Block(width, size.ratios[stage], aggregation, drops.pop(0)))
            self.blocks.append(nn.Sequential(*blocks))
            inputs = width
        if frozen_norm:
            freeze_norms(self)

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """stage1, stage2, ..., each with the patch embedding before it."""
        pairs = zip(self.embeds, self.blocks, strict=True)
        return [(f"stage{index}", [embed, blocks]) for index, (embed, blocks) in enumerate(pairs, start=1)]

    def own_precision(self) -> list[nn.Module]:
        """The convolutions into which frozen norms are folded, which casts their kernels."""
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        pairs = [pair for each in blocks for pair in ((each.norm1, each.conv1), (each.norm2, each.mlp[0]))]
        return [conv for norm, conv in pairs if isinstance(norm, FrozenNorm)]

    def every_map(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to one map per stage, of strides 4, 8, 16, ..."""
        maps, x = [], images
        for embed, blocks in zip(self.embeds, self.blocks, strict=True):
            x = blocks(embed(x))
            maps.append(x)
        return maps
