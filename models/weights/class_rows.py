"""Which of a detector's tensors have rows for its classes, and how those lie in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .detectron2 import CLASS_SCORES, OWN, anchor_kind

QUERY_ROWS = ("class_embed.weight", "class_embed.bias")
"""Of DETR and SMCA-DETR."""


@dataclass(frozen=True)
class Rows:
    """How the first dimension of a tensor holds classes: [groups, classes + spare, each].

    groups: anchors, which lie outermost; spare: rows after those of the classes, of no object; each: rows of a class.
    """

    groups: int = 1
    spare: int = 0
    each: int = 1

    def classes(self, value: Tensor) -> int:
        """How many classes a tensor has rows for; -1 where it cannot be so many."""
        size, step = _length(value), self.groups * self.each
        return size // step - self.spare if size and size % step == 0 else -1

    def split(self, value: Tensor) -> Tensor:
        """[groups, classes + spare, each, ...]; the same memory."""
        return value.unflatten(0, (self.groups, -1, self.each))

    def chosen(self, value: Tensor, places: Sequence[int]) -> Tensor:
        """The rows of these classes, in this order, and the spare ones."""
        count = self.classes(value)
        return self.split(value)[:, [*places, *range(count, count + self.spare)]].flatten(0, 2)


def class_rows(state: Mapping[str, Tensor], no_object: bool) -> dict[str, Rows]:
    """The tensors of a state, under our names, that have rows for classes. no_object: DETR's and SMCA-DETR's last one.

    detectron2's boxes and masks that are the same for all classes have none.
    """
    kind = anchor_kind(state)
    if kind == "retinanet":
        anchors = max(1, _length(state[f"{OWN}head.bbox_pred.weight"]) // 4)
        return {f"{OWN}head.cls_score.{part}": Rows(anchors) for part in ("weight", "bias")}
    if kind == "mask_rcnn":
        scores, heads = Rows(spare=1), f"{OWN}roi_heads"
        count = scores.classes(state[OWN + CLASS_SCORES[kind]])
        found = {"box_predictor.cls_score": scores}
        for name, rows in (("box_predictor.bbox_pred", Rows(each=4)), ("mask_head.predictor", Rows())):
            if rows.classes(state.get(f"{heads}.{name}.weight", state[OWN + CLASS_SCORES[kind]])) == count:
                found[name] = rows
        return {f"{heads}.{name}.{part}": rows for name, rows in found.items() for part in ("weight", "bias")}
    return dict.fromkeys(QUERY_ROWS, Rows(spare=int(no_object)))


def reordered(state: Mapping[str, Tensor], rows: Mapping[str, Rows], places: Sequence[int]) -> dict[str, Tensor]:
    """The same detector with the classes at these places, in this order."""
    return {name: rows[name].chosen(value, places) if name in rows else value for name, value in state.items()}


def _length(value: Tensor) -> int:
    return len(value) if value.dim() else 0
