"""What the processes of an evaluation decide from files: by the main one for all, or compared over all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detr_container.config.classification import ClassificationExperiment, FoldersConfig
from detr_container.datasets.folders import ImageFolder, open_folder
from detr_container.engine.resume import content_hash
from detr_container.engine.session import Session

from .build import make_shapes_if_asked
from .class_names import matched
from .trained import Trained


def trained_on_all(session: Session, source: str, opened: Callable[[str], Trained]) -> Trained:
    """A trained classifier on every process: the main one chooses the file, and all must have read the same."""
    trained = None
    with session.together():
        if session.main:
            trained = opened(source)
    chosen = session.of_main(trained.source if trained else "")
    with session.together():
        trained = trained or opened(chosen)
    session.agree({f"the weights of {chosen}": f"SHA-256 {content_hash(trained.model.state_dict())}"})
    return trained


def validation_on_all(
    session: Session, experiment: ClassificationExperiment, trained: Trained
) -> tuple[ImageFolder, str]:
    """The validation split with labels that are the model's rows, and how they were found; listed by the main process.

    Raises ValueError for a split whose classes are not the model's.
    """
    found = None
    with session.together():
        if session.main:
            data = experiment.data
            make_shapes_if_asked(data)
            found = matched(open_folder(_validation(data)), trained.classes, trained.rows)
    images, words = session.of_main(found)
    return images, words


def _validation(data: FoldersConfig) -> Path:
    """The validation split's folder. Raises ValueError where nothing names it."""
    if data.val_images is not None:
        return data.val_images
    if data.root is not None:
        return data.root / "val"
    raise ValueError(
        "the model states no data: name a folder with a folder of images per class (--images FOLDER), or one with val/ "
        "in it (--data-root ROOT)"
    )
