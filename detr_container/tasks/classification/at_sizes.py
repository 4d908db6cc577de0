"""A trained classifier on a whole split, at one input size or at several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from detr_container.config.classification import ClassificationExperiment
from detr_container.datasets.folders import ImageFolder
from detr_container.engine.session import Session

from .build import evaluation_images
from .evaluate import evaluate_to
from .scores import Scores, table
from .trained import Trained


def evaluate_at(
    sizes: Sequence[int],
    folder: Path,
    trained: Trained,
    images: ImageFolder,
    experiment: ClassificationExperiment,
    session: Session,
) -> dict[int, Scores]:
    """Evaluate at each size in turn; the first one's results go to `folder`, others' to `folder`/size-N.

    images: with labels that are the model's rows; experiment: with the data that these are of. Returns the scores by
    size, on the main process alone. Raises ValueError, before anything is evaluated, for a size that the model does
    not take.
    """
    each = list(dict.fromkeys(sizes))
    for size in each:
        trained.check_size(size)
    found = {}
    for place, size in enumerate(each):
        mine = replace(experiment, data=replace(experiment.data, eval_size=size))
        target = folder / f"size-{size}" if place else folder
        scores = evaluate_to(target, trained.model, evaluation_images(images, mine), mine, session)
        if scores is not None:
            found[size] = scores
    return found


def summary(found: dict[int, Scores], trained: Trained) -> Iterator[RenderableType]:
    """What to print: of several sizes a table by size, and the first one's classes and mistakes."""
    if len(found) > 1:
        by_size = Table("pixels", "top-1", "top-5", "loss", title="By input size")
        for size, scores in found.items():
            by_size.add_row(f"{size}", f"{100 * scores.top1:.2f}", f"{100 * scores.top5:.2f}", f"{scores.loss:.4f}")
        for column in by_size.columns:
            column.justify = "right"
        yield by_size
    yield table(next(iter(found.values())))
