"""Detectors to evaluate or to fine-tune from: whose weights a file holds, and what becomes of each of them.

Whatever is loaded, the caller learns what was and what was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .class_rows import QUERY_ROWS, Rows, class_rows
from .detectron2 import (
    CLASS_SCORES,
    META_ARCH,
    OWN,
    TRAINING_ONLY,
    anchor_kind,
    from_anchors,
    from_detectron2,
    is_wrapped,
)
from .find import Found, Which, below, check_sound
from .fit import listed, state_faults
from .foreign import LOADABLE, foreign
from .hugging_face import from_hugging_face
from .layouts import from_published

MOST_ROWS = 100_000
"""Category ids from here on get no row of their own in a published head; the largest data sets have some thousands."""
_HEADS = (
    *(f"{head}.{part}" for head in ("class_embed", "class_labels_classifier") for part in ("weight", "bias")),
    # Ours first, which have more beside them.
    *(f"{start}{name}" for start in (OWN, "") for name in CLASS_SCORES.values()),
)


def detector_weights(found: Found, which: Which = "auto") -> tuple[Found, dict[str, Tensor], str]:
    """Where a detector's tensors were, they under our names, and their layout.

    It is `ours`, `published`, `hugging face` or `detectron2`, whose class rows are in the order of the category ids.
    Raises ValueError, saying which can be loaded, for another detector's and for what is none.
    """
    inside = below(found, _HEADS, which)
    state = inside.state
    if kind := anchor_kind(state):
        if OWN + CLASS_SCORES[kind] in state:
            return inside, dict(state), "ours"
        named, resnet = from_anchors(state, inside.author)
        return replace(inside, resnet=resnet), named, "detectron2"
    other = foreign(state)
    if other:
        raise ValueError(f"these are the weights of {other}, which is not among the models here. {LOADABLE}")
    if is_wrapped(state):
        return inside, from_detectron2(state), "detectron2"
    if any(name.startswith("transformer.") for name in state):
        return inside, from_published(state), "published"
    # Not by the encoder, which need not have a layer.
    if any(name.startswith("model.decoder.") for name in state):
        check_sound(state, "the file")
        return inside, from_hugging_face(state), "hugging face"
    if any(name.startswith("decoder.layers.") for name in state):
        trained_there = any(name.startswith(META_ARCH + _HEADS[0]) for name in found.state)
        return inside, dict(state), "detectron2" if trained_there else "ours"
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
    model: nn.Module,
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
    mine, found = class_rows(own, softmax), class_rows(state, no_object)
    rest = {name: value for name, value in own.items() if name not in mine}
    usable = {name: value for name, value in state.items() if name in rest}
    faults = state_faults(rest, usable, optional=("num_batches_tracked", *TRAINING_ONLY))
    faults = faults or _row_faults({name: own[name] for name in mine}, mine, state, found)
    if faults:
        queries, there = (len(each.get("query_embed.weight", ())) for each in (own, state))
        hint = f" (the file has {there} queries: head.queries)" if 0 < queries != there > 0 else ""
        raise ValueError(
            f"the checkpoint does not fit this model: {listed(faults)}{hint}. "
            f"Make {'pyramid' if anchor_kind(own) else 'head'}.* and backbone.* those of the checkpoint"
        )
    name, rows = next(iter(found.items()))
    count = rows.classes(state[name]) + rows.spare
    if count < len(theirs):
        raise ValueError(f"the checkpoint has {count} class rows for {len(theirs)} class names")
    twice = {name for name, count in Counter(name.lower() for name in theirs).items() if count > 1}
    place = {name.lower(): row for row, name in enumerate(theirs) if name.lower() not in twice}
    kept = [name for name in ours if name.lower() in place]
    for name, rows in mine.items():
        target, source = rows.split(own[name].clone()), found[name].split(state[name])
        for row, label in enumerate(ours):
            if label.lower() in place:
                target[:, row] = source[:, place[label.lower()]]
        if rows.spare and found[name].spare:
            target[:, len(ours)] = source[:, -1]
        usable[name] = target.flatten(0, 2)
    model.load_state_dict(usable, strict=False)
    fresh = tuple(name for name in ours if name.lower() not in place)
    return Loaded(len(usable), tuple(kept), fresh, tuple(name for name in state if name not in own))


def _row_faults(
    own: Mapping[str, Tensor], mine: Mapping[str, Rows], state: Mapping[str, Tensor], found: Mapping[str, Rows]
) -> list[str]:
    """What is wrong with a file's tensors that have rows for classes, however many these are."""
    counts = [found[name].classes(state[name]) for name in found if name in state]
    count = counts[0] if counts else -1
    shapes = {
        name: own[name].new_empty(rows.groups * (count + found.get(name, rows).spare) * rows.each, *own[name].shape[1:])
        for name, rows in mine.items()
    }
    return state_faults(shapes, {name: state[name] for name in mine if name in state})


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
    for name in QUERY_ROWS:
        rows = state[name].new_zeros(size, *state[name].shape[1:])
        if rows.dim() == 1:
            rows -= 1e4
        rows[list(ids)] = state[name][:count]
        if softmax:
            rows[-1] = state[name][-1]
        result[name] = rows
    return result
