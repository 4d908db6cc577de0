"""Two processes that would decide differently agree, or both end in one line that says which of them could not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from runs import REPOSITORY, environment, free_port, run_command

from detr_container.engine.session import is_lost


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[int], str]:
    """What both processes went through, their exit statuses, and what the first one wrote to standard error."""
    folder = tmp_path_factory.mktemp("parting")
    given = {"root": str(root), "ports": [free_port() for _ in range(9)]}
    (folder / "given.json").write_text(json.dumps(given))
    command = [sys.executable, str(REPOSITORY / "tests" / "parting_ranks.py"), str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank)], env=environment(), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        stderr = [process.communicate(timeout=300)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    files = [folder / f"found-{rank}.json" for rank in range(2)]
    assert all(path.exists() for path in files), "\n--- rank 1 ---\n".join(stderr)
    return [json.loads(path.read_text()) for path in files], [process.returncode for process in ranks], stderr[0]


def test_a_process_that_sees_no_checkpoint_loads_the_main_ones(found: Any) -> None:
    (first, second), _, _ = found
    assert first["begin"] == second["begin"]
    assert first["begin"][0] == 2
    assert first["blind"] == second["blind"]
    assert first["blind"][0] == 3


def test_a_process_that_cannot_read_the_file_ends_all(found: Any) -> None:
    (first, second), _, _ = found
    assert second["hidden"].startswith("FileNotFoundError: ")
    assert "no such checkpoint" in second["hidden"]
    assert first["hidden"].startswith("ConnectionError: another process of this job has ended: rank 1 on ")
    assert "no such checkpoint" in first["hidden"]


def test_processes_of_other_settings_do_not_train_together(found: Any) -> None:
    for each in found[0]:
        assert each["settings"].startswith("ValueError: the processes of this job do not agree on the setting seed: ")
        assert "rank 1 on " in each["settings"]


@pytest.mark.parametrize(("scene", "split"), [("train", "train"), ("val", "val"), ("evaluation", "val")])
def test_processes_with_other_annotation_files_do_not_train_or_evaluate_together(
    scene: str, split: str, found: Any
) -> None:
    """The file has the same name, settings and images everywhere, but not the same content."""
    name = f"shapes/annotations/instances_{split}2017.json"
    for each in found[0]:
        assert each[scene].startswith(f"ValueError: the processes of this job do not agree on the file {name}: rank 0 ")
        assert "SHA-256" in each[scene]
        assert "rank 1 on " in each[scene]


def test_a_failed_process_is_named_by_those_that_wait_for_it(found: Any) -> None:
    (first, second), _, _ = found
    assert "something of its own" in second["fail"]
    assert first["fail"].startswith("ConnectionError: another process of this job has ended: rank 1 on ")
    assert "something of its own" in first["fail"]


def test_nobody_waits_for_ever_for_a_process_that_failed(found: Any) -> None:
    _, statuses, stderr = found
    assert statuses == [2, 2]
    assert stderr.splitlines()[-1] == "[rank 0] error: another process of this job has ended: rank 1 has a reason"


def nccl(reason: str, kind: str, last: str) -> dist.DistBackendError:
    """NCCL's error as PyTorch words it, in lines."""
    place = "/pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690"
    return dist.DistBackendError(f"NCCL error in: {place}, {reason}, NCCL version 2.30.7\n{kind}\nLast error:\n{last}")


REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
SYSTEM = (
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. "
    "It can be also caused by unexpected exit of a remote peer, you can check NCCL warnings for failure reason and see "
    "if there is connection closure by a peer."
)
RUN = "(run with NCCL_DEBUG=INFO for details)"
WATCHDOG = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=ALLREDUCE) ran for 1800011 ms"
)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), True),
        (dist.DistBackendError(f"[PG ID 0 PG GUID 0 Rank 1] {WATCHDOG}"), True),
        (nccl("remote process exited or there was a network error", REMOTE, "socketProgress: Connection closed"), True),
        (nccl(f"unhandled system error {RUN}", SYSTEM, "Call to recv failed : Connection reset by peer"), True),
        (
            nccl(
                f"unhandled system error {RUN}",
                SYSTEM,
                "Error while creating shared memory segment /dev/shm/nccl-Ug (size 9637888), error: "
                "No space left on device (28)",
            ),
            False,
        ),
        (
            nccl(
                f"unhandled cuda error {RUN}",
                "ncclUnhandledCudaError: Call to CUDA function failed.",
                "Cuda failure 2 'out of memory'",
            ),
            False,
        ),
        (
            nccl(
                f"invalid usage {RUN}",
                "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
                "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
            ),
            False,
        ),
        (dist.DistNetworkError("Broken pipe"), True),
        (dist.DistStoreError("wait timeout after 1800000ms"), True),
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:9"), True),
        (RuntimeError("Connection reset by peer"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("by peer"), False),
    ],
)
def test_the_words_and_kinds_of_a_lost_neighbour(error: Exception, lost: bool) -> None:
    assert is_lost(error) is lost


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK", "MASTER_PORT"])
def test_a_malformed_variable_is_named_and_nobody_waits(name: str, tmp_path: Path) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = run_command(tmp_path, "train", "debug", "--device", "cpu", **place | {name: "x"})
    assert done.returncode == 2
    assert f"{name}='x': a whole number from" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


WAITS = "import sys; from pathlib import Path; from detr_container.config.experiments import named; "
WAITS += "from detr_container.base.interrupt import StopRequest; "
WAITS += "from detr_container.engine.train import train\n"
WAITS += "with StopRequest() as stop:\n    print('listening', flush=True)\n"
WAITS += "    sys.exit(train(named('debug').experiment, Path(sys.argv[1]), stop))"


def test_a_signal_ends_the_wait_for_a_process_that_never_comes(tmp_path: Path) -> None:
    """At once, whether this one keeps the meeting place or looks for it; within minutes it would be killed instead."""
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        surroundings = environment(**place, MASTER_PORT=str(free_port()))
        command = [sys.executable, "-c", WAITS, str(tmp_path / "run")]
        pipe = subprocess.PIPE
        ranks.append(subprocess.Popen(command, cwd=tmp_path, env=surroundings, stdout=pipe, stderr=pipe, text=True))
    try:
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            process.send_signal(signal.SIGTERM)
        stderr = [process.communicate(timeout=60)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [143, 143], stderr
    for text in stderr:
        assert "asked to stop by SIGTERM while waiting for the other processes: nothing was begun" in text
    assert os.listdir(tmp_path) == []
