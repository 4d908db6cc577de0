"""What predictions of a whole split are worth: top-1, top-5, the loss, each class's, and what is taken for what."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from .predictions import Predictions

PAIRS, SHOWN = 20, 12
"""Confused pairs that are kept; rows of a table that are shown."""


class ClassScore(NamedTuple):
    """One class: how many of its images have it as the most probable class, and among the five; of how many."""

    name: str
    top1: float | None
    top5: float | None
    images: int


class Confused(NamedTuple):
    """How many images of one class are taken for another, and which share of the class's."""

    true: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class Scores:
    """Accuracies as shares from 0 to 1; loss: the mean of -log p of the true class, without smoothing.

    per_class: in the order of labels; confused: the most frequent mistakes, most frequent first.
    """

    top1: float
    top5: float
    loss: float
    images: int
    per_class: tuple[ClassScore, ...]
    confused: tuple[Confused, ...]

    def to_dict(self) -> dict[str, Any]:
        """Describe the scores as JSON has it."""
        per_class, confused = ([row._asdict() for row in rows] for rows in (self.per_class, self.confused))
        return {**dataclasses.asdict(self), "per_class": per_class, "confused": confused}

    @property
    def line(self) -> str:
        """The scores in one line."""
        return f"top-1 {100 * self.top1:.2f} top-5 {100 * self.top5:.2f} loss {self.loss:.4f}"


def score(found: Predictions, losses: NDArray[np.float32], classes: Sequence[str]) -> Scores:
    """The scores of predictions; losses: [N] of each image. Raises ValueError without any image."""
    count = len(found.labels)
    if not count:
        raise ValueError("there is no image to score: the validation split is empty")
    images = np.bincount(found.labels, minlength=len(classes))
    right = [np.bincount(found.labels[found.top(k)], minlength=len(classes)) for k in (1, 5)]
    shares = [[int(n) / int(of) if of else None for n, of in zip(each, images, strict=True)] for each in right]
    rows = zip(classes, *shares, images.tolist(), strict=True)
    return Scores(
        int(right[0].sum()) / count,
        int(right[1].sum()) / count,
        float(losses.astype(np.float64).mean()),
        count,
        tuple(ClassScore(*row) for row in rows),
        _confused(found, classes),
    )


def _confused(found: Predictions, classes: Sequence[str]) -> tuple[Confused, ...]:
    wrong = ~found.top(1)
    pairs = np.stack([found.labels[wrong], found.classes[wrong, 0]], axis=1)
    each, counts = np.unique(pairs, axis=0, return_counts=True)
    order, images = np.argsort(-counts, kind="stable")[:PAIRS], np.bincount(found.labels)
    return tuple(
        Confused(classes[true], classes[predicted], int(count), int(count) / int(images[true]))
        for (true, predicted), count in zip(each[order], counts[order], strict=True)
    )


def table(scores: Scores) -> RenderableType:
    """Make tables for the terminal, in per cent: all images, the classes from the worst on, and the worst pairs."""
    overall = Table("", "top-1", "top-5", "loss", title=f"Accuracy, {scores.images} images")
    overall.add_row("all", _percent(scores.top1), _percent(scores.top5), f"{scores.loss:.4f}")
    ranked = sorted(scores.per_class, key=lambda row: (row.top1 is None, row.top1 or 0.0, row.name))
    few = len(ranked) <= SHOWN
    classes = Table("class", "top-1", "top-5", "images", title="By class" if few else f"The {SHOWN} worst classes")
    for row in ranked[:SHOWN]:
        classes.add_row(row.name, _percent(row.top1), _percent(row.top5), str(row.images))
    parts = [overall, classes]
    if scores.confused:
        pairs = Table("true", "taken for", "images", "of the class", title="Most frequent mistakes")
        for pair in scores.confused[:SHOWN]:
            pairs.add_row(pair.true, pair.predicted, str(pair.images), f"{100 * pair.share:.1f} %")
        pairs.columns[2].justify = pairs.columns[3].justify = "right"
        parts.append(pairs)
    for part in parts[:2]:
        for column in part.columns[1:]:
            column.justify = "right"
    return Group(*parts)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
