"""What a run cost: images per second, memory, hours on its devices. From what it logged while it trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .reading import RunRecord


@dataclass(frozen=True)
class Measured:
    """images_per_second: the median over log lines; memory_gib: the most of any process; hours: devices x time.

    None where it was not logged. Hours are those of the steps that count: saving, evaluating, and what was done twice
    after an interruption are not in them.
    """

    images_per_second: float | None
    memory_gib: float | None
    hours: float | None


def measured(record: RunRecord) -> Measured:
    """The costs of one run."""
    rates = [row["images_per_second"] for row in record.metrics if _positive(row.get("images_per_second"))]
    memory = [row["memory_gib"] for row in record.metrics if _positive(row.get("memory_gib"))]
    return Measured(statistics.median(rates) if rates else None, max(memory, default=None), _hours(record))


def _hours(record: RunRecord) -> float | None:
    if record.experiment is None or not record.metrics or not record.counts_devices:
        return None
    total, before = 0.0, 0
    for row in record.metrics:
        rate = row.get("images_per_second")
        if not _positive(rate):
            return None
        total += (row["step"] - before) * record.experiment.train.batch / rate * _processes(record, row["step"])
        before = row["step"]
    return total / 3600


def _processes(record: RunRecord, step: int) -> int:
    """How many processes, and so devices, took the step: of the newest start before it."""
    starts = [line for line in record.provenance if line.get("step", 0) < step]
    return int(starts[-1].get("world_size") or 1) if starts else 1


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def mean(values: Sequence[float | None]) -> float | None:
    """Over those that are known; None of none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
