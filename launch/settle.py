"""How a start of a job ended, and whether it shall be started again."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from detr_container.files import atomic_write

from .attempts import Attempt, JobFolder, fruitless

DEATHS = 3
"""So many starts in a row that die without getting on are enough."""


@dataclass(frozen=True)
class Circumstances:
    """What the scheduler knows of a start that has ended.

    limit: its time was up, or nearly; cancelled: somebody wants it to end; restarted: the scheduler starts it again by
    itself.
    """

    limit: bool = False
    cancelled: bool = False
    restarted: bool = False


def settle(job: JobFolder, name: str, around: Circumstances) -> tuple[Attempt, bool]:
    """Judge a start that has ended and add it to the history.

    Returns it, and whether somebody has to start the job again: after a stop that saved, and after a death, unless it
    is one that would repeat itself or the third in a row that got nowhere.
    """
    cancelled = around.cancelled or job.cancelled_path.exists()
    attempt = _judge(job, name, replace(around, cancelled=cancelled))
    again = attempt.outcome == "stopped" or (attempt.outcome in ("failed", "killed") and not attempt.final)
    if attempt.outcome == "finished":
        action = ""
    elif cancelled or attempt.why == "cancelled":
        again, action = False, "cancelled"
    elif around.restarted:
        again, action = False, "started again by the scheduler"
    elif attempt.final:
        action = "not started again: it would fail in the same way"
    elif attempt.outcome != "stopped" and fruitless([*job.history(), attempt]) >= DEATHS:
        again = False
        action = f"not started again: it died {DEATHS} times in a row without getting on"
    else:
        action = "started again"
    attempt = replace(attempt, action=action)
    job.remember(attempt)
    return attempt, again


def settle_lost(job: JobFolder, current: str) -> None:
    """Close the books on earlier starts whose machine died before anybody could.

    Raises ValueError when so many of them died in a row that the current start should not be made either.
    """
    for name in job.unsettled(current):
        attempt = _judge(job, name, Circumstances(restarted=True))
        if attempt.outcome == "killed":
            attempt = replace(attempt, why="node failure, or requeued without warning")
        job.remember(replace(attempt, action="started again by the scheduler"))
    if fruitless(job.history()) >= DEATHS:
        raise ValueError(
            f"{job.run} died {DEATHS} times in a row without getting on, so it is not started again: "
            f"{job.history()[-1].message} See {job.errors_path}, mend it, and resubmit"
        )


def _judge(job: JobFolder, name: str, around: Circumstances) -> Attempt:
    """What happened, from what each process wrote."""
    ranks = job.ranks(name)
    now = time.time()
    base = Attempt(
        name=name,
        hosts=list(dict.fromkeys(rank["host"] for rank in ranks)),
        began=min((rank["began"] for rank in ranks), default=now),
        ended=max((rank.get("ended") or 0.0 for rank in ranks), default=0.0) or now,
        outcome="finished",
        why="",
        evidence_before=ranks[0]["evidence"] if ranks else "",
        evidence_after=job.evidence(),
    )
    if not ranks:
        return replace(base, outcome="killed", why="error", message="no process of it got as far as running Python.")
    failed = sorted((rank for rank in ranks if rank.get("error")), key=lambda rank: (rank["secondary"], rank["ended"]))
    dead = [rank for rank in ranks if not rank.get("ended")]
    missing = ranks[0]["world"] - len(ranks)
    stopped = [rank for rank in ranks if rank.get("outcome") == "stopped"]
    if failed and not ((dead or missing) and failed[0]["secondary"]):
        return _failed(job, base, failed, dead)
    if dead or missing or failed:
        return _killed(job, base, failed, dead, missing, around)
    if not stopped:
        return base
    signal = next((rank["signal"] for rank in stopped if rank["signal"]), "") or "unknown signal"
    if around.cancelled or signal == "SIGINT":
        why = "cancelled"
    elif around.limit:
        why = "time limit"
    else:
        why = "requeued" if around.restarted else "preemption"
    return replace(base, outcome="stopped", why=why, message=f"told to stop by {signal}; saved.")


def _failed(job: JobFolder, base: Attempt, failed: list[dict[str, Any]], dead: list[dict[str, Any]]) -> Attempt:
    first = failed[0]
    _write_errors(job, base, failed, dead)
    message = f"{_place(first)}: {first['error']}"
    return replace(base, outcome="failed", why="error", message=message, final=bool(first["final"]))


def _killed(
    job: JobFolder,
    base: Attempt,
    failed: list[dict[str, Any]],
    dead: list[dict[str, Any]],
    missing: int,
    around: Circumstances,
) -> Attempt:
    _write_errors(job, base, failed, dead)
    if around.cancelled:
        return replace(base, outcome="killed", why="cancelled", message="ended before it could save.")
    if around.limit:
        message = "the time limit came before it had saved: raise slurm.lead."
        return replace(base, outcome="killed", why="time limit", message=message)
    if dead:
        message = (
            f"{_place(dead[0])} ended without a word: killed by the system (out of memory?), by hand, or with its node."
        )
    else:
        message = f"{missing} process(es) never began."
    return replace(base, outcome="killed", why="killed", message=message)


def _place(rank: dict[str, Any]) -> str:
    return f"rank {rank['rank']} on {rank['host']}"


def _write_errors(job: JobFolder, attempt: Attempt, failed: list[dict[str, Any]], dead: list[dict[str, Any]]) -> None:
    """All that went wrong on all processes, the cause first, in one file."""
    parts = [f"start {attempt.name}, ended {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(attempt.ended))}\n"]
    parts += [f"{_place(rank)} (process {rank['pid']}) ended without a word\n" for rank in dead]
    for rank in failed:
        if rank["secondary"]:
            parts.append(f"{_place(rank)} (process {rank['pid']}) noticed that another process had ended\n")
        else:
            parts.append(f"{_place(rank)} (process {rank['pid']}):\n{rank['traceback']}")
    data = "\n".join(parts).encode()
    atomic_write(job.errors_path, lambda file: file.write(data), len(data))
