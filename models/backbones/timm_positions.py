"""Position embeddings of a timm transformer that were made for images of another size."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_log = logging.getLogger(__name__)


def fitted_positions(root: Any, name: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights whose position embedding, under `name`, is interpolated as timm does it where its grid is another.

    root: the transformer, or any other timm model, whose weights stay as they are.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    fitted, own = dict(state), getattr(root, "pos_embed", None)
    grid = getattr(getattr(root, "patch_embed", None), "grid_size", None)
    theirs = fitted.get(name)
    if not isinstance(own, Tensor) or own.dim() != 3 or grid is None or theirs is None or theirs.dim() != 3:
        return fitted
    rows, columns = grid
    # Of the class token and others like it.
    leading = own.shape[1] - rows * columns
    side = math.isqrt(max(theirs.shape[1] - leading, 0))
    if leading < 0 or theirs.shape[1] == own.shape[1] or not side or side * side + leading != theirs.shape[1]:
        return fitted
    _log.warning(
        "%s: its positions are those of %d x %d patches, interpolated for %d x %d here", source, side, side, *grid
    )
    fitted[name] = resample_abs_pos_embed(theirs, list(grid), [side, side], leading)
    return fitted
