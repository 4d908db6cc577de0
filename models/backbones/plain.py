"""The networks of the CONTAINER family that are not hierarchical, with dense static affinities (Gao et al. 2021).

Images are cut into patches, all of which one sequence of equal blocks works on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from ..layers.context_aggregation import CONTAINER_PAM, MH_MLP, Affinities
from ..layers.dense_affinity import Grid, resampled
from .backbone import Backbone
from .timm_positions import fitted_positions


@dataclass(frozen=True)
class PlainSize:
    """channels, blocks, heads; patch: pixels to a side; side: of the images it is usually for, in pixels.

    std: of the dense affinities at first; tokens: whether there is a class token, and positions are embedded.
    """

    channels: int
    blocks: int
    heads: int
    patch: int
    side: int
    affinities: Affinities
    std: float
    tokens: bool

    def built_side(self, canvas: int, interpolate: bool) -> int:
        """The side in pixels that it is built for, where images have sides of `canvas` at most (0: nobody knows).

        Where affinities are interpolated, that is the usual one at most: they are learned there, for any image.
        """
        side = min(canvas or self.side, self.side) if interpolate else canvas or self.side
        return -(-side // self.patch) * self.patch

    def static(self, side: int) -> int:
        """How many numbers the dense affinities of all blocks are, built for a side in pixels."""
        rows, columns = self.built_for(side)
        return self.blocks * self.heads * (rows * columns + int(self.tokens)) ** 2

    def built_for(self, side: int) -> Grid:
        """Rows and columns of patches of a square image."""
        return side // self.patch, side // self.patch


# CONTAINER-PAM is DeiT-S with a dense affinity added to that of each head after the softmax, of normal numbers of
# standard deviation 1 at first, as its authors list it (appendix B): 24.84 M parameters with a classifier of 1000.
# MH-MLP was not published: the same frame, with dense affinities alone. They tell positions apart, so there is no
# embedding of them, and no class token; their numbers are such that sums over 196 positions neither grow nor shrink.
# The tiny ones are ours, for images of 32 to 64 pixels, with smaller patches.
PLAIN = {
    "container_pam": PlainSize(384, 12, 6, 16, 224, CONTAINER_PAM, 1.0, tokens=True),
    "container_pam_tiny": PlainSize(64, 4, 2, 8, 64, CONTAINER_PAM, 1.0, tokens=True),
    "mh_mlp": PlainSize(384, 12, 6, 16, 224, MH_MLP, 1 / 14, tokens=False),
    "mh_mlp_tiny": PlainSize(64, 4, 2, 8, 64, MH_MLP, 1 / 8, tokens=False),
}


class PlainBackbone(Backbone):
    """One feature map, of the patches after the last norm; `pooled` gives a classifier the class token, or their mean.

    The body is timm's VisionTransformer, with its names. Dense affinities are of one size of map: images of another one
    are refused, or the affinities are interpolated (see `resampled`), for which the sides need only be multiples of a
    patch. Position embeddings are interpolated as timm does it.
    """

    def __init__(self, name: str, side: int = 0, interpolate: bool = False, drop_path: float = 0.0) -> None:
        """side: of the images in pixels, a multiple of the patches'; 0: the usual one.

        drop_path: the drop probability of the last block, rising linearly from 0 at the first.
        """
        from .plain_body import make_body

        size = PLAIN[name]
        self.name, self.built_side, self.interpolate = name, side or size.side, interpolate
        super().__init__((size.channels,), (size.patch,), size.patch if interpolate else self.built_side)
        self.side = 0 if interpolate else self.built_side
        self.size, self.grid = size, size.built_for(self.built_side)
        self.leading = int(size.tokens)
        self.body = make_body(size, self.built_side, drop_path)

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """embed, block1, block2, ..., the last with the norm after it."""
        body = self.body
        embed = [nn.ParameterList(body.parameters(recurse=False)), body.patch_embed]
        blocks = [(f"block{index}", [block]) for index, block in enumerate(body.blocks, start=1)]
        return [("embed", embed), *blocks[:-1], (blocks[-1][0], [*blocks[-1][1], body.norm])]

    def no_weight_decay(self) -> set[str]:
        """The class token and the embeddings of positions, as in DeiT."""
        return {f"body.{name}" for name, _ in self.body.named_parameters(recurse=False)}

    def every_map(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to one [B, C, H / patch, W / patch] map. Raises ValueError for a size that it is not for."""
        tokens, grid = self._tokens(images)
        return [tokens[:, self.leading :].transpose(1, 2).unflatten(2, grid)]

    def pooled(self, images: Tensor) -> Tensor:
        """See `Backbone`: the class token after the last norm; without one, the mean over positions."""
        tokens, _ = self._tokens(images)
        return tokens[:, 0] if self.leading else tokens.mean(dim=1)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError, with the remedy, for images of a size in pixels that it does not take."""
        if self.side and (height, width) != (self.side, self.side):
            raise ValueError(
                f"{self.name} has dense affinities, built for images of {self.side} x {self.side} pixels, not of "
                f"{height} x {width}: use images of that size, or interpolate them by backbone.dense=interpolate (of a "
                "trained classifier: --interpolate)"
            )
        patch = self.size.patch
        if height % patch or width % patch:
            raise ValueError(
                f"{self.name} takes images whose sides are multiples of {patch} pixels, not {height} x {width}: "
                "pad or resize them"
            )

    def interpolated(self) -> Self:
        """From now on take images of any size, as if it had been built so."""
        self.interpolate, self.side, self.size_multiple = True, 0, self.size.patch
        return self

    def _tokens(self, images: Tensor) -> tuple[Tensor, Grid]:
        """[B, leading + N, C], and the rows and columns of the N."""
        height, width = images.shape[-2:]
        self.check_size(height, width)
        patch = self.size.patch
        grid = (height // patch, width // patch)
        body = self.body
        x = body.pos_drop(body._pos_embed(body.patch_embed(images)))
        for block in body.blocks:
            x = block(x, grid)
        return body.norm(x), grid

    def fitted(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """See `Backbone`: affinities of another size are interpolated where images' are, else refused."""
        fitted = dict(state)
        for name, value in state.items():
            tokens = value.shape[-1] if name.endswith(".affinity") and value.dim() == 4 else 0
            length = math.isqrt(max(tokens - self.leading, 0))
            # What is of no square map is said to be of another shape, as any tensor is.
            if length in (0, self.grid[0]) or value.shape[-2:] != (self.leading + length**2,) * 2:
                continue
            if not self.interpolate:
                pixels = length * self.size.patch
                raise ValueError(
                    f"{source} is of {self.name} for images of {pixels} x {pixels} pixels, and these settings make it "
                    f"for {self.built_side} x {self.built_side}: use images of that size, or backbone.dense=interpolate"
                )
            fitted[name] = resampled(value, (length, length), self.grid, self.leading)
        return fitted_positions(self.body, "body.pos_embed", fitted, source)
