"""Weights from a file, from a run's folder, or from a folder of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detr_container.base.checked import PathText, Schema, read_json

from .checkpoint import load
from .run import Run

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX = tuple(f"{name}.index.json" for name in WEIGHT_FILES)


class ShardsFile(Schema):
    """The index of a model's shards: the file of each tensor."""

    weight_map: dict[str, PathText]


def is_weights_folder(path: Path) -> bool:
    """Whether a folder is one of Hugging Face's, with weights or the index of their shards."""
    return path.is_dir() and any((path / name).is_file() for name in (*WEIGHT_FILES, *_INDEX))


def of_backbone(weights: str) -> Path:
    """What `backbone.weights` names, where it is neither `imagenet` nor `none`. Raises FileNotFoundError."""
    if not Path(weights).exists():
        raise FileNotFoundError(f"backbone.weights={weights}: neither `imagenet` nor `none`, nor a file that is there")
    return Path(weights)


def check_target(target: Path, source: str | Path) -> None:
    """Raise ValueError where an export to `target` would replace what it is made from, or what a run resumes from."""
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise ValueError(f"{target} is what is to be exported, and would be replaced: choose another name")
    run = Run(target.resolve().parent.parent)
    if run.exists and target.resolve().parent == run.checkpoints().folder.resolve():
        raise ValueError(
            f"{target} would be among the checkpoints from which {run.folder} resumes: choose another folder"
        )


def load_weights(path: Path) -> dict[str, Any]:
    """A checkpoint's content from a file, a run's folder (its newest) or one of Hugging Face, shards put together."""
    return read_weights(path)[1]


def read_weights(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """As `load_weights`, with the files that hold it. Raises ValueError or OSError where there is none to be read."""
    if not is_weights_folder(path):
        if not Run(path).exists:
            return [path], load(path)
        found = Run(path).checkpoints().newest()
        if found is None:
            raise ValueError(f"{path} has no checkpoint yet: train it first, or wait for its first epoch")
        return [found[0]], found[1]
    name = next(name for name in (*WEIGHT_FILES, *_INDEX) if (path / name).is_file())
    if name in WEIGHT_FILES:
        return [path / name], load(path / name)
    files = set(read_json(path / name, ShardsFile)["weight_map"].values())
    bad = [file for file in files if Path(file).name != file]
    if not files or bad:
        raise ValueError(f"{path / name} names no shards beside it{f': {bad[0]!r}' if bad else ''}. Download it again")
    whole: dict[str, Any] = {}
    for file in sorted(files):
        whole |= load(path / file)
    return [path / file for file in sorted(files)], whole
