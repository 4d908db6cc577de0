"""DETR: end-to-end detection with a transformer (Carion et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbones.backbone import Backbone
from .detector import Output, QueryDetector, one_level
from .layers.levels import by_stride
from .layers.mlp import MLP
from .layers.transformer import Decoder, DecoderLayer, initialise


class Detr(QueryDetector):
    """Learned queries attend to the encoded image; each becomes one box with class logits, the last: no object."""

    def __init__(
        self,
        backbone: Backbone,
        logits: int,
        queries: int = 100,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        position: str = "sine",
        auxiliary: bool = True,
    ) -> None:
        """logits: classes plus one for no object; auxiliary: predict from every decoder layer, not only the last."""
        super().__init__(
            one_level(backbone, "DETR"), width, heads, encoder_layers, feedforward, dropout, pre_norm, position
        )
        layers = [DecoderLayer(width, heads, feedforward, dropout, pre_norm) for _ in range(decoder_layers)]
        self.decoder = Decoder(layers, width)
        self.query_embed = nn.Embedding(queries, width)
        self.class_embed = nn.Linear(width, logits)
        self.bbox_embed = MLP(width, width, 4, 3)
        self.auxiliary = auxiliary
        initialise(self.encoder)
        initialise(self.decoder)
        self.input_proj = nn.Conv2d(backbone.channels[-1], width, 1)

    def forward(self, images: Tensor, sizes: Tensor, padded: bool = True, attention_maps: bool = False) -> Output:
        """As `QueryDetector.forward`."""
        memory = self.encode(images, sizes, padded)
        decoded = self.decoder(self.query_embed.weight, memory.tokens, memory.position, memory.bias, attention_maps)
        states = decoded.states if self.auxiliary else decoded.states[-1:]
        # bfloat16 has a spacing of 0.004 near 1: boxes would collapse.
        with torch.autocast(images.device.type, enabled=False):
            states = states.float()
            output = Output(self.class_embed(states), self.bbox_embed(states).sigmoid())
        if decoded.attention is not None:
            output.attention = by_stride(memory.levels, decoded.attention)
        return output
