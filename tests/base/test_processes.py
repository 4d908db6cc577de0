"""Which process this is: torchrun's variables, or one alone."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from detr_container.base.processes import ProcessInfo, current_process

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "17"},
        {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"},
        dict.fromkeys(TORCHRUN, ""),
    ],
)
def test_one_process_alone(environ: dict[str, str]) -> None:
    assert current_process(environ) == ProcessInfo(rank=0, local_rank=0, world=1)
    assert current_process(environ).is_main


def test_torchruns_variables() -> None:
    info = current_process(TORCHRUN | {"SLURM_PROCID": "0"})
    assert info == ProcessInfo(rank=5, local_rank=1, world=8)
    assert not info.is_main


@pytest.mark.parametrize("name", TORCHRUN)
def test_half_set_variables_are_refused(name: str) -> None:
    environ = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(ValueError, match=rf"without {name}: all five belong together\. Start with `torchrun"):
        current_process(environ)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "8"}, "RANK=8 and WORLD_SIZE=8"),
        ({"WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=0"),
        ({"LOCAL_RANK": "6"}, "LOCAL_RANK=6 and RANK=5"),
        ({"RANK": "-1"}, "RANK='-1': a whole number"),
        ({"RANK": "one"}, "RANK='one': a whole number"),
        ({"RANK": "\u00b2"}, "a whole number"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    ],
)
def test_contradictions_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        current_process(TORCHRUN | change)


def test_many_tasks_that_do_not_know_each_other_are_warned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert current_process({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "1"}).world == 1
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert current_process({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}).world == 1
    assert "one of 8 tasks" in caplog.text


@pytest.mark.slow
def test_a_real_torchrun(repository: Path, tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(
        "import os, pathlib\n"
        "from detr_container.base.processes import current_process\n"
        "info = current_process(os.environ)\n"
        "(pathlib.Path(__file__).parent / f'{info.rank}').write_text(repr(info))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shown = {name: (tmp_path / name).read_text() for name in ("0", "1")}
    assert shown == {name: repr(ProcessInfo(int(name), int(name), 2)) for name in shown}
