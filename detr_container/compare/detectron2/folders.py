"""The folders that detectron2 writes (OUTPUT_DIR), read as records of runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from detr_container.compare.reading import RunRecord, read_runs
from detr_container.config.detection import DetectionTrainConfig
from detr_container.datasets.annotations import load_json, read_categories
from detr_container.engine.run import Run
from detr_container.tasks.detection.coco_results import columns_of, read_results
from detr_container.tasks.detection.detections import Columns

from .config_file import ConfigFacts, read_config
from .experiment import Detectron2Experiment
from .logs import read_log, read_metrics

RESULTS = "coco_instances_results.json"
_CONVERTED = "*_coco_format.json"
"""What detectron2's evaluator makes of a data set that is no file in COCO's format, beside its results."""


@dataclass(frozen=True)
class Detectron2Run(RunRecord):
    """What is known of a detector that detectron2 trained. Its moments are iterations, not epochs.

    noted_seed: None where none was fixed; iterations: of its schedule, and devices, None where unknown; results: the
    file of its last evaluation; evaluated_with: sizes of images there.
    """

    noted_seed: int | None = None
    iterations: int | None = None
    devices: int | None = None
    results: Path | None = None
    evaluated_with: dict[str, Any] | None = None

    unit: ClassVar[str] = "iteration"
    keeps_epochs: ClassVar[bool] = False

    @property
    def seed(self) -> int | None:
        """See `RunRecord`."""
        return self.noted_seed

    @property
    def counts_devices(self) -> bool:
        """See `RunRecord`."""
        return self.devices is not None

    @property
    def last(self) -> int:
        """See `RunRecord`."""
        return self._at(self.evaluations[-1]) if self.evaluations else 0

    @property
    def best(self) -> int:
        """See `RunRecord`."""
        rated = [row for row in self.evaluations if "ap" in row]
        return self._at(max(rated, key=lambda row: float(row["ap"]))) if rated else 0

    @staticmethod
    def _at(row: dict[str, Any]) -> int:
        return int(row["step"])

    def logged(self, epoch: int, key: str = "ap") -> float | None:
        """See `RunRecord`; epoch: iterations."""
        return next((row.get(key or "ap") for row in self.evaluations if row["step"] == epoch), None)

    def moment(self, epoch: int) -> str:
        """See `RunRecord`."""
        return f"{epoch:,} iterations" if epoch else "unknown"

    def not_yet(self, level: int | None) -> str:
        """See `RunRecord`: it has its last evaluation, whatever is asked for."""
        del level
        return "" if self.results else f"it has no inference/{RESULTS}: give detectron2's COCOEvaluator an output_dir"


def is_output(folder: Path) -> bool:
    """Whether detectron2 wrote a folder."""
    return not Run(folder).exists and ((folder / "metrics.json").is_file() or any(_results_in(folder)))


def outputs_in(folder: Path) -> list[Path]:
    """A folder of detectron2's, or those that lie in it."""
    if is_output(folder):
        return [folder]
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink() and is_output(path)]


def read_detectors(folders: Sequence[Path]) -> list[RunRecord]:
    """Runs of ours and folders of detectron2's, in this order."""
    theirs = {folder: read_output(folder) for folder in folders if is_output(folder)}
    ours = iter(read_runs([folder for folder in folders if folder not in theirs]))
    return [theirs.get(folder) or next(ours) for folder in folders]


def read_output(folder: Path) -> Detectron2Run:
    """Read a folder of detectron2's; what is wrong with it is named, never raised."""
    faults: list[str] = []
    facts = _config(folder / "config.yaml", faults)
    results = _last_results(folder, facts, faults)
    log = read_log(folder / "log.txt")
    test = facts.tests[-1] if facts.tests else ""
    logged = read_metrics(folder / "metrics.json", faults, test, facts.batch, log.images, facts.iterations)
    if logged.metrics and log.memory_gib is not None:
        logged.metrics[-1]["memory_gib"] = log.memory_gib
    start = {"step": 0, "packages": log.packages, "gpus": [log.gpu or "unknown"], "command": log.command}
    done = logged.evaluations[-1]["step"] if logged.evaluations else 0
    whole = bool(done) and done >= (facts.iterations or done)
    if done and not whole:
        faults.append(f"it was evaluated after {done:,} of {facts.iterations:,} iterations")
    if results and not logged.evaluations:
        faults.append("it logged no AP, so nothing tells whether its detections are of these annotations")
    return Detectron2Run(
        folder,
        _experiment(folder, facts),
        "finished" if whole else "unfinished" if done else "unknown",
        logged.evaluations,
        logged.metrics,
        [{**start, **({"world_size": log.world_size} if log.world_size else {})}],
        tuple(faults),
        facts.seed,
        facts.iterations,
        log.world_size,
        results,
        facts.evaluated_with,
    )


def _config(path: Path, faults: list[str]) -> ConfigFacts:
    try:
        return read_config(path)
    except FileNotFoundError:
        faults.append("config.yaml is missing, so its settings are unknown")
    except (OSError, ValueError) as error:
        faults.append(str(error))
    return ConfigFacts()


def _experiment(folder: Path, facts: ConfigFacts) -> Detectron2Experiment:
    train = replace(DetectionTrainConfig(), batch=facts.batch or 1)
    # Without settings, no two folders are taken for runs of one detector.
    settings = facts.settings or {"folder": str(folder)}
    name = facts.backbone if facts.head else folder.name
    return Detectron2Experiment(
        train=train, head_name=facts.head or "detectron2", backbone_name=f"{name} (detectron2)", settings=settings
    )


def _results_in(folder: Path) -> Iterator[Path]:
    for pattern in (f"inference/{RESULTS}", f"inference/*/{RESULTS}"):
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def _last_results(folder: Path, facts: ConfigFacts, faults: list[str]) -> Path | None:
    """The detections of the data set that it was evaluated on last."""
    found = list(_results_in(folder))
    last = [path for path in found if facts.tests and path.parent.name == facts.tests[-1]]
    chosen = found if len(found) == 1 else last or found[:1]
    if len(found) > 1:
        faults.append(f"it holds detections of several data sets, of which {chosen[0].relative_to(folder)} was taken")
    return chosen[0] if chosen else None


# -- what it found ----------------------------------------------------------------------------------------------------


def detections_of(run: Detectron2Run) -> tuple[Columns, Path | None]:
    """What a run has found, and the annotation file that detectron2 made for it, if it did.

    Raises ValueError for what is not in COCO's result format.
    """
    assert run.results is not None
    converted = sorted(run.results.parent.glob(_CONVERTED))
    return columns_of(read_results(run.results)), converted[0] if len(converted) == 1 else None


def renumbered(found: Columns, own: Path, names: dict[int, str]) -> Columns:
    """The same with the ids of classes that another annotation file gives them; those it lacks have negative ones.

    own: the file by whose ids they go; names: the other file's.
    """
    places = {name: number for number, name in names.items()}
    ids = {each.id: places.get(each.name, -1 - each.id) for each in read_categories(own)}
    known, which = np.unique(found.categories, return_inverse=True)
    numbers = np.array([ids.get(each, -1 - each) for each in known.tolist()], dtype=np.int64)
    return found._replace(categories=numbers[which] if len(known) else found.categories)


def content_of(path: Path) -> str:
    """What an annotation file says, whenever it was written."""
    content = load_json(path)
    return json.dumps([content.get(key) for key in ("images", "annotations", "categories")], sort_keys=True)
