"""Detections without a model, and their matching by loops over all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detr_container.tasks.detection.found_objects import Found


def naive_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    whole = a[2] * a[3] + b[2] * b[3] - shared
    return shared / whole if whole > 0 else 0.0


def most(weights: Sequence[Sequence[float]], used: frozenset[int] = frozenset()) -> float:
    """The largest sum of weights of pairs, trying all of them; 0 is no pair."""
    if not weights:
        return 0.0
    first, *others = weights
    best = most(others, used)
    for column, weight in enumerate(first):
        if weight and column not in used:
            best = max(best, weight + most(others, used | {column}))
    return best


def some(name: str, score: float, box: Sequence[float]) -> Found:
    """A detection without attention maps; box: x, y, width, height."""
    x, y, width, height = box
    record = {"category": name, "score": score, "bbox": list(box)}
    return Found(record, torch.tensor([x, y, x + width, y + height]), torch.zeros(1, 2, 2))


def weights_of(ours: Sequence[Found], theirs: Sequence[Found]) -> list[list[float]]:
    """IoUs of the pairs that may be one object, 0 for others."""
    table = []
    for one in ours:
        overlaps = [naive_iou(one.record["bbox"], other.record["bbox"]) for other in theirs]
        same = [one.record["category"].lower() == other.record["category"].lower() for other in theirs]
        table.append([iou if iou >= 0.5 and alike else 0.0 for iou, alike in zip(overlaps, same, strict=True)])
    return table
