"""The hierarchical networks of the CONTAINER family (Gao et al. 2021), CONTAINER-LIGHT as its authors released it.

Every block adds to x, in turn: a 3 x 3 depthwise convolution that encodes position, an aggregation of context between
two 1 x 1 convolutions, and an MLP. Networks differ in the affinities by which their stages aggregate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..layers.context_aggregation import (
    CONTAINER,
    CONTAINER_LIGHT,
    DEPTHWISE,
    MH_DW,
    SELF_ATTENTION,
    Affinities,
    ContextAggregation,
)
from ..layers.depthwise import Depthwise
from ..layers.frozen_norm import FrozenNorm, freeze_norms
from ..layers.pointwise import PatchEmbed, Pointwise
from .backbone import Backbone


@dataclass(frozen=True)
class Size:
    """Channels, blocks, MLP ratio and affinities of each stage; head: channels of a head (a stage of fewer has one).

    The first stage has stride 4, and each further one doubles it.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]
    affinities: tuple[Affinities, ...]
    head: int = 32

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each stage's feature map, in pixels."""
        return tuple(4 << stage for stage in range(len(self.channels)))

    def heads(self, stage: int) -> int:
        """How many heads a stage has."""
        return max(self.channels[stage] // self.head, 1)

    def of(self, affinities: Affinities) -> Size:
        """The same network with these affinities in all stages."""
        return replace(self, affinities=(affinities,) * len(self.channels))


_THREE = (DEPTHWISE, DEPTHWISE, CONTAINER_LIGHT)
# Ours, not the paper's: for small images, a CPU and debugging. Three stages, so that features have stride 16.
_SMALL = Size((32, 64, 128), (1, 1, 2), (4, 4, 4), _THREE)
_TINY = Size((16, 32, 64), (1, 1, 1), (2, 2, 2), _THREE)
# Channels and depths are those of the paper's text for CONTAINER, the rest is open there. MLP ratios, position kernels
# (3 x 3), windows (5 x 5) and channels of a head are the released network's: CONTAINER then has 22.6 M parameters with
# a classifier of 1000 (published: 22 M), and 7.7 billion multiply-adds in its convolutions at 224 pixels. The published
# 8.1 GFLOPs are near that; the products of its N x N affinities, most of them in the first stage, come on top.
_PAPER = Size((128, 256, 320, 512), (2, 3, 8, 2), (8, 8, 4, 4), (CONTAINER,) * 4)

SIZES = {
    "container_light": Size((64, 128, 320, 512), (3, 4, 8, 3), (8, 8, 4, 4), (DEPTHWISE, *_THREE)),
    "container_light_small": _SMALL,
    "container_light_tiny": _TINY,
    **{
        name + ending: size.of(affinities)
        for name, affinities in (("container", CONTAINER), ("mh_dw", MH_DW), ("self_attention", SELF_ATTENTION))
        for ending, size in (("", _PAPER), ("_small", _SMALL), ("_tiny", _TINY))
    },
}
"""`mh_dw` and `self_attention`, whose sizes were not published, differ from `container` in their affinities alone."""


class Block(nn.Module):
    """x += position(x); x += aggregation between 1 x 1 convolutions; x += MLP, the last two with stochastic depth."""

    def __init__(self, channels: int, ratio: int, aggregation: ContextAggregation, drop: float) -> None:
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


class Container(Backbone):
    """The stages of one of these networks, for images of any size."""

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
            blocks = []
            for _ in range(size.depths[stage]):
                aggregation = ContextAggregation(width, size.affinities[stage], size.heads(stage))
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
