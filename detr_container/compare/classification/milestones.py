"""How long a run takes to reach a given accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ..document import Column, Section, Table, Value, spread_of
from ..reading import RunRecord
from .analysis import Analysis, ArmResult, RunResult
from .exposure import exposure

NEVER = "not reached"


@dataclass(frozen=True)
class Milestone:
    """When a run reached an accuracy: epochs: interpolated; evaluation: the epoch of the first that is as good.

    interpolated: False where that was the run's first, so that nothing is known of before.
    """

    epochs: float
    evaluation: int
    interpolated: bool


@dataclass(frozen=True)
class Target:
    """The accuracy that is asked for, from 0 to 1, and why this one, in words."""

    accuracy: float
    reason: str


def curve_of(record: RunRecord) -> dict[int, float]:
    """Top-1 by epoch, as the run logged it, in the order of epochs."""
    rows = {row["epoch"]: row.get("top1") for row in record.evaluations}
    return {epoch: float(value) for epoch, value in sorted(rows.items()) if value is not None}


def reached(curve: dict[int, float], accuracy: float) -> Milestone | None:
    """When a run first was as good, on a straight line between its evaluations; None where it never was."""
    before: tuple[int, float] | None = None
    for epoch, value in curve.items():
        if value >= accuracy:
            if before is None:
                return Milestone(float(epoch), epoch, interpolated=False)
            share = (accuracy - before[1]) / (value - before[1])
            return Milestone(before[0] + share * (epoch - before[0]), epoch, interpolated=True)
        before = epoch, value
    return None


def target_of(analysis: Analysis, wanted: float) -> Target:
    """What was asked for (0: nothing), or the last accuracy of the weakest arm, of its run that ended lowest."""
    if wanted:
        return Target(wanted, "as asked for")
    weakest = min(analysis.evaluated, key=lambda arm: arm.sample("top1").mean)
    lowest = min(weakest.results, key=lambda result: result.headline)
    reason = (
        f"what {weakest.label}, the weakest, ended at in its run of the lowest end, so that each of its runs gets there"
    )
    # As the run logged it, so that its own curve reaches it.
    logged = lowest.record.logged(lowest.epoch)
    return Target(lowest.headline if logged is None else logged, reason)


def section(analysis: Analysis, target: Target) -> Section:
    """How many epochs, images and device-hours each arm needed."""
    text = [
        f"How long it took to reach {100 * target.accuracy:.1f} % top-1 ({target.reason}), mean ± sample standard "
        "deviation over those seeds that got there. Epochs are interpolated on a straight line between the evaluation "
        "that first was as good and the one before it; the epoch of that evaluation stands beside. A run whose first "
        "evaluation was as good already may have been so earlier: its epochs are at most that.",
        "A schedule whose learning rate falls along a cosine gains most at its end, whatever the epoch: epochs within "
        "runs of one length compare backbones, but say nothing of a run of another length, and a run that reaches the "
        "same after fewer epochs of a longer schedule is not thereby the faster one.",
    ]
    columns = [
        Column("backbone"),
        Column("reached by"),
        Column("epochs"),
        Column("first evaluation", ".1f"),
        Column("images, thousands"),
        Column("views, thousands"),
        Column("device-hours", ".2f", least=0.01),
    ]
    rows = [_row(arm, target.accuracy) for arm in analysis.evaluated]
    caption = f"Until {100 * target.accuracy:.1f} % top-1"
    each = [row for arm in analysis.evaluated for row in _each(arm, target.accuracy)]
    runs = [Column("run"), Column("last top-1", ".2f"), Column("epochs"), Column("of", "d"), Column("how")]
    tables = [Table("milestones", caption, columns, rows), Table("milestone-runs", f"{caption}, by run", runs, each)]
    return Section("milestones", "Epochs to an accuracy", text, tables=tables)


def _row(arm: ArmResult, accuracy: float) -> list[Value]:
    found = [(result, reached(curve_of(result.record), accuracy)) for result in arm.results]
    there = [(result, one) for result, one in found if one is not None]
    row: list[Value] = [arm.label, f"{len(there)} of {len(found)}" if there else NEVER]
    row.append(spread_of([one.epochs for _, one in there]))
    row.append(spread_of([float(one.evaluation) for _, one in there]))
    shown = [(exposure(result.record, arm.experiment), one.epochs) for result, one in there]
    row.append(spread_of([each.distinct * epochs / 1000 for each, epochs in shown]))
    row.append(spread_of([each.views * epochs / 1000 for each, epochs in shown]))
    row.append(spread_of([_hours(result, one.epochs) for result, one in there]))
    return row


def _hours(result: RunResult, epochs: float) -> float | None:
    """Device-hours of so many epochs: the same share of all that the run logged."""
    whole = result.measured.hours
    return None if whole is None else whole * epochs / result.record.metrics[-1]["epoch"]


def _each(arm: ArmResult, accuracy: float) -> list[list[Value]]:
    rows: list[list[Value]] = []
    for result in arm.results:
        one = reached(curve_of(result.record), accuracy)
        how = NEVER if one is None else "interpolated" if one.interpolated else "its first evaluation: at most"
        last = 100 * result.headline
        epochs = None if one is None else one.epochs
        rows.append([str(result.record.folder), last, epochs, arm.experiment.train.epochs, how])
    return rows


def findings(analysis: Analysis, target: Target) -> str:
    """In a sentence: epochs until the target, the fastest first."""
    means, never = dict[str, tuple[float, bool]](), []
    for arm in analysis.evaluated:
        found = [reached(curve_of(result.record), target.accuracy) for result in arm.results]
        there = [one for one in found if one is not None]
        if len(there) == len(found):
            means[arm.label] = fmean(one.epochs for one in there), all(one.interpolated for one in there)
        else:
            never.append(arm.label)
    parts = [
        f"{label} {'after' if exact else 'within'} {epochs:.1f} epochs"
        for label, (epochs, exact) in sorted(means.items(), key=lambda item: item[1][0])
    ]
    goal = f"{100 * target.accuracy:.1f} % top-1"
    if means and all(len(curve_of(result.record)) == 1 for arm in analysis.evaluated for result in arm.results):
        return f"How soon {goal} was reached is not known: each run was evaluated only once (`train.eval_every`)."
    if not parts:
        return f"No backbone reaches {goal} in every run."
    rest = f"; not in every run: {', '.join(never)}" if never else ""
    return f"{goal} is reached by {'; '.join(parts)}{rest}."
