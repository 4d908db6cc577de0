"""A run is a folder with a stable name, which holds everything that is known of it.

config.json  difference.json  classes.json  provenance.jsonl   what was run, by what
metrics.jsonl  evaluations.jsonl  tensorboard/                   how it went
checkpoints/  detections/  curves.png  predictions.png           what came out
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_container.base.checked import read_lines
from detr_container.base.files import JsonLines, write_json, write_jsonl
from detr_container.config import settings as config
from detr_container.config.experiments import find
from detr_container.config.settings import Experiment
from detr_container.config.traits import traits_of

from .run_files import EvaluationLine, MetricsLine

if TYPE_CHECKING:
    from .checkpoint import Checkpoints

_log = logging.getLogger(__name__)

# Where a run is written, folders before what is in them.
WRITTEN = (
    *(".lock", "*.json", "*.jsonl", "*.png", "log.txt", "tensorboard", "tensorboard/*", "checkpoints", "checkpoints/*"),
    *("detections", "detections/*", "detections/*/*", "evaluation", "evaluation/*"),
    *("job", "job/*", "job/attempts/*", "job/submissions/*"),
)


def evaluation_of(run: Path, epoch: int) -> Path:
    """The folder that a run keeps what an epoch's evaluation found in."""
    return run / "detections" / f"epoch-{epoch:03d}"


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_path = folder / "config.json"
        self.metrics_path = folder / "metrics.jsonl"
        self.evaluations_path = folder / "evaluations.jsonl"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_path.is_file()

    def experiment(self) -> Experiment:
        """The run's configuration. Raises ValueError when the folder is no run."""
        if not self.exists:
            raise ValueError(f"{self.folder} is not a run: it has no config.json. `train` makes one")
        return config.load(self.config_path)

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """The run's checkpoints."""
        # Here, since it needs torch, which whoever only looks at runs need not wait for.
        from .checkpoint import Checkpoints

        return Checkpoints(self.folder / "checkpoints", keep)

    def metrics(self, faults: list[str] | None = None) -> list[dict[str, Any]]:
        """The lines of metrics so far; faults: see `read_lines`."""
        return read_lines(self.metrics_path, MetricsLine, faults) if self.metrics_path.exists() else []

    def evaluations(self, faults: list[str] | None = None) -> list[dict[str, Any]]:
        """The evaluations so far, one per evaluated epoch; faults: see `read_lines`."""
        return read_lines(self.evaluations_path, EvaluationLine, faults) if self.evaluations_path.exists() else []

    def check_resumable(
        self, experiment: Experiment, path: Path, state: Mapping[str, Any], steps_per_epoch: int
    ) -> dict[str, tuple[Any, Any]]:
        """What differs from the settings that a checkpoint of this run carries.

        Raises ValueError when it is no checkpoint of a run, or one of another model, loss or training set.
        """
        if not {"optimizer", "step", "steps_per_epoch", "meters", "experiment"} <= state.keys():
            raise ValueError(f"{path} is not a checkpoint of a run, so it cannot be resumed: use --init {path}")
        changed = changes(path, config.from_dict(state["experiment"]), experiment)
        if state["steps_per_epoch"] != steps_per_epoch:
            raise ValueError(
                f"the training set has changed: an epoch had {state['steps_per_epoch']} steps, now {steps_per_epoch}. "
                "Put the data back, or start another run (--run NAME) from this one with --init"
            )
        return changed

    def describe(self, experiment: Experiment, files: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write what this run is, and one more line of provenance.

        files: the task's own, by name, as JSON has them; facts: what only this start knows.
        """
        from .provenance import provenance

        known = find(experiment.name)
        base = known.experiment if known else experiment
        write_json(self.config_path, config.to_dict(experiment))
        changed = {name: {"named": a, "here": b} for name, (a, b) in config.difference(base, experiment).items()}
        write_json(self.folder / "difference.json", changed)
        for name, content in files.items():
            write_json(self.folder / name, content)
        with JsonLines(self.folder / "provenance.jsonl") as lines:
            lines.append({**provenance(), **facts})

    def rewind(self, step: int) -> None:
        """Forget metrics and evaluations that ran ahead of the checkpoint at `step`; they will be made again."""
        for path, lines in ((self.metrics_path, self.metrics), (self.evaluations_path, self.evaluations)):
            if path.exists():
                records = lines()
                kept = [record for record in records if record["step"] <= step]
                if len(kept) < len(records):
                    write_jsonl(path, kept)


def changes(source: Path, old: Experiment, new: Experiment) -> dict[str, tuple[Any, Any]]:
    """The settings in which a run would resume differently.

    source: where the old settings were read. Raises ValueError for those with which it would be another run.
    """
    changed = config.difference(old, new)
    traits = traits_of(type(new))
    barred = {k: change for k, change in changed.items() if k not in traits or not traits[k].resume.may_change}
    if barred:
        listed = "; ".join(f"{name} was {was!r}, now {now!r}" for name, (was, now) in barred.items())
        raise ValueError(
            f"{source} is of another model or loss: {listed}. Choose another folder with --run NAME, "
            "or give the settings it was started with"
        )
    return changed
