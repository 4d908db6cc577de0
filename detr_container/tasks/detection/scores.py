"""COCO's metrics of a detector, twelve of boxes and six of masks: their names, and how they are kept and shown.

Metrics are fractions, 0 to 1; one that has no ground truth to stand on is None (COCO: -1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
MASK_METRICS = {f"mask_{name}": f"mask {label}" for name, label in METRICS.items() if name.startswith("ap")}
"""Those of masks, where there are any: their names in files and in print."""
_OF_CLASS = ("mask_ap", "mask_ap50")


class ClassScore(NamedTuple):
    """One class: AP over all thresholds, AP at IoU 0.5, and its objects in the scored images, crowds not counted."""

    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    ground_truths: int


class MaskClassScore(NamedTuple):
    """One class's masks: AP over all thresholds, and AP at IoU 0.5."""

    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class MaskScores:
    """COCO's average precision of masks, and one line per class in the order of `Scores.per_class`."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    per_class: tuple[MaskClassScore, ...]

    def to_dict(self) -> dict[str, float | None]:
        """The metrics by `MASK_METRICS`, those of classes not among them."""
        return {name: getattr(self, name.removeprefix("mask_")) for name in MASK_METRICS}


@dataclass(frozen=True)
class Scores:
    """COCO's twelve metrics, one line per class in the file's order of ids, and how many images were scored.

    masks: None where there are none to score.
    """

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
    masks: MaskScores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Describe the scores as JSON has it, masks' by keys of their own; `from_dict` reads it back unchanged."""
        values = {**dataclasses.asdict(self), "per_class": [row._asdict() for row in self.per_class]}
        del values["masks"]
        if self.masks is not None:
            values |= self.masks.to_dict()
            for row, masks in zip(values["per_class"], self.masks.per_class, strict=True):
                row |= dict(zip(_OF_CLASS, masks, strict=True))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """Make the scores that `to_dict` described."""
        own = {name: value for name, value in values.items() if name not in MASK_METRICS}
        rows = [{name: value for name, value in row.items() if name not in _OF_CLASS} for row in values["per_class"]]
        masks = None
        if "mask_ap" in values:
            classes = tuple(MaskClassScore(*(row[name] for name in _OF_CLASS)) for row in values["per_class"])
            masks = MaskScores(**{name.removeprefix("mask_"): values[name] for name in MASK_METRICS}, per_class=classes)
        return cls(**{**own, "per_class": tuple(ClassScore(**row) for row in rows), "masks": masks})


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _ranked(scores: Scores) -> list[tuple[ClassScore, list[str]]]:
    """Sort classes from the best AP to the worst, those without objects last; with what their lines show.

    That is the class's AP and AP50, those of its masks where there are any, and its objects.
    """
    masks = scores.masks.per_class if scores.masks else ((),) * len(scores.per_class)
    rows = [
        (row, [*map(_percent, (row.ap, row.ap50, *more)), str(row.ground_truths)])
        for row, more in zip(scores.per_class, masks, strict=True)
    ]
    return sorted(rows, key=lambda each: (each[0].ap is None, -(each[0].ap or 0.0), each[0].name))


def _class_columns(scores: Scores) -> list[str]:
    return ["AP", "AP50", *(MASK_METRICS[name] for name in _OF_CLASS if scores.masks), "objects"]


def table(scores: Scores) -> RenderableType:
    """Make tables for the terminal, in per cent: COCO's metrics, then every class from the best to the worst."""
    names, areas = list(METRICS), ("small", "medium", "large")
    precision = ("AP", "AP50", "AP75", *areas)
    overall = Table("", *precision, title=f"Box AP, {scores.images} images")
    overall.add_row("AP", *(_percent(getattr(scores, name)) for name in names[:6]))
    recall = Table("", *("1", "10", "100", *areas), title="Average recall")
    recall.add_row("AR", *(_percent(getattr(scores, name)) for name in names[6:]))
    parts = [overall, recall]
    if scores.masks:
        masks = Table("", *precision, title=f"Mask AP, {scores.images} images")
        masks.add_row("mask AP", *map(_percent, scores.masks.to_dict().values()))
        parts.insert(1, masks)
    classes = Table("class", *_class_columns(scores), title="By class")
    for row, cells in _ranked(scores):
        classes.add_row(row.name, *cells)
    parts.append(classes)
    for part in parts:
        for column in part.columns[1:]:
            column.justify = "right"
    return Group(*parts)


def _table_cell(name: str) -> str:
    return " ".join(name.split()).replace("|", "\\|")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown(scores: Scores) -> str:
    """Write the same tables as Markdown, metrics in per cent."""
    columns = _class_columns(scores)
    blocks = [(METRICS, {name: getattr(scores, name) for name in METRICS})]
    if scores.masks:
        blocks.append((MASK_METRICS, scores.masks.to_dict()))
    lines = [f"{scores.images} images", ""]
    for labels, values in blocks:
        lines += [_markdown_row(labels.values()), _markdown_row(["---:"] * len(labels))]
        lines += [_markdown_row(map(_percent, values.values())), ""]
    lines += [_markdown_row(["class", *columns]), _markdown_row([":---", *["---:"] * len(columns)])]
    lines += [_markdown_row([_table_cell(row.name), *cells]) for row, cells in _ranked(scores)]
    return "\n".join(lines) + "\n"
