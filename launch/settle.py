"""How a start of a job ended, and whether it shall be started again."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from detr_container.base.files import atomic_write
from detr_container.base.lock import tidy

from .attempts import Attempt, JobFolder, fruitless
from .oom import oom_kills

DEATHS = 3
"""So many starts in a row that die of the program's own making without getting on are enough."""
KILLS = 50
"""So many that are killed from outside are."""
_LONGEST_PAUSE = 600.0
_CRASHES = {128 + number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}
# What srun ends with when Slurm has seen the kernel kill a process for want of memory: its own signal 125.
_SLURM_OOM = 253


@dataclass(frozen=True)
class Circumstances:
    """What the scheduler knows of a start that has ended.

    limit: its time was up, or nearly; cancelled: somebody wants it to end; restarted: the scheduler starts it again by
    itself; status: what the processes ended with, as a shell has it, None where nobody could see it; memory: the
    scheduler says that it ran out; batch: the batch script itself was killed.
    """

    limit: bool = False
    cancelled: bool = False
    restarted: bool = False
    status: int | None = None
    memory: bool = False
    batch: bool = False


def settle(job: JobFolder, name: str, circumstances: Circumstances) -> tuple[Attempt, bool]:
    """Classify a start that has ended and add it to the history.

    Returns it, and whether somebody has to start the job again: after a stop that saved, and after a death, unless it
    is one that would repeat itself, the third in a row of its own making that got nowhere, or the last of very many.
    """
    cancelled = circumstances.cancelled or job.cancelled_path.exists()
    attempt = _classify(job, name, replace(circumstances, cancelled=cancelled))
    again = attempt.outcome == "stopped" or (attempt.outcome in ("failed", "killed") and not attempt.final)
    if attempt.outcome == "finished":
        action = ""
    elif cancelled or attempt.why == "cancelled":
        again, action = False, "cancelled"
    elif circumstances.restarted:
        again, action = False, "started again by the scheduler"
    elif attempt.final:
        action = "not started again: it would fail in the same way"
    elif attempt.outcome != "stopped" and (reason := _enough([*job.history(), attempt])):
        again, action = False, f"not started again: {reason}"
    else:
        action = "started again"
    attempt = replace(attempt, action=action)
    job.remember(attempt)
    if not again and not circumstances.restarted:
        tidy(job.run)
    return attempt, again


def pause(history: Sequence[Attempt]) -> float:
    """Seconds to wait before the next start: longer with every kill from outside in a row that let nothing be saved."""
    kills = fruitless(history, own=False)
    return min(5.0 * 2 ** min(kills - 2, 10), _LONGEST_PAUSE) if kills > 1 else 0.0


def _enough(history: Sequence[Attempt]) -> str:
    """Why a run that died again is not started again; empty when it is."""
    if fruitless(history) >= DEATHS:
        return f"it died {DEATHS} times in a row without getting on"
    if fruitless(history, own=False) >= KILLS:
        return f"it was killed from outside {KILLS} times in a row before it could save"
    return ""


def settle_lost(job: JobFolder, current: str) -> None:
    """Close the books on earlier starts whose machine died before anybody could.

    Raises ValueError when so many of them died in a row that the current start should not be made either.
    """
    for name in job.unsettled(current):
        attempt = _classify(job, name, Circumstances(restarted=True))
        if attempt.outcome == "killed" and not attempt.own:
            attempt = replace(attempt, why="node failure, or requeued without warning")
        job.remember(replace(attempt, action="started again by the scheduler"))
    if reason := _enough(job.history()):
        raise ValueError(
            f"{job.run} is not started again: {reason}. "
            f"{job.history()[-1].message} See {job.errors_path}, fix it, and resubmit"
        )


def _classify(job: JobFolder, name: str, circumstances: Circumstances) -> Attempt:
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
        return _never_began(base, circumstances)
    failed = sorted((rank for rank in ranks if rank.get("error")), key=lambda rank: (rank["secondary"], rank["ended"]))
    dead = [rank for rank in ranks if not rank.get("ended")]
    missing = ranks[0]["world"] - len(ranks)
    stopped = [rank for rank in ranks if rank.get("outcome") == "stopped"]
    if failed and not ((dead or missing) and failed[0]["secondary"]):
        return _failed(job, base, failed, dead)
    if dead or missing or failed:
        return _killed(job, base, failed, dead, missing, circumstances)
    if not stopped:
        return base
    signal = next((rank["signal"] for rank in stopped if rank["signal"]), "") or "unknown signal"
    if circumstances.cancelled or signal == "SIGINT":
        why = "cancelled"
    elif circumstances.batch:
        why = "batch script killed"
    elif circumstances.limit:
        why = "time limit"
    else:
        why = "requeued" if circumstances.restarted else "preemption"
    return replace(base, outcome="stopped", why=why, message=f"asked to stop by {signal}; saved.")


