"""What Slurm reports of a job whose processes have ended, as Slurm 22.05 and 24.11 were seen to report it."""

import time

import pytest

from detr_container.launch.afterwards import circumstances_of
from detr_container.launch.queue import fields_of
from detr_container.launch.settle import Circumstances

HOUR = 3600.0


@pytest.mark.parametrize(
    ("line", "restarts", "minutes", "expected"),
    [
        ("JobState=RUNNING Reason=None Restarts=0 PreemptTime=2026-01-01T00:00:00", 0, 5, Circumstances()),
        ("JobState=RUNNING Reason=None Restarts=0 PreemptTime=2026-01-01T00:00:00", 0, 59, Circumstances()),
        ("JobState=RUNNING Reason=None Restarts=0 PreemptTime=None", 0, 59, Circumstances(limit=True)),
        ("JobState=RUNNING Reason=None Restarts=0 PreemptTime=None", 0, 5, Circumstances()),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", 0, 61, Circumstances(limit=True)),
        ("JobState=COMPLETING Reason=None Restarts=0", 0, 5, Circumstances(cancelled=True)),
        ("JobState=COMPLETING Reason=None Restarts=0", 0, 59, Circumstances(cancelled=True)),
        ("JobState=CANCELLED Reason=None Restarts=2", 2, 5, Circumstances(cancelled=True)),
        ("JobState=COMPLETING Reason=None Restarts=3", 2, 5, Circumstances(restarted=True)),
        ("JobState=PENDING Reason=BeginTime Restarts=1", 0, 5, Circumstances(restarted=True)),
        ("", 1, 5, Circumstances()),
    ],
    ids=[
        "preempted, in the time of grace",
        "preempted, near the limit",
        "warned of the limit",
        "a user's signal, or a dead process",
        "the limit is over",
        "scancel",
        "scancel, near the limit",
        "cancelled",
        "scontrol requeue",
        "requeued, and waiting",
        "no answer",
    ],
)
def test_what_the_fields_mean(
    line: str, restarts: int, minutes: int, expected: Circumstances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_BEGAN", str(time.time() - 60 * minutes))
    assert circumstances_of(fields_of(line), restarts, HOUR - 120) == expected
