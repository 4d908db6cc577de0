"""Whose control group's count shows that memory ran out."""

from pathlib import Path

import pytest

from detr_container.launch import oom

STEP = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


def counted(groups: dict[str, int], mine: str, folder: Path, patch: pytest.MonkeyPatch) -> int | None:
    """The count seen by a process whose /proc/self/cgroup is `mine`, on a machine with so many kills in each group."""
    (folder / "mine").write_text(mine)
    for group, count in groups.items():
        (folder / "fs" / group).mkdir(parents=True, exist_ok=True)
        (folder / "fs" / group / "memory.events").write_text(f"low 0\nhigh 5\noom 9\noom_kill {count}\n")
    patch.setattr(oom, "_MINE", folder / "mine")
    patch.setattr(oom, "_GROUPS", folder / "fs")
    return oom.oom_kills()


@pytest.mark.parametrize(
    ("job", "mine", "groups", "count"),
    [
        # All steps of the job, ended ones included, and no other job's.
        ("7", f"0::/{STEP}\n", {STEP: 1, "system.slice/slurmstepd.scope/job_7": 2, "system.slice": 9}, 2),
        # Everybody's jobs are in the group of the daemon; the container's root has them all, too.
        ("7", "0::/system.slice/slurmd.service\n", {"system.slice/slurmd.service": 9}, None),
        ("7", "0::/\n", {"": 9}, None),
        # The older kind of groups alone.
        ("7", "4:memory:/slurm/uid_1000/job_7/step_0\n", {"": 9}, None),
        ("", "0::/user.slice/user-1000.slice/session-3.scope\n", {"user.slice/user-1000.slice/session-3.scope": 3}, 3),
        ("", "1:name=systemd:/\n0::/\n", {"": 4}, 4),
        ("", "0::/not/shown/here\n", {"": 9}, None),
        ("", "", {"": 9}, None),
    ],
)
def test_only_kills_among_ones_own_processes_count(
    job: str, mine: str, groups: dict[str, int], count: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    assert counted(groups, mine, tmp_path, monkeypatch) == count
