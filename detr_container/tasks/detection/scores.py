"""COCO's twelve metrics of a detector: their names, and how they are kept and shown.

Metrics are fractions, 0 to 1; one that has no ground truth to stand on is None (COCO: -1).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table

METRICS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR 1",
    "ar10": "AR 10",
    "ar100": "AR 100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
"""COCO's twelve metrics in COCO's order: their names here and in print."""


class ClassScore(NamedTuple):
    """One class: AP over all thresholds, AP at IoU 0.5, and its objects in the scored images, crowds not counted."""

    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    ground_truths: int


@dataclass(frozen=True)
class Scores:
    """COCO's twelve metrics, one line per class in the file's order of ids, and how many images were scored."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: tuple[ClassScore, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Describe the scores as JSON has it; `from_dict` reads it back unchanged."""
        return {**dataclasses.asdict(self), "per_class": [row._asdict() for row in self.per_class]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """Make the scores that `to_dict` described."""
        return cls(**{**values, "per_class": tuple(ClassScore(**row) for row in values["per_class"])})


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _ranked(scores: Scores) -> list[ClassScore]:
    """Sort classes from the best AP to the worst; those without objects last."""
    return sorted(scores.per_class, key=lambda row: (row.ap is None, -(row.ap or 0.0), row.name))


def table(scores: Scores) -> RenderableType:
    """Make tables for the terminal, in per cent: the twelve metrics, then every class from the best to the worst."""
    names = list(METRICS)
    overall = Table("", *("AP", "AP50", "AP75", "small", "medium", "large"), title=f"Box AP, {scores.images} images")
    overall.add_row("AP", *(_percent(getattr(scores, name)) for name in names[:6]))
    recall = Table("", *("1", "10", "100", "small", "medium", "large"), title="Average recall")
    recall.add_row("AR", *(_percent(getattr(scores, name)) for name in names[6:]))
    classes = Table("class", "AP", "AP50", "objects", title="By class")
    for row in _ranked(scores):
        classes.add_row(row.name, _percent(row.ap), _percent(row.ap50), str(row.ground_truths))
    for part in (overall, recall, classes):
        for column in part.columns[1:]:
            column.justify = "right"
    return Group(overall, recall, classes)


def _table_cell(name: str) -> str:
    return " ".join(name.split()).replace("|", "\\|")


def markdown(scores: Scores) -> str:
    """Write the same tables as Markdown, metrics in per cent."""
    metrics = [_percent(getattr(scores, name)) for name in METRICS]
    classes = [
        f"| {_table_cell(row.name)} | {_percent(row.ap)} | {_percent(row.ap50)} | {row.ground_truths} |"
        for row in _ranked(scores)
    ]
    lines = [
        f"{scores.images} images",
        "",
        "| " + " | ".join(METRICS.values()) + " |",
        "| " + " | ".join(["---:"] * len(METRICS)) + " |",
        "| " + " | ".join(metrics) + " |",
        "",
        "| class | AP | AP50 | objects |",
        "| :--- | ---: | ---: | ---: |",
        *classes,
    ]
    return "\n".join(lines) + "\n"
