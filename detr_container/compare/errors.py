"""What kinds of errors a detector makes, and what each costs, as TIDE has them (Bolya et al. 2020, arXiv 2008.08115).

At IoU 0.5 each detection that is wrong has one kind. With f = 0.5, b = 0.1 and IoUs with objects of its own and of
other classes: `localisation` when that with its own class is between b and f; `classification` when that with another
class is f or more; `duplicate` when that with its own class is f or more and the object was found by a surer one;
`background` when none reaches b; `both` otherwise. An object that is neither found nor the aim of a localisation or
classification error is `missed`. The cost of a kind is how much AP50 rises when an oracle fixes only that: a fixed
detection finds its object unless a surer one does, and is taken away then; other wrong ones are taken away; a missed
object is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detr_container.tasks.detection.detections import Columns

from .matching import FALSE, TRUE, UNCOUNTED, ClassMatches, Ground, iou
from .precision import interpolated

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1
_CLS, _LOC, _BOTH, _DUPE, _BACK, _MISSED = range(len(KINDS))
_RIGHT = -1


@dataclass(frozen=True)
class Errors:
    """count: how many of each kind; cost: by how much AP50 (a fraction) would rise without them; ap50: as it is."""

    ap50: float
    count: dict[str, int]
    cost: dict[str, float]


@dataclass(frozen=True)
class _Counted:
    """Detections that count, surest first: label, score, right: [n]; totals: [K] objects of each class."""

    label: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    totals: NDArray[np.int64]

    def ap50(self) -> float:
        """Mean over the classes that have objects."""
        kept = [self._of_class(k) for k in np.flatnonzero(self.totals > 0).tolist()]
        return float(np.mean(kept)) if kept else float("nan")

    def _of_class(self, k: int) -> float:
        return float(interpolated(self.right[self.label == k], int(self.totals[k])).mean())

    def without(self, removed: NDArray[np.bool_]) -> _Counted:
        """The same with some detections taken away."""
        kept = ~removed
        return replace(self, label=self.label[kept], score=self.score[kept], right=self.right[kept])


def breakdown(ground: Ground, found: Columns, matches: Sequence[ClassMatches]) -> Errors:
    """The errors of one run's detections, matched by `matching.match`."""
    label = np.concatenate([np.full(len(one.row), k) for k, one in enumerate(matches)])
    row, score, hit, outcome, image = (
        np.concatenate(parts)
        for parts in zip(
            *((one.row, one.score, one.found, one.outcome[0, 0], one.image) for one in matches), strict=True
        )
    )
    order = np.argsort(-score, kind="stable")
    order = order[outcome[order] != UNCOUNTED]
    label, row, score, hit, outcome, image = (x[order] for x in (label, row, score, hit, outcome, image))
    used = np.zeros(len(ground.image), dtype=bool)
    used[hit[outcome == TRUE]] = True
    kind, aim = _kinds(ground, found.boxes[row], label, image, outcome == FALSE, used)
    real = ~ground.crowd
    totals = np.bincount(ground.label[real], minlength=len(ground.names))
    counted = _Counted(label, score, outcome == TRUE, totals)
    aimed = np.zeros_like(used)
    aimed[aim[(kind == _CLS) | (kind == _LOC)]] = True
    missed = real & ~used & ~aimed
    base = counted.ap50()
    count = {name: int((kind == number).sum()) for number, name in enumerate(KINDS)} | {"missed": int(missed.sum())}
    cost = {}
    for number, name in enumerate(KINDS[:_MISSED]):
        fixed = _fixed(counted, ground, kind == number, aim, used, moved=number in (_CLS, _LOC))
        cost[name] = fixed.ap50() - base
    fewer = totals - np.bincount(ground.label[missed], minlength=len(totals))
    # A class of which all objects were missed stays in the mean, with nothing left to find: as good as it can be.
    cost["missed"] = _with_fewer(counted, fewer) - base
    return Errors(base, count, cost)


def _kinds(
    ground: Ground,
    boxes: NDArray[np.float64],
    label: NDArray[np.int64],
    image: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    used: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The kind [n] of each wrong detection, _RIGHT of others, and the object [n] it is about, or -1."""
    kind, aim = np.full(len(label), _RIGHT), np.full(len(label), -1)
    by_image = np.argsort(image, kind="stable")
    ends = np.searchsorted(image[by_image], np.arange(len(ground.images) + 1))
    objects = np.flatnonzero(~ground.crowd)
    objects = objects[np.argsort(ground.image[objects], kind="stable")]
    object_ends = np.searchsorted(ground.image[objects], np.arange(len(ground.images) + 1))
    for number in range(len(ground.images)):
        detections = by_image[ends[number] : ends[number + 1]]
        detections = detections[wrong[detections]]
        targets = objects[object_ends[number] : object_ends[number + 1]]
        if len(detections) and not len(targets):
            kind[detections] = _BACK
        elif len(detections):
            overlap = iou(boxes[detections], ground.box[targets], np.zeros(len(targets), dtype=bool))
            own = label[detections][:, None] == ground.label[targets]
            kind[detections], aim[detections] = _kinds_in_image(overlap, own, targets, used[targets])
    return kind, aim


def _kinds_in_image(
    overlap: NDArray[np.float64], own: NDArray[np.bool_], targets: NDArray[np.int64], used: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kinds [n] and aims [n] in one image: overlap: [n, g], own: [n, g] of the same class, targets and used: [g]."""
    same, other = np.where(own, overlap, 0.0), np.where(own, 0.0, overlap)
    mine, theirs = same.max(axis=1), other.max(axis=1)
    again = np.where(used, same, 0.0).max(axis=1)
    local = (mine >= BACKGROUND) & (mine <= FOREGROUND)
    classed = theirs >= FOREGROUND
    kind = np.select(
        [local, classed, again >= FOREGROUND, overlap.max(axis=1) <= BACKGROUND], [_LOC, _CLS, _DUPE, _BACK], _BOTH
    )
    aim = np.where(local, targets[same.argmax(axis=1)], targets[other.argmax(axis=1)])
    return kind, np.where((kind == _LOC) | (kind == _CLS), aim, -1)


def _fixed(
    counted: _Counted,
    ground: Ground,
    chosen: NDArray[np.bool_],
    aim: NDArray[np.int64],
    used: NDArray[np.bool_],
    moved: bool,
) -> _Counted:
    """The detections once an oracle has fixed the chosen ones: the surest of each object, or taken away."""
    if not moved:
        return counted.without(chosen)
    places = np.flatnonzero(chosen)
    _, first = np.unique(aim[places], return_index=True)
    best = places[first]
    best = best[~used[aim[best]]]
    right, label = counted.right.copy(), counted.label.copy()
    right[best], label[best] = True, ground.label[aim[best]]
    removed = chosen.copy()
    removed[best] = False
    return replace(counted, right=right, label=label).without(removed)


def _with_fewer(counted: _Counted, totals: NDArray[np.int64]) -> float:
    """AP50 when only so many objects of each class are asked for."""
    present = np.flatnonzero(counted.totals > 0).tolist()
    if not present:
        return float("nan")
    kept = replace(counted, totals=totals)
    return float(np.mean([kept._of_class(k) if totals[k] else 1.0 for k in present]))
