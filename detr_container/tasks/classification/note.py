"""What a file that `export` wrote says of itself: the network, the images that it takes, the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from detr_container.base.checked import Schema, mistakes, read_plain
from detr_container.config.backbones import BackboneConfig
from detr_container.config.classification import ClassificationExperiment, FoldersConfig
from detr_container.config.settings import validate

KEY = "about"
"""Where it is in a file of torch.save."""
_Side = Annotated[int, Field(gt=0)]


class NoteFile(Schema):
    """What is read of it again; sides in pixels."""

    architecture: str
    library: Literal["timm", "torchvision", "CONTAINER"]
    classes: list[str]
    input_size: Annotated[list[_Side], Field(min_length=3, max_length=3)]
    trained_at: _Side
    crop_ratio: float
    interpolation: Literal["bicubic", "bilinear"]
    grey: bool


def beside(path: Path) -> Path:
    """The file of JSON that holds the same, which a file of safetensors cannot."""
    return path.with_name(path.name + ".json")


def read_note(path: Path, checkpoint: Mapping[str, Any]) -> tuple[ClassificationExperiment, tuple[str, ...]] | None:
    """The settings to evaluate an exported file with, and its classes; None for a file that `export` did not write.

    Raises ValueError for a note that was changed to what cannot be.
    """
    note = checkpoint.get(KEY)
    if note is None and path.suffix == ".safetensors" and beside(path).is_file():
        note = read_plain(beside(path))
    if note is None or mistakes(note, NoteFile):
        # Other programs have such keys and files, too.
        return None
    network = f"timm/{note['architecture']}" if note["library"] == "timm" else note["architecture"]
    data = FoldersConfig(
        size=note["trained_at"],
        eval_size=note["input_size"][-1],
        crop_ratio=note["crop_ratio"],
        interpolation=note["interpolation"],
        grey=note["grey"],
    )
    backbone = BackboneConfig(name=network, weights="none", frozen_stages=0, norm="batch")
    settings = ClassificationExperiment(backbone=backbone, data=data)
    try:
        validate(settings)
    except ValueError as error:
        raise ValueError(f"{path}: what it says of itself: {error}. Export it again") from error
    return settings, tuple(note["classes"])
