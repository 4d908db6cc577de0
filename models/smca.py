"""SMCA-DETR: fast convergence of DETR with spatially modulated co-attention (Gao et al. 2021), single scale.

Every query proposes where it looks: a reference point, and per head an offset and the widths of a Gaussian whose
logarithm is added to the logits of the cross-attention.
Shapes: B images, L queries, C width, A heads, h x w positions of stride s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from .backbones.backbone import Backbone
from .detector import Memory, Output, QueryDetector, one_level
from .layers.folded_bias import FoldedBias, folds
from .layers.folded_gaussian import LONGEST, Places, places
from .layers.layer_norm import float32_norm
from .layers.levels import Level, by_stride
from .layers.mlp import MLP
from .layers.position_encoding import Extent
from .layers.transformer import DecoderLayer, initialise

# How many scales each head has, by type: none, one, one per axis, and one more for the product of both axes.
SCALES = {"type1": 0, "type2": 1, "type3": 2, "type4": 3}
# Focal loss starts stable when every class has probability 0.01 (Lin et al. 2017, section 4.1).
PRIOR_BIAS = -math.log((1 - 0.01) / 0.01)


class GaussianPrior(nn.Module):
    """The spatial prior of one decoder layer."""

    def __init__(self, width: int, heads: int, gaussian: str, smooth: float) -> None:
        super().__init__()
        self.heads, self.smooth, self.scales = heads, smooth, SCALES[gaussian]
        self.norm = nn.LayerNorm(width)
        self.offset = nn.Linear(width, 2 * heads)
        if self.scales:
            self.scale = nn.Linear(width, self.scales * heads)

    def start_isotropic(self) -> None:
        """Every Gaussian starts with scale 1, whatever the query."""
        if self.scales:
            nn.init.zeros_(self.scale.weight)
            nn.init.ones_(self.scale.bias)

    def forward(self, query: Tensor, centre: Tensor, cover: Extent) -> Tensor:
        """The logarithm of the Gaussians, [B, A, L, h * w] float32, at most 0 and 0 at their centres.

        query: [B, L, C] after the norm; centre: [B, L, 2] reference points (x, y) in positions of the feature map.
        The scales multiply squared distances: they are inverse variances.
        """
        with torch.autocast(query.device.type, enabled=False):
            x, y, scale = self._shape(query, centre)
            dx = (x[..., None] - torch.arange(cover.width, device=query.device)).square()
            dy = (y[..., None] - torch.arange(cover.height, device=query.device)).square()
            # Each axis has its own term, so the full [h, w] grid is touched once, to add the two.
            dx, dy = dx * (-1 / self.smooth), dy * (-1 / self.smooth)
            if scale is None:
                return (dy[..., :, None] + dx[..., None, :]).flatten(-2)
            along_x, along_y = dx * scale[..., :1], dy * scale[..., (0 if self.scales == 1 else 1), None]
            prior = along_y[..., :, None] + along_x[..., None, :]
            if self.scales == 3:
                prior = prior - (dy * (scale[..., 2:] * self.smooth))[..., :, None] * dx[..., None, :]
            return prior.flatten(-2)

    def folded(self, query: Tensor, centre: Tensor, places: Places, head: int, dtype: torch.dtype) -> FoldedBias:
        """As `forward`, and the padding of `places`, for heads of `head` dimensions of type `dtype`; not for type4."""
        with torch.autocast(query.device.type, enabled=False):
            x, y, scale = self._shape(query, centre)
            steep = (torch.ones_like(x)[..., None] if scale is None else scale) / self.smooth
            return places.fold(x, y, steep[..., 0], steep[..., -1], head, dtype)

    def _shape(self, query: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Peaks x and y [B, A, L] of the Gaussians, and their scales [B, A, L, scales], None without any."""
        query = query.float()
        offset = self.offset(query).unflatten(-1, (self.heads, 2))
        x, y = (centre[:, :, None] + offset).transpose(1, 2).unbind(-1)
        if not self.scales:
            return x, y, None
        return x, y, self.scale(query).unflatten(-1, (self.heads, self.scales)).square().transpose(1, 2)


class SmcaDecoder(nn.Module):
    """DETR's decoder with a Gaussian prior in each layer; all share the reference points that the first one makes."""

    def __init__(
        self, layers: int, width: int, heads: int, feedforward: int, dropout: float, gaussian: str, smooth: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward, dropout) for _ in range(layers))
        self.priors = nn.ModuleList(GaussianPrior(width, heads, gaussian, smooth) for _ in range(layers))
        self.reference = MLP(width, width, 2, 3)
        self.norm = nn.LayerNorm(width)

    def pairs(self) -> Iterator[tuple[DecoderLayer, GaussianPrior]]:
        """Every layer with its prior."""
        for layer, prior in zip(self.layers, self.priors, strict=True):
            yield cast(DecoderLayer, layer), cast(GaussianPrior, prior)


