"""What DETR and SMCA-DETR share: pictures to encoded cells, and what a detector returns.

Shapes: B pictures, S = h x w cells, C width, D decoder layers, Q queries, K logits, A attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .backbones.backbone import Backbone
from .layers.position_encoding import Extent, LearnedPosition, SinePosition, extent
from .layers.transformer import Encoder, EncoderLayer

POSITIONS = {"sine": SinePosition, "learned": LearnedPosition}


@dataclass
class Output:
    """What a detector says of a batch, in float32.

    logits: [D, B, Q, K]; boxes: [D, B, Q, 4] cxcywh in [0, 1] of the unpadded picture, decoder layers in order.
    attention: [D, B, A, Q, h, w] weights of the decoder's cross-attention, on request; gaussians: [D, B, A, Q, h, w]
    SMCA's prior, each with its peak at 1, on request.
    """

    logits: Tensor
    boxes: Tensor
    attention: Tensor | None = None
    gaussians: Tensor | None = None


@dataclass
class Memory:
    """Encoded cells: tokens and position [B, S, C], bias [B, 1, 1, S] (-inf on padding) or None, and their extent."""

    tokens: Tensor
    position: Tensor
    bias: Tensor | None
    cover: Extent


class Detector(nn.Module):
    """Backbone, projection to the transformer's width, positions and encoder.

    Subclasses make `input_proj`, and make it last: of all that is random only its shape depends on the backbone, so
    the same seed gives the rest the same start over every backbone.
    """

    input_proj: nn.Conv2d
    pixel_mean: Tensor
    pixel_scale: Tensor

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
        super().__init__()
        self.backbone = backbone
        self.position = POSITIONS[position](width)
        layers = [EncoderLayer(width, heads, feedforward, dropout, pre_norm) for _ in range(encoder_layers)]
        self.encoder = Encoder(layers, width, pre_norm)
        # Not in the state dict: they belong to the backbone. Buffers, so that they are on the device already.
        self.register_buffer("pixel_mean", torch.tensor(backbone.mean).mul(255)[:, None, None], persistent=False)
        self.register_buffer(
            "pixel_scale", torch.tensor(backbone.std).mul(255).reciprocal()[:, None, None], persistent=False
        )

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

    def encode(self, images: Tensor, sizes: Tensor, padded: bool) -> Memory:
        """Pictures as in `forward` to the encoder's output."""
        images = self.normalise(images, sizes, padded)
        features = self.input_proj(self.backbone(images)[-1])
        (pixels_y, pixels_x), (cells_y, cells_x) = images.shape[-2:], features.shape[-2:]
        cover = extent(sizes, (pixels_y, pixels_x), (cells_y, cells_x), padded)
        tokens = features.flatten(2).transpose(1, 2)
        bias = None
        if padded:
            allowed = torch.zeros_like(cover.padding(), dtype=tokens.dtype)
            bias = allowed.masked_fill_(cover.padding(), -torch.inf)[:, None, None]
        position = self.position(cover).to(tokens.dtype)
        return Memory(self.encoder(tokens, position, bias), position, bias, cover)

    def forward(self, images: Tensor, sizes: Tensor, padded: bool = True, maps: bool = False) -> Output:
        """Detect objects.

        images: [B, 3, H, W] uint8, or float32 already normalised, padded at the bottom and the right; sizes: [B, 2]
        int64 true (height, width); padded: False promises that no picture is padded; maps: return attention as well.
        """
        raise NotImplementedError
