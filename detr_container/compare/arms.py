"""The arms of a comparison: each is a model (a head on a backbone) with its settings, and has runs, one per seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_container.config.settings import Experiment

from .reading import RunRecord, head_of, label_of, settings_of


@dataclass(frozen=True)
class Arm:
    """One model with one set of settings. label: names it within its comparison; runs: one per seed."""

    label: str
    experiment: Experiment
    runs: tuple[RunRecord, ...]

    @property
    def head(self) -> str:
        """The head's name; empty where none is compared."""
        return head_of(self.experiment)

    @property
    def backbone(self) -> str:
        """The backbone's name, and what else distinguishes the arm from others with the same head."""
        return self.label.removeprefix(f"{self.head}, ")

    @property
    def seeds(self) -> list[int]:
        """Of all its runs, whether they can be used or not."""
        return [run.seed for run in self.runs if run.seed is not None]


def arms_of(records: Sequence[RunRecord]) -> tuple[list[Arm], dict[Path, str]]:
    """Group runs by their settings, in the order in which they first appear.

    Also returns why some belong to no arm: they have not started, their settings cannot be read, or another run has the
    same and the seed.
    """
    groups: dict[str, dict[tuple[int, str], RunRecord]] = {}
    left_out: dict[Path, str] = {}
    for record in records:
        if record.experiment is None:
            left_out[record.folder] = (
                f"its settings cannot be read: {record.faults[0]}"
                if record.folder.exists()
                else "there is no such folder: it has not started, or has another name"
            )
            continue
        group = groups.setdefault(json.dumps(settings_of(record.experiment)), {})
        # What noted no seed has drawn one of its own.
        key = (-1, str(record.folder)) if record.seed is None else (record.seed, "")
        other = group.setdefault(key, record)
        if other is not record:
            left_out[record.folder] = f"it has the settings and the seed of {other.folder}, so it adds nothing new"
    runs = [tuple(group[seed] for seed in sorted(group)) for group in groups.values()]
    experiments = [group[0].experiment for group in runs]
    known = [experiment for experiment in experiments if experiment is not None]
    return [
        Arm(label, experiment, group) for label, experiment, group in zip(_labels(known), known, runs, strict=True)
    ], left_out


def _labels(experiments: Sequence[Experiment]) -> list[str]:
    """Head and backbone, and of those that share both, the settings in which they differ."""
    short = [label_of(experiment) for experiment in experiments]
    labels = []
    for name, experiment in zip(short, experiments, strict=True):
        same = [settings_of(other) for other_name, other in zip(short, experiments, strict=True) if other_name == name]
        mine = settings_of(experiment)
        apart = [key for key in mine if len({json.dumps(other.get(key)) for other in same}) > 1]
        labels.append(", ".join([name, *(f"{_short(key, apart)}={_plain(mine[key])}" for key in apart)]))
    return labels


def _short(key: str, others: Sequence[str]) -> str:
    """A setting's own name, with its section where two of them share it."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in others) > 1 else last


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