class SmcaDetr(QueryDetector):
    """SMCA-DETR with sigmoid class logits; boxes are predicted relative to each query's reference point."""

    def __init__(
        self,
        backbone: Backbone,
        logits: int,
        queries: int = 300,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward: int = 2048,
        dropout: float = 0.1,
        position: str = "sine",
        auxiliary: bool = True,
        gaussian: str = "type3",
        smooth: float = 8.0,
    ) -> None:
        """logits: one per class; gaussian: a key of `SCALES`; smooth: the paper's beta."""
        super().__init__(
            one_level(backbone, "SMCA-DETR"), width, heads, encoder_layers, feedforward, dropout, False, position
        )
        (self.stride,) = backbone.strides
        self.decoder = SmcaDecoder(decoder_layers, width, heads, feedforward, dropout, gaussian, smooth)
        self.query_embed = nn.Embedding(queries, width)
        self.class_embed = nn.Linear(width, logits)
        self.bbox_embed = MLP(width, width, 4, 3)
        self.auxiliary, self.gaussian = auxiliary, gaussian
        initialise(self.encoder)
        initialise(self.decoder)
        for _, prior in self.decoder.pairs():
            prior.start_isotropic()
        nn.init.constant_(self.class_embed.bias, PRIOR_BIAS)
        self.input_proj = nn.Conv2d(backbone.channels[-1], width, 1)

    def own_precision(self) -> list[nn.Module]:
        """The parts that compute in float32 whatever the precision."""
        return [*super().own_precision(), self.decoder.reference, self.decoder.priors]

    def forward(self, images: Tensor, sizes: Tensor, padded: bool = True, attention_maps: bool = False) -> Output:
        """As `QueryDetector.forward`."""
        memory = self.encode(images, sizes, padded)
        (level,) = memory.levels
        keys = places(level.cover) if self._folds(level) else None
        key = memory.tokens + memory.position
        # One for each image, so that the gradients of all layers are added up before they are over the images.
        position = self.query_embed.weight.repeat(len(sizes), 1, 1)
        query_position = position.to(key.dtype)
        x = torch.zeros_like(query_position)
        # The published code divides by a stride of 32 whatever the backbone; this is the real one.
        true_size = sizes.flip(1)[:, None].float() / self.stride
        states: list[Tensor] = []
        attention: list[Tensor] = []
        gaussians: list[Tensor] = []
        for layer, prior in self.decoder.pairs():
            normed = float32_norm(prior.norm, x + position)
            if not states:
                reference = self._reference(normed)
                centre = reference.sigmoid() * true_size
            bias = self._bias(prior, normed, centre, memory, keys)
            x, query = layer(x, query_position, memory.tokens, key, bias)
            states.append(x)
            if attention_maps:
                attention.append(layer.cross_attn.weights(query, key, bias))
                gaussians.append(prior(normed, centre, level.cover).exp())
        output = self._predict(torch.stack(states if self.auxiliary else states[-1:]), reference)
        if attention_maps:
            output.attention = by_stride(memory.levels, torch.stack(attention))
            output.gaussians = by_stride(memory.levels, torch.stack(gaussians))
        return output

    def _folds(self, level: Level) -> bool:
        """Whether the Gaussians are folded: their axes must not mix, as those of type4 do."""
        longest = max(level.cover.height, level.cover.width)
        return self.gaussian != "type4" and longest <= LONGEST and folds(level.features)

    def _bias(
        self, prior: GaussianPrior, query: Tensor, centre: Tensor, memory: Memory, keys: Places | None
    ) -> Tensor | FoldedBias:
        """Gaussians and padding, to be added to the cross-attention's logits; folded where there are `places`."""
        (level,) = memory.levels
        if keys is not None:
            return prior.folded(query, centre, keys, self.head_dimensions, level.features.dtype)
        bias, padding = prior(query, centre, level.cover), memory.bias
        if padding is None:
            return bias
        return bias + (padding.unfolded() if isinstance(padding, FoldedBias) else padding)

    def _reference(self, query: Tensor) -> Tensor:
        """Logits [B, L, 2] of the reference points (x, y) in float32."""
        with torch.autocast(query.device.type, enabled=False):
            return self.decoder.reference(query.float())

    def _predict(self, states: Tensor, reference: Tensor) -> Output:
        # bfloat16 has a spacing of 0.004 near 1: boxes would collapse.
        with torch.autocast(states.device.type, enabled=False):
            states = float32_norm(self.decoder.norm, states)
            shift = torch.nn.functional.pad(reference, (0, 2))
            return Output(self.class_embed(states), (self.bbox_embed(states) + shift).sigmoid())
