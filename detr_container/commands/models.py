"""The commands that open a trained model, of whichever task: evaluate, predict, export.

Each finds out of which task the model is and hands over to that task's own command, which has options of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import classifiers, detectors
from .which_task import task_of

Command = Callable[[Sequence[str], str], int]
"""One task's: its options, and what its help begins with."""


def evaluate(arguments: Sequence[str]) -> int:
    """How good a model is on a data set: AP of a detector, top-1 of a classifier: `evaluate RUN|CHECKPOINT`."""
    return _handed_over("evaluate", arguments, evaluate.__doc__, detectors.evaluate, classifiers.evaluate)


def predict(arguments: Sequence[str]) -> int:
    """What a model finds in images, as JSON and as images: `predict RUN|CHECKPOINT IMAGES...`."""
    return _handed_over("predict", arguments, predict.__doc__, detectors.predict, classifiers.predict)


def export(arguments: Sequence[str]) -> int:
    """Save a trained model's weights under the names of other code: `export RUN|CHECKPOINT FILE --layout ...`."""
    return _handed_over("export", arguments, export.__doc__, detectors.export, classifiers.export)


def _handed_over(name: str, arguments: Sequence[str], doc: str | None, detector: Command, classifier: Command) -> int:
    """Let the command of the model's task do it. Raises ValueError for a model of a task that has no such command."""
    task, rest = task_of(arguments)
    commands = {"detection": detector, "classification": classifier}
    if task not in commands:
        raise ValueError(f"`{name}` knows models of {' and '.join(commands)}, and this is one of {task}")
    other = next(each for each in commands if each != task)
    about = (
        f"{(doc or '').strip()} These are the options for models of {task}; `detr-container {name} --task {other} "
        f"--help` lists those for {other}. Without --task the model itself says which it is of."
    )
    return commands[task](rest, about)
