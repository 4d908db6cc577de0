"""Interrupt a run at random, again and again, and compare it with an uninterrupted one."""

from __future__ import annotations

import functools
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import tyro
from rich.console import Console

from detr_container.base.alive import mark, send_signal
from detr_container.base.clock import clock
from detr_container.base.limits import Seed, natural
from detr_container.base.terminal import console
from detr_container.config.settings import Experiment
from detr_container.engine.same import run_differences
from detr_container.jobs import submit as jobs
from detr_container.jobs.status import ACTIVE, RunStatus, status_of
from detr_container.launch.attempts import JobFolder
from detr_container.launch.resources import Resources

# Longer than a job on a busy cluster takes for this; a queue may be slow all the same.
_PATIENCE = 3600.0
# Longer than a start that was interrupted takes to end.
_ENDING = 60.0
_HELP = 10


@dataclass(frozen=True)
class SoakOptions:
    """Options of `soak`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    slurm: Resources = field(default_factory=Resources)
    cluster: Literal["slurm", "local"] = "local"
    """Where to run."""
    times: Annotated[int, natural(10_000)] = 20
    """Interruptions."""
    within: Annotated[float, natural(86_400.0)] = 12.0
    """Each comes so many seconds, at most, after the job has started; the moment is drawn."""
    draw: Seed = 0
    """Seed of the moments and kinds of interruption."""
    folder: Path = Path("runs/soak")
    """Where the two runs go."""


Way = Callable[[Mapping[str, Any], random.Random], bool]
"""Interrupts a job, of which it gets what job.json holds; returns whether it did."""


def run(options: SoakOptions, ways: Mapping[str, Way] | None = None) -> int:
    """Run uninterrupted, then interrupted; returns 0 when both are the same to the last bit.

    ways: how to interrupt, by name; default: what the person can do to a job of their own.
    """
    screen = console()
    uninterrupted, interrupted = options.folder / "uninterrupted", options.folder / "interrupted"
    for folder in (uninterrupted, interrupted):
        if folder.exists():
            raise ValueError(f"{folder} exists: name another --folder, or remove it")
    try:
        _submit(uninterrupted, options)
        _wait(uninterrupted, lambda now: now.state not in ACTIVE)
        if status_of(uninterrupted).state != "finished":
            raise ValueError(f"the uninterrupted run did not finish: detr-container status {uninterrupted}")
        screen.print(f"uninterrupted: {status_of(uninterrupted).step} steps", soft_wrap=True)
        began = time.monotonic()
        kinds, helped = _interrupt(interrupted, options, WAYS[options.cluster] if ways is None else ways, screen)
    except KeyboardInterrupt:
        screen.print(
            f"the job that was started continues; this ends it: detr-container cancel {options.folder}", soft_wrap=True
        )
        raise
    history = JobFolder(interrupted).history()
    lost = sum(attempt.outcome in ("killed", "failed") for attempt in history)
    done = sum(kinds.values())
    screen.print(
        f"{done} interruptions ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}); "
        f"{len(history)} starts, {lost} of which died without saving; {clock(time.monotonic() - began)}"
    )
    found = run_differences(uninterrupted, interrupted)
    if found:
        screen.print("DIFFERENT from the uninterrupted run:", *found[:10], sep="\n  ", style="red", soft_wrap=True)
        return 1
    screen.print(
        "equal to the uninterrupted run, bit for bit: weights, optimizer, averages, metrics, evaluations, findings",
        style="green",
    )
    if helped:
        screen.print(f"but it had to be resubmitted {helped} times")
        return 1
    if done < options.times:
        screen.print(
            f"but only {done} of {options.times} interruptions came before its end: raise --train.epochs",
            soft_wrap=True,
        )
        return 1
    return 0


def _submit(folder: Path, options: SoakOptions) -> None:
    run = jobs.PlannedRun(folder, options.settings)
    jobs.submit([run], folder / "job" / "submissions", options.slurm, options.cluster)


def _interrupt(
    folder: Path, options: SoakOptions, ways: Mapping[str, Way], screen: Console
) -> tuple[Counter[str], int]:
    """Submit the run and interrupt it; returns how often in which way, and how often it needed a person."""
    draw, kinds, helped = random.Random(options.draw), Counter[str](), 0
    deck: list[str] = []
    _submit(folder, options)
    while True:
        now = _wait(folder, lambda now: now.state not in ("queued", "unknown"))
        if now.state in ("failed", "lost", "stopped"):
            helped += 1
            if helped > _HELP:
                raise ValueError(f"{folder} is {now.state} again and again: {now.message}")
            screen.print(
                f"{now.state} at step {now.step}; resubmitted, as a person would: {now.message}", soft_wrap=True
            )
            _submit(folder, options)
        elif now.state not in ACTIVE:
            return kinds, helped
        elif kinds.total() >= options.times:
            _wait(folder, lambda now: now.state not in ACTIVE)
        else:
            time.sleep(draw.uniform(0, options.within))
            # Each kind comes before any comes again.
            deck = deck or draw.sample(sorted(ways), len(ways))
            kind, starts = deck.pop(), len(JobFolder(folder).history())
            if status_of(folder).state in ACTIVE and ways[kind](JobFolder(folder).submission() or {}, draw):
                kinds[kind] += 1
                screen.print(f"{kinds.total()}: {kind} at step {status_of(folder).step}", soft_wrap=True)
                # One that was lost with its machine before it began leaves no word of itself.
                with suppress(TimeoutError):
                    _wait(folder, functools.partial(_ended, folder, starts), _ENDING)
            else:
                deck.insert(0, kind)


def _ended(folder: Path, starts: int, now: RunStatus) -> bool:
    """Whether another start than the first `starts` has ended."""
    return len(JobFolder(folder).history()) > starts or now.state not in ACTIVE


def _wait(folder: Path, condition: Callable[[RunStatus], bool], seconds: float = _PATIENCE) -> RunStatus:
    """How the run stands once a condition holds of it. Raises TimeoutError when it does not for so long."""
    end = time.monotonic() + seconds
    while not condition(now := status_of(folder)):
        if time.monotonic() > end:
            raise TimeoutError(f"{folder} has been {now.state} for {clock(seconds)}")
        time.sleep(0.2)
    return now


def _tell_controller(facts: Mapping[str, Any], draw: random.Random) -> bool:
    return send_signal(int(facts["job"]), facts.get("process", ""), signal.SIGUSR2)


def _kill_local(facts: Mapping[str, Any], draw: random.Random) -> bool:
    """SIGKILL one of the processes, whatever it is doing."""
    controller = int(facts["job"])
    try:
        ranks = [(each.pid, mark(each.pid)) for each in psutil.Process(controller).children()]
    except psutil.NoSuchProcess:
        return False
    # They were this job's if its controller is still the process that was submitted.
    living = [each for each in ranks if each[1]] if mark(controller) == facts.get("process", "") else []
    return bool(living) and send_signal(*draw.choice(living), signal.SIGKILL)


def _slurm(*options: str, part: str = "") -> Way:
    """A command of Slurm about a job, or a part of it."""

    def interrupt(facts: Mapping[str, Any], draw: random.Random) -> bool:
        return subprocess.run([*options, facts["job"] + part], capture_output=True, check=False).returncode == 0

    return interrupt


def _requeue_after_kill(facts: Mapping[str, Any], draw: random.Random) -> bool:
    """The job is put back into the queue while it dies."""
    killed = WAYS["slurm"]["SIGKILL of all processes"](facts, draw)
    time.sleep(draw.uniform(0, 1))
    return killed and WAYS["slurm"]["scontrol requeue"](facts, draw)


WAYS: dict[str, dict[str, Way]] = {
    "local": {"preemption (USR2)": _tell_controller, "SIGKILL of a process": _kill_local},
    "slurm": {
        "preemption (USR2)": _slurm("scancel", "--signal=USR2"),
        "SIGTERM": _slurm("scancel", "--signal=TERM"),
        "SIGKILL of all processes": _slurm("scancel", "--signal=KILL", part=".0"),
        "SIGKILL of the batch script": _slurm("scancel", "--batch", "--signal=KILL"),
        "scontrol requeue": _slurm("scontrol", "requeue"),
        "SIGKILL of all processes, then scontrol requeue": _requeue_after_kill,
    },
}


def default(experiment: Experiment, resources: Resources) -> SoakOptions:
    """Long enough for twenty interruptions."""
    train = replace(experiment.train, epochs=200, eval_every=40, checkpoint_minutes=0.02)
    return SoakOptions(replace(experiment, train=train), replace(resources, gpus_per_node=0, tasks_per_node=2))
