"""Of which task a model is, found out before any option is read, since each task's commands have their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detr_container.base.checked import read_plain
from detr_container.config.experiments import find
from detr_container.config.tasks import known

USUAL = "detection"
"""What a model is taken for that says nothing; whatever is wrong with its file is then named."""
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar", ".pkl", ".pickle")
_DETECTOR = re.compile(
    r"(^|[._])(query_embed|query_position_embeddings|class_embed|bbox_embed|class_labels_classifier|cls_score)"
)
"""The names of the layers that tell a published file of a detector from one of a classifier."""


def task_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The task that `--task` names or that the model on a command line is of, and the arguments without `--task`.

    Raises ValueError for a task that there is not.
    """
    given, rest = _without_task(arguments)
    if given is not None:
        return given, rest
    named = [after for before, after in _pairs(rest) if before == "--experiment"]
    found = _of_words(rest) or next((entry.experiment.task for name in named if (entry := find(name))), "")
    return found or ("classification" if any(before == "--backbone" for before, _ in _pairs(rest)) else USUAL), rest


def _of_words(words: Sequence[str]) -> str:
    """The task of the first word that is a model; a word behind an option only where no other is."""
    values = {place + 1 for place, word in enumerate(words) if word.startswith("-") and "=" not in word}
    plain = [word for place, word in enumerate(words) if place not in values and not word.startswith("-")]
    behind = [word for place, word in enumerate(words) if place in values and not word.startswith("-")]
    return next((task for word in (*plain, *behind) if (task := of_model(word))), "")


def _without_task(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    rest: list[str] = []
    task: str | None = None
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--task":
            rest.append(word)
            continue
        task = value if equals else next(words, "")
        if task not in known():
            near = difflib.get_close_matches(task, known(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(known())}"
            raise ValueError(f"--task {task or '(nothing)'}: there is no such task, {hint}")
    return task, rest


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with what stands behind it, `--name=value` or `--name value`."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            yield name, value if equals else following


def of_model(word: str) -> str:
    """The task of a run's folder, of a checkpoint or published file, or of `timm/NAME`; empty for anything else."""
    path = Path(word)
    if path.is_dir():
        return _of_run(path) or _of_file(path)
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            return ""
        # A run's own checkpoint, which need not be read for it.
        return (path.parent.name == "checkpoints" and _of_run(path.parent.parent)) or _of_file(path)
    return "classification" if word.startswith("timm/") else ""


def _of_run(folder: Path) -> str:
    from detr_container.engine.run import Run

    run = Run(folder)
    try:
        return run.experiment().task if run.exists else ""
    except (ValueError, OSError):
        # Whoever opens it says what is wrong, and knows the options of its task.
        return _written(run.config_path)


def _written(config: Path) -> str:
    """The task that a configuration of another version, or with a mistake in it, says it is of."""
    try:
        task = _stated(read_plain(config))
    except (ValueError, OSError):
        return ""
    return task if task in known() else ""


def _of_file(path: Path) -> str:
    """By what a file says of itself, or by the names of its tensors."""
    from detr_container.engine.weight_files import is_weights_folder, load_weights
    from detr_container.models.weights.find import CLASSIFIER, find_weights

    if path.is_dir() and not is_weights_folder(path):
        return ""
    try:
        checkpoint = load_weights(path)
        stated = _stated(checkpoint.get("experiment"))
        names = () if stated else tuple(find_weights(checkpoint).state)
    except (ValueError, OSError):
        return ""
    if stated or any(map(_DETECTOR.search, names)):
        return stated or "detection"
    return "classification" if any(map(CLASSIFIER.search, names)) else ""


def _stated(experiment: Any) -> str:
    """The task of an experiment within a checkpoint; before there was a second task, none said so."""
    return str(experiment.get("task", "detection")) if isinstance(experiment, Mapping) else ""
