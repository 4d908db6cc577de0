"""Detectors to evaluate or to fine-tune from: whose weights a file holds, and what becomes of each of them.

Whatever is loaded, the caller learns what was and what was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..detector import Detector
from .find import Found, Which, below, check_sound
from .fit import listed, state_faults
from .foreign import LOADABLE, foreign
from .hugging_face import from_hugging_face
from .layouts import from_published

# Rows of a class head, the only tensors that depend on the data set.
CLASS_ROWS = ("class_embed.weight", "class_embed.bias")
MOST_ROWS = 100_000
"""Category ids from here on get no row of their own in a published head; the largest data sets have some thousands."""
_HEADS = tuple(f"{head}.{part}" for head in ("class_embed", "class_labels_classifier") for part in ("weight", "bias"))


def detector_weights(found: Found, which: Which = "auto") -> tuple[Found, dict[str, Tensor], str]:
    """Where a detector's tensors were, they under our names, and their layout: `ours`, `published`, `hugging face`.

    Raises ValueError, saying which can be loaded, for another detector's and for what is none.
    """
    inside = below(found, _HEADS, which)
    state = inside.state
    other = foreign(state)
    if other:
        raise ValueError(f"these are the weights of {other}, which is not among the models here. {LOADABLE}")
    if any(name.startswith("transformer.") for name in state):
        return inside, from_published(state), "published"
    # Not by the encoder, which need not have a layer.
    if any(name.startswith("model.decoder.") for name in state):
        check_sound(state, "the file")
        return inside, from_hugging_face(state), "hugging face"
    if any(name.startswith("decoder.layers.") for name in state):
        return inside, dict(state), "ours"
    raise ValueError(f"not a detector's weights (first names: {', '.join(list(state)[:4])}). {LOADABLE}")


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint's tensors. classes: names whose rows were kept; fresh: those that start anew."""

    tensors: int
    classes: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"loaded {self.tensors} tensors"]
        if self.classes or self.fresh:
            lines.append(f"class rows kept for {len(self.classes)}: {', '.join(self.classes) or 'none'}")
            lines.append(f"class rows started anew for {len(self.fresh)}: {', '.join(self.fresh) or 'none'}")
        if self.unused:
            lines.append(f"not used from the file: {', '.join(self.unused)}")
        return "\n".join(lines)


@torch.no_grad()
def fine_tune_from(
    model: Detector,
    state: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
    softmax: bool,
    no_object: bool = True,
) -> Loaded:
    """Load everything but the class rows, and those of the classes that both know by name.

    theirs, ours: class names in the order of the rows; with softmax, a last row for no object follows, and is kept
    where the file's last row is one (no_object). Names that the file has twice are not kept.
    Raises ValueError naming what does not fit, and the setting that makes it fit, before anything is loaded.
    """
    own = model.state_dict()
    rest = {name: value for name, value in own.items() if name not in CLASS_ROWS}
    usable = {name: value for name, value in state.items() if name in rest}
    faults = state_faults(rest, usable, optional=("num_batches_tracked",))
    rows, width = len(state["class_embed.bias"]), own["class_embed.weight"].shape[1]
    if not faults:
        shapes = {"class_embed.weight": own["class_embed.weight"].new_empty(rows, width)}
        shapes["class_embed.bias"] = own["class_embed.bias"].new_empty(rows)
        faults = state_faults(shapes, {name: state[name] for name in CLASS_ROWS if name in state})
    if faults:
        queries = own["query_embed.weight"].shape[0], len(state.get("query_embed.weight", ()))
        hint = f" (the file has {queries[1]} queries: head.queries)" if queries[0] != queries[1] else ""
        raise ValueError(
            f"the checkpoint does not fit this model: {listed(faults)}{hint}. "
            "Make head.* and backbone.* those of the checkpoint"
        )
    if rows < len(theirs):
        raise ValueError(f"the checkpoint has {rows} class rows for {len(theirs)} class names")
    twice = {name for name, count in Counter(name.lower() for name in theirs).items() if count > 1}
    place = {name.lower(): row for row, name in enumerate(theirs) if name.lower() not in twice}
    kept = [name for name in ours if name.lower() in place]
    for name in CLASS_ROWS:
        target = own[name].clone()
        for row, label in enumerate(ours):
            if label.lower() in place:
                target[row] = state[name][place[label.lower()]]
        if softmax and no_object:
            target[len(ours)] = state[name][rows - 1]
        usable[name] = target
    model.load_state_dict(usable, strict=False)
    fresh = tuple(name for name in ours if name.lower() not in place)
    return Loaded(len(usable), tuple(kept), fresh, tuple(name for name in state if name not in own))


def scatter_rows(
    state: Mapping[str, Tensor], ids: Sequence[int], softmax: bool, by_id: bool = True
) -> dict[str, Tensor]:
    """Class rows as the published heads have them: at the place of their category id, or (by_id: False) in order.

    Softmax: the no-object row comes last. The published focal heads have one row more than ids, which stands for
    nothing. Rows without a class never win. Raises ValueError for ids that no such head has a row for.
    """
    count = len(ids)
    if by_id:
        least, most = min(ids), max(ids)
        wrong = least if least < 0 else most if most >= MOST_ROWS else None
        if wrong is not None:
            why = "there is no row below 0" if wrong < 0 else f"that would be {wrong + 2:,} rows"
            raise ValueError(
                f"category id {wrong}: published heads have a row for every id from 0 to the largest, and {why} (at "
                f"most {MOST_ROWS:,} here). Number the categories anew, or give each class the row of its place in the "
                "class list (--rows order)"
            )
    else:
        ids = range(count)
    if softmax and list(ids) == list(range(count)):
        return dict(state)
    size = max(ids) + 2
    result = dict(state)
    for name in CLASS_ROWS:
        rows = state[name].new_zeros(size, *state[name].shape[1:])
        if rows.dim() == 1:
            rows -= 1e4
        rows[list(ids)] = state[name][:count]
        if softmax:
            rows[-1] = state[name][-1]
        result[name] = rows
    return result
