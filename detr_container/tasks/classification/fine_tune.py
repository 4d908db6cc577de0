"""A classifier that starts from another one's checkpoint: all of it, and the rows of the classes that both know."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_container.config.classification import ClassificationExperiment
from detr_container.engine.weight_files import load_weights
from detr_container.models.classifier import ImageClassifier
from detr_container.models.weights.find import check_sound, find_weights
from detr_container.models.weights.fit import listed, state_faults

from .build import model_of

_log = logging.getLogger(__name__)
_COUNT = "num_batches_tracked"
_NAMED = 8
"""Classes that are listed by name."""


@torch.no_grad()
def start_from(model: ImageClassifier, experiment: ClassificationExperiment, classes: Sequence[str], path: Path) -> str:
    """Load a checkpoint of this network, trained on any classes; rows are carried over where names agree.

    Returns what was taken, in words. Raises ValueError, before anything is loaded, for what is none or does not fit.
    """
    checkpoint = load_weights(path)
    theirs = _classes(checkpoint.get("classes"), path)
    try:
        found = find_weights(checkpoint, experiment.init_weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for remark in found.remarks(path, "init_weights"):
        _log.warning("%s", remark)
    own = model.state_dict()
    rows = _class_rows(own, experiment, len(classes))
    wanted = {
        name: value.new_empty(len(theirs), *value.shape[1:]) if name in rows else value for name, value in own.items()
    }
    # Frozen norms count no batches, though files may have the count.
    taken = {name: value for name, value in found.state.items() if name in own or not name.endswith(_COUNT)}
    faults = state_faults(wanted, taken, (_COUNT,))
    if faults:
        raise ValueError(
            f"init={path} does not fit this model: {listed(faults)}. Make backbone.* and data.size those of the "
            "checkpoint, or give other networks' weights as backbone.weights"
        )
    check_sound(taken, path)
    twice = {name for name, count in Counter(map(str.lower, theirs)).items() if count > 1}
    place = {name.lower(): row for row, name in enumerate(theirs) if name.lower() not in twice}
    pairs = [(row, place[name.lower()]) for row, name in enumerate(classes) if name.lower() in place]
    for name in rows:
        taken[name] = own[name].clone()
        for row, other in pairs:
            taken[name][row] = found.state[name][other]
    model.load_state_dict(taken, strict=False)
    kept = {row for row, _ in pairs}
    fresh = [name for row, name in enumerate(classes) if row not in kept]
    return (
        f"loaded {len(taken)} tensors from {path}; class rows kept for {len(pairs)}"
        f"{_some([classes[row] for row, _ in pairs])}, started anew for {len(fresh)}{_some(fresh)}"
    )


def _classes(found: Any, path: Path) -> list[str]:
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"init={path} is no checkpoint of a classification run, which has a list of class names: give other "
            "weights as backbone.weights"
        )
    return found


def _class_rows(own: dict[str, Tensor], experiment: ClassificationExperiment, classes: int) -> list[str]:
    """The names of the tensors that have a row for each class: those that one class more would make longer."""
    other = model_of(experiment, classes + 1, weights=False).state_dict()
    return [name for name, value in own.items() if other[name].shape != value.shape]


def _some(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" ({', '.join(names[:_NAMED])}{more})"
