"""Of which epochs a run keeps what its evaluations left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def superseded(evaluations: Sequence[Mapping[str, Any]], key: str, finished: bool) -> set[int]:
    """The evaluated epochs that are neither the newest nor the best; `key` says how good each is.

    They follow from the evaluations alone, so that whoever is interrupted finds the same ones again, and an interrupted
    run keeps the same as an uninterrupted one. Until the run is finished, the newest and the best before the newest
    evaluation stay, too: a damaged checkpoint falls back to the one before, by which that evaluation is undone.
    """
    histories = [evaluations] if finished else [evaluations, evaluations[:-1]]
    kept = {epoch for rows in histories for epoch in _newest_and_best(rows, key)}
    return {row["epoch"] for row in evaluations} - kept


def _newest_and_best(evaluations: Sequence[Mapping[str, Any]], key: str) -> set[int]:
    """The epoch of the last evaluation, and that of the highest value, the first of equals."""
    rated = [row for row in evaluations if row.get(key) is not None]
    best = [max(rated, key=lambda row: row[key])] if rated else []
    return {row["epoch"] for row in (*evaluations[-1:], *best)}