def _failed(job: JobFolder, base: Attempt, failed: list[dict[str, Any]], dead: list[dict[str, Any]]) -> Attempt:
    first = failed[0]
    _write_errors(job, base, failed, dead)
    message = f"{_place(first)}: {first['error']}"
    # All only noticed that the connection was gone: the network's doing.
    own = not (first["secondary"] or first.get("hindered"))
    return replace(base, outcome="failed", why="error", message=message, final=bool(first["final"]), own=own)


def _never_began(base: Attempt, circumstances: Circumstances) -> Attempt:
    """What becomes of a start of which no process got as far as writing down that it began."""
    base = replace(base, outcome="killed", message="no process of it got as far as running Python.", own=False)
    if circumstances.cancelled:
        return replace(base, why="cancelled")
    if circumstances.restarted:
        return replace(base, why="requeued")
    if circumstances.batch or circumstances.status is None:
        return replace(base, why="batch script killed")
    status = circumstances.status
    own = 0 < status < 128 or status in _CRASHES or status == _SLURM_OOM or circumstances.memory
    return replace(base, why="error" if own else "killed", own=own)


def _killed(
    job: JobFolder,
    base: Attempt,
    failed: list[dict[str, Any]],
    dead: list[dict[str, Any]],
    missing: int,
    circumstances: Circumstances,
) -> Attempt:
    dead, peers = [rank for rank in dead if not _by_peer(rank)], [rank for rank in dead if _by_peer(rank)]
    _write_errors(job, base, failed, dead + peers)
    if circumstances.cancelled:
        return replace(base, outcome="killed", why="cancelled", message="ended before it could save.")
    if circumstances.limit:
        message = "the time limit came before it had saved: raise slurm.lead."
        return replace(base, outcome="killed", why="time limit", message=message)
    crashed = next((rank for rank in dead if rank["crash"]), None)
    starved = next((rank for rank in dead if _starved(rank, dead + peers + failed)), None)
    if crashed:
        first_line = crashed["crash"].strip().splitlines()[0]
        return replace(base, outcome="killed", why="crashed", message=f"{_place(crashed)} crashed: {first_line}.")
    if starved or circumstances.memory or circumstances.status == _SLURM_OOM:
        message = f"{_place(starved or dead[0])} was killed because memory ran out." if dead else "memory ran out."
        return replace(base, outcome="killed", why="out of memory", message=message)
    own = circumstances.status in _CRASHES and not circumstances.restarted and not peers
    if dead:
        message = f"{_place(dead[0])} ended without a word: killed by the system, by hand, or with its node."
    elif peers and not missing:
        message = (
            f"{_place(peers[0])} was ended by NCCL, which could not reach another process: it, or the network, is gone."
        )
    else:
        message = f"{missing} process(es) never began."
    why = "requeued" if circumstances.restarted else "batch script killed" if circumstances.batch else "killed"
    return replace(base, outcome="killed", why=why, message=message, own=own)


def _by_peer(rank: dict[str, Any]) -> bool:
    """Whether a process was ended by NCCL's watchdog, which aborts it when another one cannot be reached.

    It is a thread that Python does not know, so that Python names no current thread; in other aborts there is one.
    """
    aborted: bool = rank["crash"].startswith("Fatal Python error: Aborted")
    return aborted and "Current thread" not in rank["crash"] and rank["world"] > 1


def _starved(rank: dict[str, Any], all_ranks: list[dict[str, Any]]) -> bool:
    """Whether the kernel has killed for want of memory, on the machine of a rank that died, since that rank began."""
    if rank.get("oom") is None:
        return False
    host = os.environ.get("SLURMD_NODENAME") or platform.node()
    later = [each.get("oom_after") for each in all_ranks if each["host"] == rank["host"]]
    later += [oom_kills()] if rank["host"] == host else []
    return any(count is not None and count > rank["oom"] for count in later)


def _place(rank: dict[str, Any]) -> str:
    return f"rank {rank['rank']} on {rank['host']}"


def _write_errors(job: JobFolder, attempt: Attempt, failed: list[dict[str, Any]], dead: list[dict[str, Any]]) -> None:
    """All that went wrong on all processes, the cause first, in one file."""
    parts = [f"start {attempt.name}, ended {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(attempt.ended))}\n"]
    for rank in dead:
        parts.append(f"{_place(rank)} (process {rank['pid']}) {rank['crash'] or 'ended without a word'}\n")
    for rank in failed:
        if rank["secondary"]:
            parts.append(f"{_place(rank)} (process {rank['pid']}) noticed that another process had ended\n")
        else:
            parts.append(f"{_place(rank)} (process {rank['pid']}):\n{rank['traceback']}")
    data = "\n".join(parts).encode()
    atomic_write(job.errors_path, lambda file: file.write(data), len(data))
