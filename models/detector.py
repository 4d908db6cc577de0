"""What detectors share: images to what a backbone takes; those with queries, to encoded feature levels.

Shapes: B images, h x w positions of a level, S of all levels, C width, D decoder layers, Q queries, K logits,
A attention heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .backbones.backbone import Backbone
from .layers.folded_bias import FoldedBias
from .layers.levels import Level, bias_of, positions_of, tokens_of
from .layers.position_encoding import LearnedPosition, SinePosition, extent
from .layers.transformer import DecoderLayer, Encoder, EncoderLayer

POSITIONS = {"sine": SinePosition, "learned": LearnedPosition}


@dataclass
class Output:
    """What a detector predicts for a batch, in float32.

    logits: [D, B, Q, K]; boxes: [D, B, Q, 4] cxcywh in [0, 1] of the unpadded image, decoder layers in order.
    On request, for each level under its stride, finest first: attention: [D, B, A, Q, h, w] weights of the decoder's
    cross-attention, which sum to 1 over all levels; gaussians: [D, B, A, Q, h, w] SMCA's prior, with its peaks at 1.
    """

    logits: Tensor
    boxes: Tensor
    attention: dict[int, Tensor] | None = None
    gaussians: dict[int, Tensor] | None = None


@dataclass
class Memory:
    """Encoded tokens and their positions [B, S, C]; bias: of `bias_of`; levels: as encoded."""

    tokens: Tensor
    position: Tensor
    bias: Tensor | FoldedBias | None
    levels: list[Level]


class Detector(nn.Module, ABC):
    """What has a backbone and detects objects in images of any size.

    strides: of the levels that its head reads, finest first.
    """

    backbone: Backbone
    strides: tuple[int, ...]
    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(self, backbone: Backbone) -> None:
        """backbone: whose input normalisation it is; a subclass keeps it."""
        super().__init__()
        # Not in the state dict: they belong to the backbone. Buffers, so that they are on the device already.
        self.register_buffer("pixel_mean", torch.tensor(backbone.mean).mul(255)[:, None, None], persistent=False)
        self.register_buffer(
            "pixel_scale", torch.tensor(backbone.std).mul(255).reciprocal()[:, None, None], persistent=False
        )

    @property
    def size_multiple(self) -> int:
        """What the sides of images are padded to a multiple of, in pixels."""
        return self.backbone.size_multiple

    def beside_backbone(self) -> list[nn.Module]:
        """What trains at the backbone's learning rate without being a part of it."""
        return []

    def normalise(self, images: Tensor, sizes: Tensor, padded: bool) -> Tensor:
        """[B, 3, H, W] uint8 to float32 as the backbone wants it, with zeros on padding; floats pass through."""
        if images.is_floating_point():
            return images
        pixels = (images - self.pixel_mean).mul_(self.pixel_scale)
        if padded:
            height, width = images.shape[-2:]
            rows = torch.arange(height, device=images.device) < sizes[:, :1]
            columns = torch.arange(width, device=images.device) < sizes[:, 1:]
            pixels.mul_((rows[:, :, None] & columns[:, None, :])[:, None])
        return pixels.contiguous(memory_format=self.backbone.memory_format)

    def checkpointed(self, which: Literal["backbone", "all"]) -> list[nn.Module]:
        """The parts whose activations are made again for the gradient: `all` adds those beyond the backbone."""
        del which
        return self.backbone.checkpointed()


class QueryDetector(Detector):
    """Backbone, projection to the transformer's width, positions and encoder.

    strides: of the levels that the head reads, finest first; what the backbone gives, unless a subclass makes more in
    `project`. Subclasses make `class_embed` and `bbox_embed`, which get float32 with autocast off, and `input_proj`;
    they make that last: of all that is random only its shape depends on the backbone, so the same seed gives the rest
    the same start over every backbone.
    """

    input_proj: nn.Module
    class_embed: nn.Module
    bbox_embed: nn.Module

    def __init__(
        self,
        backbone: Backbone,
        width: int,
        heads: int,
        encoder_layers: int,
        feedforward: int,
        dropout: float,
        pre_norm: bool,
        position: str,
    ) -> None:
        super().__init__(backbone)
        if len(set(backbone.strides)) < len(backbone.strides):
            raise ValueError(
                f"feature levels of the strides {backbone.strides}: the stride tells them apart, so ask for one "
                "of each (backbone.at_strides)"
            )
        self.backbone, self.strides = backbone, backbone.strides
        self.position, self.head_dimensions = POSITIONS[position](width), width // heads
        layers = [EncoderLayer(width, heads, feedforward, dropout, pre_norm) for _ in range(encoder_layers)]
        self.encoder = Encoder(layers, width, pre_norm)

    def own_precision(self) -> list[nn.Module]:
        """The parts that compute in float32 whatever the precision."""
        return [self.class_embed, self.bbox_embed]

    def beside_backbone(self) -> list[nn.Module]:
        """Learned positions, which the published code makes a part of the backbone."""
        return [self.position]

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        """The backbone's maps to one [B, C, h, w] for each of `strides`; heads of several levels have their own way."""
        (features,) = maps
        return [self.input_proj(features)]

    def levels(self, images: Tensor, sizes: Tensor, padded: bool) -> list[Level]:
        """Images as in `forward` to what the encoder reads."""
        images = self.normalise(images, sizes, padded)
        height, width = images.shape[-2:]
        levels = []
        for stride, features in zip(self.strides, self.project(self.backbone(images)), strict=True):
            rows, columns = features.shape[-2:]
            cover = extent(sizes, (height, width), (rows, columns), padded)
            levels.append(Level(stride, features, cover, self.position(cover).to(features.dtype)))
        return levels

    def encode(self, images: Tensor, sizes: Tensor, padded: bool) -> Memory:
        """Images as in `forward` to the encoder's output; positions of all levels attend to each other."""
        levels = self.levels(images, sizes, padded)
        position, bias = positions_of(levels), bias_of(levels, self.head_dimensions)
        return Memory(self.encoder(tokens_of(levels), position, bias), position, bias, levels)

    def checkpointed(self, which: Literal["backbone", "all"]) -> list[nn.Module]:
        """See `Detector`: `all` is backbone, encoder and decoder."""
        parts = super().checkpointed(which)
        if which == "all":
            parts += [each for each in self.modules() if isinstance(each, EncoderLayer | DecoderLayer)]
        return parts

    @abstractmethod
    def forward(self, images: Tensor, sizes: Tensor, padded: bool = True, attention_maps: bool = False) -> Output:
        """Detect objects.

        images: [B, 3, H, W] uint8, or float32 already normalised, padded at the bottom and the right; sizes: [B, 2]
        int64 true (height, width); padded: False promises that no image is padded; attention_maps: return
        attention and Gaussians as well.
        """


def one_level(backbone: Backbone, head: str) -> Backbone:
    """The backbone of a head that reads one level. Raises ValueError when it gives several."""
    if len(backbone.strides) != 1:
        strides = ", ".join(map(str, backbone.strides))
        raise ValueError(
            f"{head} reads one feature level, and this backbone gives {len(backbone.strides)}, of the strides "
            f"{strides}: ask it for one, as in backbone.at_strides({backbone.strides[-1]})"
        )
    return backbone
