"""What the checker found, for people: problems by kind, with examples, and the counts of every split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size

from detr_container.base.terminal import shown

from .annotations import Annotations, Category, Problem
from .records import Severity

LONGEST_NAME = 60
"""Letters of a class's name in the table; messages have all of them."""
MOST_CLASSES = 40
"""Rows of the table of image folders."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class SplitSummary:
    """The counts of one split, counted as training sees it: objects are not crowd and have an area."""

    name: str
    images: int
    objects: int
    crowd: int
    images_without_objects: int
    most_objects: int
    most_objects_image: int
    """The id of the image with the most objects."""
    per_class: tuple[tuple[Category, int], ...]


@dataclass(frozen=True)
class Report:
    """The problems of a data set; a kind of data set adds what there is to count of it."""

    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        """How many errors there are; a data set with any should not be trained on."""
        return self.count("error")

    @property
    def warnings(self) -> int:
        """How many warnings there are."""
        return self.count("warning")

    def count(self, severity: Severity) -> int:
        """Count the problems of one severity."""
        return sum(problem.severity == severity for problem in self.problems)

    def lines(self, examples: int = 5) -> list[str]:
        """Render the report; at most this many examples of every kind of problem."""
        lines: list[str] = []
        for severity in SEVERITIES:
            kinds: dict[str, list[str]] = {}
            for problem in self.problems:
                if problem.severity == severity:
                    kinds.setdefault(problem.kind, []).append(problem.message)
            for kind, messages in kinds.items():
                lines.append(f"{severity}: {kind} ({len(messages)})")
                lines += [f"  {message}" for message in messages[:examples]]
                if len(messages) > examples:
                    lines.append(f"  ... and {len(messages) - examples} more")
        lines += self.table()
        counts = [(self.count(severity), severity) for severity in SEVERITIES]
        lines.append(", ".join(f"{count} {severity}{'s' * (count != 1)}" for count, severity in counts))
        # Names of files and classes need not be text that every terminal can show.
        return [shown(line) for line in lines]

    def table(self) -> list[str]:
        """What was counted, for people."""
        return []


@dataclass(frozen=True)
class DetectionReport(Report):
    """The problems and the counts of a detection data set."""

    summaries: tuple[SplitSummary, ...]

    def table(self) -> list[str]:
        """See `Report`."""
        lines = [line for summary in self.summaries for line in _summary_lines(summary)]
        return lines + _class_lines(self.summaries)


@dataclass(frozen=True)
class FolderReport(Report):
    """The problems of image folders, and by split the images of each class."""

    counts: tuple[tuple[str, dict[str, int]], ...]

    def table(self) -> list[str]:
        """See `Report`; of many classes, those with the fewest and the most images of the first split."""
        lines = [
            f"{split}: {sum(counts.values())} images of {len(counts)} classes"
            + (f", {min(counts.values())} to {max(counts.values())} of each" if counts else "")
            for split, counts in self.counts
        ]
        names = sorted({name for _, counts in self.counts for name in counts})
        if not names:
            return lines
        left_out = max(0, len(names) - MOST_CLASSES)
        if left_out:
            first = self.counts[0][1]
            names.sort(key=lambda name: first.get(name, 0))
            names = names[: MOST_CLASSES // 2] + names[-MOST_CLASSES // 2 :]
        width = max(cell_len(short_name(name)) for name in ("class", *names))
        lines.append(f"{'class':<{width}}" + "".join(f" {split:>9}" for split, _ in self.counts))
        for place, name in enumerate(names):
            if left_out and place == MOST_CLASSES // 2:
                lines.append(f"... {left_out} classes between these")
            cells = "".join(f" {counts.get(name, '-'):>9}" for _, counts in self.counts)
            lines.append(f"{set_cell_size(short_name(name), width)}{cells}")
        return lines


def summarise(name: str, annotations: Annotations) -> SplitSummary:
    """Count what training will see of a split."""
    single = ~annotations.crowd & np.all(annotations.boxes[:, 2:] > 0, axis=1)
    image = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.starts))
    per_image = np.bincount(image[single], minlength=len(annotations.image_ids))
    per_class = np.bincount(annotations.labels[single], minlength=len(annotations.categories))
    busiest = int(per_image.argmax()) if len(per_image) else 0
    return SplitSummary(
        name=name,
        images=len(annotations.image_ids),
        objects=int(single.sum()),
        crowd=int(annotations.crowd.sum()),
        images_without_objects=int((per_image == 0).sum()),
        most_objects=int(per_image[busiest]) if len(per_image) else 0,
        most_objects_image=int(annotations.image_ids[busiest]) if len(per_image) else 0,
        per_class=tuple(zip(annotations.categories, per_class.tolist(), strict=True)),
    )


def _summary_lines(summary: SplitSummary) -> list[str]:
    return [
        f"{summary.name}: {summary.images} images ({summary.images_without_objects} without objects), "
        f"{summary.objects} objects, {summary.crowd} crowd regions",
        f"{summary.name}: at most {summary.most_objects} objects in one image (image {summary.most_objects_image}); "
        "choose head.queries well above that",
    ]


def _class_lines(summaries: tuple[SplitSummary, ...]) -> list[str]:
    """Render a table: one row a class, one column of object counts a split."""
    counts: dict[Category, dict[str, int]] = {}
    for summary in summaries:
        for category, count in summary.per_class:
            counts.setdefault(category, {})[summary.name] = count
    if not counts:
        return []
    shorts = {category: short_name(category.name) for category in counts}
    width = max(map(cell_len, ("class", *shorts.values())))
    names = [summary.name for summary in summaries]
    lines = [f"{'class':<{width}} {'id':>6}" + "".join(f" {name:>9}" for name in names)]
    for category in sorted(counts, key=lambda category: category.id):
        cells = "".join(f" {counts[category].get(name, '-'):>9}" for name in names)
        lines.append(f"{set_cell_size(shorts[category], width)} {category.id:>6}{cells}")
    return lines


def short_name(name: str) -> str:
    """A class's name as it stands in a table."""
    text = shown(name)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
