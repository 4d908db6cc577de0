"""A small head that reads several feature levels, through what every detector shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_container.models.backbones.backbone import Backbone
from detr_container.models.detector import Output, QueryDetector
from detr_container.models.layers.levels import by_stride
from detr_container.models.layers.mlp import MLP
from detr_container.models.layers.transformer import Decoder, DecoderLayer

WIDTH, HEADS, QUERIES, LAYERS = 16, 2, 5, 2


class ManyLevels(QueryDetector):
    """DETR over all levels of a backbone, each with its own projection, and one level more if asked for."""

    def __init__(self, backbone: Backbone, logits: int, more: bool = False) -> None:
        """more: a level of twice the last stride, made of the last map."""
        super().__init__(backbone, WIDTH, HEADS, 1, 32, 0.0, False, "sine")
        self.more = more
        if more:
            self.strides = (*self.strides, 2 * self.strides[-1])
        self.decoder = Decoder([DecoderLayer(WIDTH, HEADS, 32, 0.0) for _ in range(LAYERS)], WIDTH)
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, logits), MLP(WIDTH, WIDTH, 4, 2)
        self.input_proj = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in backbone.channels)

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [layer(features) for layer, features in zip(self.input_proj, maps, strict=True)]
        return [*levels, *([F.max_pool2d(levels[-1], 2, ceil_mode=True)] if self.more else [])]

    def forward(self, images: Tensor, sizes: Tensor, padded: bool = True, attention_maps: bool = False) -> Output:
        memory = self.encode(images, sizes, padded)
        decoded = self.decoder(self.query_embed.weight, memory.tokens, memory.position, memory.bias, attention_maps)
        with torch.autocast(images.device.type, enabled=False):
            states = decoded.states.float()
            output = Output(self.class_embed(states), self.bbox_embed(states).sigmoid())
        if decoded.attention is not None:
            output.attention = by_stride(memory.levels, decoded.attention)
        return output
