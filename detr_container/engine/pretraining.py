"""What the weights are that a run starts from: of a run of ours its data, recipe, epochs and metric; else the file.

It is found out once, when the weights are read, and stays with the run: in its provenance and in its checkpoints, so
that a resume needs the file no more, and a run that starts from this one knows the whole chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detr_container.base.checked import Schema, mistakes, read_lines
from detr_container.base.files import sha256
from detr_container.config import settings as config
from detr_container.config.experiments import find
from detr_container.config.settings import Experiment
from detr_container.config.traits import NO_MATTER, traits_of

from .run import Run
from .run_files import EvaluationLine, Pretraining, ProvenanceLine
from .weight_files import of_backbone, read_weights

BACKBONE, INIT = "backbone.weights", "init"
"""The settings that name weights."""
_NAME = "backbone.name"


def pretraining(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """What each setting that names weights stands for, as `Pretraining` has it; empty: random weights.

    Raises ValueError or OSError where a file cannot be read.
    """
    flat = config.flatten(experiment)
    found = {}
    weights = flat.get(BACKBONE) or "none"
    if weights == "imagenet":
        # It imports torchvision, for which a run that needs none of it does not wait.
        from detr_container.models.weights.backbones import origin

        found[BACKBONE] = {"kind": "published", "name": origin(flat[_NAME], weights)}
    elif weights != "none":
        found[BACKBONE] = identity(of_backbone(weights), flat["backbone.file_weights"])
    if experiment.init:
        found[INIT] = identity(Path(experiment.init), experiment.init_weights)
    return found


def identity(path: Path, which: str = "auto") -> dict[str, Any]:
    """What a file of weights or a run's folder holds, as `Pretraining` has it. Raises ValueError or OSError.

    which: of averaged and raw weights, as the settings have it.
    """
    files, state = read_weights(path)
    file: dict[str, Any] = {"path": str(path), "file": str(files[0]), "sha256": _digest(files)}
    found = _of_checkpoint(files[0], state) or {"kind": "file"}
    if which == "model" and "ema" in state and "metric" in found:
        # A run evaluates its averaged weights where it has any.
        found["metric"] = found["metric"] | {"here": None}
    # What was changed by hand is not taken over.
    return file | (found if not mistakes(found, Pretraining) else {"kind": "file"})


def _of_checkpoint(file: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of a run says of itself, and what its run's folder adds; empty: it is of none."""
    settings, step, per_epoch = (state.get(key) for key in ("experiment", "step", "steps_per_epoch"))
    if not (isinstance(settings, dict) and isinstance(step, int) and isinstance(per_epoch, int) and per_epoch > 0):
        return {}
    try:
        experiment = config.from_dict(settings)
    except ValueError:
        # Of a task that is not installed here, or of another version.
        return {"kind": "checkpoint", "experiment": str(settings.get("name", "")), "step": step}
    run = Run(file.parent.parent)
    inside = run.exists and file.parent == run.checkpoints().folder
    found: dict[str, Any] = {"kind": "run" if inside else "checkpoint", "step": step, "epoch": step / per_epoch}
    found |= _recipe(experiment)
    data = state.get("data")
    hashes = {split: {"sha256": each} for split, each in data.items()} if isinstance(data, dict) else {}
    found |= _of_run(run, experiment, step, hashes) if inside else {"data": hashes}
    return found | ({"pretraining": state["pretraining"]} if "pretraining" in state else {})


def check_unchanged(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError when a run's folder has another newest checkpoint than before its weights were read."""
    for setting, each in found.items():
        folder = Path(each.get("path", ""))
        named = each["kind"] == "run" and folder.is_dir()
        # As it was read: a damaged checkpoint is passed over again.
        if named and read_weights(folder)[0] != [Path(each["file"])]:
            raise ValueError(
                f"{setting}={each['path']}: that run has written a checkpoint meanwhile, so it is not certain which "
                f"was read: wait for its end, or name one of its checkpoints ({each['file']})"
            )


def faults(found: object) -> list[str]:
    """What is wrong with what a checkpoint holds as its pretraining."""
    if not isinstance(found, dict):
        return [f"pretraining is a {type(found).__name__}, not what weights are"]
    wrong = (mistakes(each, Pretraining) for each in found.values())
    return [f"pretraining: {one}" for one in wrong if one]


def in_words(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each, as a run prints it at its start."""
    return [f"{setting.split('.')[0]} from {_words(each)}" for setting, each in found.items()]


def _words(each: Mapping[str, Any]) -> str:
    if each["kind"] == "published":
        return str(each.get("name"))
    return f"{each.get('path')}: {', '.join(_parts(each))}"


def _parts(each: Mapping[str, Any]) -> Iterator[str]:
    if each.get("epoch") is None:
        yield each.get("experiment") or f"SHA-256 {each.get('sha256', '')[:12]}"
        return
    yield each.get("backbone") or each.get("experiment") or each["kind"]
    of = "" if each["epoch"] == each.get("epochs") else f" of {each.get('epochs')}"
    share = (each.get("settings") or {}).get("data.fraction", 1)
    part = "" if share == 1 else f"{100 * share:g} % of "
    yield f"{each['epoch']:g}{of} epochs of {part}{Path(each.get('folder', '')).name or 'its data'}"
    metric = each.get("metric") or {}
    value = metric.get("here")
    if value is not None:
        yield f"{metric['label']} {metric['scale'] * value:.1f}{' %' if metric['scale'] == 100 else ''}"
    elif metric:
        yield f"{metric['label']} not evaluated"


def _digest(files: Sequence[Path]) -> str:
    """The SHA-256 of a file; of several, of their digests."""
    digests = [sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _recipe(experiment: Experiment) -> dict[str, Any]:
    """What a checkpoint's own settings say."""
    flat, traits = config.flatten(experiment), traits_of(type(experiment))
    named = find(experiment.name)
    differs = config.difference(named.experiment, experiment) if named else {}
    folders = experiment.data_folders
    return {
        "experiment": experiment.name,
        "task": experiment.task,
        "backbone": str(flat.get(_NAME, "")),
        "epochs": experiment.train.epochs,
        "seed": experiment.seed,
        "settings": {name: flat[name] for name in flat if name != _NAME and traits[name].topic != NO_MATTER},
        "difference": {name: {"named": a, "here": b} for name, (a, b) in differs.items()},
        "folder": str(folders[0]) if folders else "",
    }


def _of_run(run: Run, experiment: Experiment, step: int, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the folder of its run says beside: files that cannot be read say nothing."""
    rows, lines = _lines(run.evaluations_path, EvaluationLine), _lines(run.folder / "provenance.jsonl", ProvenanceLine)
    line = lines[-1] if lines else {}
    headline = experiment.metrics[0]
    values = {row["step"]: _number(row.get(headline.key)) for row in rows}
    metric = {
        "key": headline.key,
        "label": headline.label,
        "scale": headline.scale,
        "here": values.get(step),
        "last": values[max(values)] if values else None,
        "best": max((value for value in values.values() if value is not None), default=None),
    }
    noted = line.get("data") or {}
    versions = {split: {**noted.get(split, {}), **each} for split, each in (data or noted).items()}
    return {"metric": metric, "git": line.get("git"), "data": versions}


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _lines(path: Path, schema: type[Schema]) -> list[dict[str, Any]]:
    """The lines of a log that can be read."""
    unread: list[str] = []
    try:
        return read_lines(path, schema, unread)
    except (OSError, ValueError):
        return []
