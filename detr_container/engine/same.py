"""Whether two runs are the same to the last bit: what an interruption must not change."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detr_container.base.checked import read_plain

from .checkpoint import load
from .run import Run

RESULTS = ("detections/*/detections.*", "detections/*/predictions.*")
"""What evaluations found, of whichever task and version: arrays, or COCO's JSON."""

SPEED = {"images_per_second", "data_wait", "memory_gib", "padding_waste"}
"""The fields of a line of metrics that measure this process rather than the training."""


def metrics(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of metrics without what measures the machine."""
    return [{k: v for k, v in row.items() if k not in SPEED} for row in Run(folder).metrics()]


def run_differences(a: Path, b: Path) -> list[str]:
    """In what the results of two runs differ: weights, optimizer, averages, metrics, evaluations and what these found.

    The newest checkpoints are compared without the settings they carry, in which an interrupted run may differ.
    Raises ValueError, naming the file, for what cannot be read.
    """
    first, second = (load(_newest(folder)) for folder in (a, b))
    for state in (first, second):
        state.pop("experiment")
    found = list(differences(first, second, "checkpoint"))
    found += differences(metrics(a), metrics(b), "metrics")
    found += differences(Run(a).evaluations(), Run(b).evaluations(), "evaluations")
    left, right = _results(a), _results(b)
    if left != right:
        names = ", ".join(str(path) for path in sorted({*left} ^ {*right}))
        return [*found, f"evaluations: {len(left)} files against {len(right)}, only one of them has {names}"]
    for path in left:
        found += differences(_content(a / path), _content(b / path), str(path))
    return found


def _results(run: Path) -> list[Path]:
    return sorted(path.relative_to(run) for pattern in RESULTS for path in run.glob(pattern))


def _content(path: Path) -> Any:
    """What a file of arrays or of JSON holds, as values that `differences` looks into."""
    if path.suffix == ".json":
        return read_plain(path)
    try:
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Put back a copy of it, or evaluate again") from error


def _newest(folder: Path) -> Path:
    paths = Run(folder).checkpoints().paths()
    if not paths:
        raise ValueError(f"{folder} has no checkpoint, so there is nothing to compare: train it first")
    return paths[0]


def differences(a: Any, b: Any, where: str) -> Iterator[str]:
    """Where two values differ, tensors, dicts and lists looked into; nothing when they are equal to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            yield f"{where}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}"
        elif not torch.equal(a, b):
            yield f"{where} differs by up to {(a - b).abs().max():.3g}"
    elif isinstance(a, dict | list) and type(a) is type(b):
        left, right = (value if isinstance(value, dict) else dict(enumerate(value)) for value in (a, b))
        if left.keys() != right.keys():
            yield f"{where}: only one of them has {sorted(map(str, left.keys() ^ right.keys()))}"
        for key in (key for key in left if key in right):
            yield from differences(left[key], right[key], f"{where}[{key!r}]")
    elif a != b:
        yield f"{where}: {a!r} against {b!r}"
