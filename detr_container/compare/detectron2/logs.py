"""What detectron2 logged while it trained: metrics.json, and what its log.txt says of the machine and the data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from detr_container.base.checked import read_bytes
from detr_container.base.files import whole

LOSSES = {
    "loss_cls": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_rpn_cls": "proposal_class",
    "loss_rpn_loc": "proposal_box",
}
"""detectron2's losses by our names."""
_METRICS = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}
_FOUND = {
    "world_size": r"Rank of current process: \d+\. World size: (\d+)",
    "images": r"Removed \d+ images with no usable annotations\. (\d+) images left",
    "torch": r"^PyTorch +([\w.+]+)",
    "torchvision": r"^torchvision +([\w.+]+)",
    "detectron2": r"^detectron2 +([\w.+]+)",
    "gpu": r"^GPU [\d,]+ {2,}(.+?) *(?:\(arch=.*)?$",
    "command": r"Command line arguments: (.+)",
    "memory": r"max_mem: (\d+)M",
}


@dataclass(frozen=True)
class LogFacts:
    """What log.txt says, of the newest start; what it does not say is None or empty.

    world_size: processes; images: of the training set, as it is shown; memory_gib: the most of the main process.
    """

    world_size: int | None = None
    images: int | None = None
    gpu: str = ""
    command: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    memory_gib: float | None = None


def read_log(path: Path) -> LogFacts:
    """Read log.txt. A file that is not there, or cannot be read, says nothing."""
    try:
        text = read_bytes(path).decode(errors="replace")
    except (OSError, ValueError):
        return LogFacts()
    found = {name: re.findall(pattern, text, re.MULTILINE) for name, pattern in _FOUND.items()}
    last = {name: values[-1] for name, values in found.items() if values}
    return LogFacts(
        int(last["world_size"]) if "world_size" in last else None,
        int(last["images"]) if "images" in last else None,
        last.get("gpu", ""),
        last.get("command", ""),
        {name: last[name] for name in ("torch", "torchvision", "detectron2") if name in last},
        max(map(int, found["memory"])) / 1024 if found["memory"] else None,
    )


@dataclass(frozen=True)
class Logged:
    """metrics.json by our names: lines of training and of evaluations, in order of `step`, the iterations done."""

    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


def read_metrics(
    path: Path, faults: list[str], test: str, batch: int | None, images: int | None, iterations: int | None
) -> Logged:
    """Read metrics.json; a line that is none goes to `faults`.

    test: the data set of the evaluations that count, where there are several; batch, images, iterations: of an
    iteration, of the training set and of the schedule, where they are known. Without the first two, lines have no
    `epoch`.
    """
    training: dict[int, dict[str, float]] = {}
    evaluated: dict[int, dict[str, float]] = {}
    for row in _rows(path, faults):
        iteration = int(row.pop("iteration"))
        if "total_loss" in row:
            # After a resume, iterations that were lost are done again.
            for each in (training, evaluated):
                for later in [done for done in each if done >= iteration]:
                    del each[later]
            training[iteration] = row
        if ours := _evaluation(row, test):
            evaluated[iteration] = ours
    # The last evaluation stands at the number of iterations, all others at the one that they followed.
    most = iterations or max(training, default=-1) + 1
    epoch = batch / images if batch and images else None

    def at(iteration: int) -> dict[str, Any]:
        done = min(iteration + 1, most) if iteration < most else iteration
        return {"step": done, **({"epoch": done * epoch} if epoch else {})}

    return Logged(
        [{**at(iteration), **_step(row, batch)} for iteration, row in training.items()],
        [{**at(iteration), **row} for iteration, row in sorted(evaluated.items())],
    )


def _rows(path: Path, faults: list[str]) -> list[dict[str, float]]:
    """The numbers of each line; what is not finite is left out, as a metric without objects is."""
    found = []
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        faults.append(str(error))
        return []
    for number, line in enumerate(data[: whole(data)].splitlines(), start=1):
        try:
            row = from_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get("iteration")) is not int or row["iteration"] < 0:
            faults.append(f"{path}, line {number}: not an object with a whole iteration, so it is left out")
            continue
        found.append({name: value for name, value in row.items() if _is_number(value)})
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _evaluation(row: dict[str, float], test: str) -> dict[str, float]:
    """Metrics of an evaluation, from 0 to 1; nothing of a row that has none."""
    found = {}
    for task, before in (("bbox", ""), ("segm", "mask_")):
        for name, ours in _METRICS.items():
            value = row.get(f"{task}/{name}", row.get(f"{test}/{task}/{name}"))
            if value is not None:
                found[before + ours] = value / 100
    return found


def _step(row: dict[str, float], batch: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"loss": row["total_loss"]}
    found["losses"] = {ours: row[theirs] for theirs, ours in LOSSES.items() if theirs in row}
    if "lr" in row:
        found["lr"] = row["lr"]
    if batch and row.get("time", 0) > 0:
        found["images_per_second"] = batch / row["time"]
    return found
