"""The Slurm that the tests of launching rest on: it runs jobs, preempts, requeues, warns, and leaves nothing behind.

Were it wrong in any of this, those tests would prove nothing about a real cluster; and a process, a link or a name left
behind would spoil the machine of whoever runs them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import slurm_cluster
from slurm_cluster import Cluster, alone, cluster
from slurm_configuration import NODES

MISSING = slurm_cluster.missing()
needs_slurm = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
# There is one cluster at a time, so that a process would only wait for another with tests of it.
pytestmark = pytest.mark.xdist_group("slurm")

# A task that writes down its signals, obeys none, and ends by itself should a test have gone wrong.
TASK = """
import os, signal, sys, time
def note(number, frame):
    with open(sys.argv[1] + os.environ["SLURM_PROCID"], "a") as file:
        file.write(f"{time.time()} {signal.Signals(number).name}\\n")
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, note)
for _ in range(900):
    time.sleep(0.1)
"""
# A test run that is killed in the middle of things. Its daemons hold nothing of it, or its output would never end.
KILLED = """
import os, signal, sys, time, slurm_cluster
from pathlib import Path
with slurm_cluster.cluster(Path(sys.argv[1])) as slurm:
    begun = Path(sys.argv[1], "begun")
    slurm.run("sbatch", "--output=/dev/null", f"--wrap=trap '' TERM; sleep 93 & touch {begun}; wait")
    while not begun.exists():
        time.sleep(0.1)
    print(*[process.pid for process in slurm_cluster.marked()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def submit(slurm: Cluster, script: str, *options: str) -> str:
    """The number of a new job of one task on each node."""
    usual = ("--parsable", "--nodes=2", "--ntasks-per-node=1", "--chdir=/", "--output=/dev/null")
    return slurm.run("sbatch", *usual, *options, f"--wrap={script}").strip()


def signals(slurm: Cluster, folder: Path, name: str, seconds: float) -> float:
    """The time of the first signal, once the tasks on both nodes have one; it is USR2 on both."""
    files = [folder / f"{name}{number}" for number in range(2)]
    end = time.monotonic() + seconds
    while not all(file.exists() and file.read_text().endswith("\n") for file in files):
        assert time.monotonic() < end, slurm.log()
        time.sleep(0.1)
    first = [file.read_text().split()[:2] for file in files]
    assert {what for _, what in first} == {"SIGUSR2"}
    return min(float(when) for when, _ in first)


@pytest.fixture(scope="class")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the cluster, and of what its jobs write."""
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="class")
def slurm(folder: Path) -> Iterator[Cluster]:
    with cluster(folder) as running:
        yield running


@pytest.fixture(scope="class")
def timed(slurm: Cluster, folder: Path) -> str:
    """A job of a minute that asks for a warning."""
    (folder / "task.py").write_text(TASK)
    task = f"srun {sys.executable} {folder}/task.py {folder}/timed"
    return submit(slurm, task, "--partition=high", "--time=1", "--signal=USR2@50")


@needs_slurm
@pytest.mark.long
@pytest.mark.usefixtures("timed")  # begun before the first test, for the warning takes half a minute to come
class TestRunning:
    def test_a_job_runs_on_both_nodes_each_with_its_gpus(self, slurm: Cluster) -> None:
        script = 'echo "$(hostname) $SLURM_NODEID $CUDA_VISIBLE_DEVICES $(getent hosts node1 node2 | wc -l)"'
        lines = slurm.run("srun", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:2", "sh", "-c", script).splitlines()
        host = os.uname().nodename
        assert sorted(lines) == [f"{host} 0 0,1 2", f"{host} 1 0,1 2"]

    def test_what_can_never_be_had_is_refused(self, slurm: Cluster) -> None:
        with pytest.raises(RuntimeError, match="More processors requested than permitted"):
            submit(slurm, "true", "--cpus-per-task=5")

    def test_preemption_and_an_administrator_requeue_a_job(self, slurm: Cluster) -> None:
        administered = submit(slurm, "sleep 60", "--partition=high")
        preempted = submit(slurm, "sleep 60", "--partition=low0", "--cpus-per-task=2")
        for job in (administered, preempted):
            assert slurm.wait(job, "RUNNING", 20)["Restarts"] == "0"
        slurm.run("scontrol", "requeue", administered)
        urgent = submit(slurm, "true", "--partition=high", "--cpus-per-task=2")
        slurm.wait(urgent, "COMPLETED", 30)
        for job in (administered, preempted):
            assert slurm.wait(job, "RUNNING", 30)["Restarts"] == "1"
            slurm.run("scancel", job)
            slurm.wait(job, "CANCELLED", 20)

    def test_a_job_that_is_preempted_with_grace_is_warned_and_resumes(self, slurm: Cluster, folder: Path) -> None:
        task = f"srun {sys.executable} {folder}/task.py {folder}/graceful"
        job = submit(slurm, task, "--partition=low", "--signal=USR2@60", "--cpus-per-task=2")
        slurm.wait(job, "RUNNING", 20)
        # Slurm warns the steps that there are, so this one's tasks have to have begun.
        time.sleep(2)
        urgent = submit(slurm, "true", "--partition=high", "--cpus-per-task=2")
        signals(slurm, folder, "graceful", 10)
        state = slurm.job(job)
        assert (state["JobState"], state["Restarts"]) == ("RUNNING", "0")
        assert state["PreemptTime"] != "None"
        slurm.run("scancel", job, urgent)

    def test_the_end_of_a_jobs_time_is_announced(self, slurm: Cluster, folder: Path, timed: str) -> None:
        # Slurm looks at its jobs' times every 30 seconds; the warning comes up to a minute before the moment asked for.
        at = signals(slurm, folder, "timed", 45)
        job = slurm.job(timed)
        end = time.mktime(time.strptime(job["EndTime"], "%Y-%m-%dT%H:%M:%S"))
        assert job["JobState"] == "RUNNING"
        assert 15 < end - at < 61

    def test_it_is_the_only_one_and_known_for_a_tests_own(self) -> None:
        assert slurm_cluster.missing() is None
        with pytest.raises(TimeoutError, match="another process has had"), alone(0):
            pass


def with_stubborn_job(slurm: Cluster) -> list[psutil.Process]:
    """The cluster's processes, among them tasks that ignore SIGTERM and a child that has nothing of the cluster's."""
    script = "trap '' TERM; setsid env -i sleep 91 & srun sh -c \"trap '' TERM; sleep 92\""
    slurm.wait(submit(slurm, script), "RUNNING", 20)
    end = time.monotonic() + 10
    while True:
        processes = slurm_cluster.marked()
        with suppress(psutil.NoSuchProcess):
            if sum(process.name() == "sleep" for process in processes) == 3:
                return processes
        assert time.monotonic() < end, slurm.log()
        time.sleep(0.1)


def assert_ended(processes: list[psutil.Process]) -> None:
    alive = [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not alive


@needs_slurm
@pytest.mark.long
def test_stopping_leaves_nothing_even_when_interrupted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with alone():
        before = slurm_cluster.HOSTS.read_bytes()
    processes = []

    def interrupted() -> None:
        with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
            processes.extend(with_stubborn_job(slurm))
            assert all(os.path.lexists(link) for link in slurm_cluster.LINKS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_ended(processes)
    with alone():
        assert not slurm_cluster.marked()
        assert not any(os.path.lexists(link) for link in slurm_cluster.LINKS)
        assert slurm_cluster.HOSTS.read_bytes() == before


@needs_slurm
@pytest.mark.long
def test_what_a_killed_run_left_is_cleaned_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    first, second = tmp_path_factory.mktemp("slurm"), tmp_path_factory.mktemp("slurm")
    command = [sys.executable, "-c", KILLED, str(first)]
    done = subprocess.run(command, env=os.environ | path, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
    assert done.returncode == -signal.SIGKILL
    numbers = [int(number) for number in done.stdout.split()]
    assert len(numbers) > 5
    left = [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]
    shutil.rmtree(first, ignore_errors=True)
    with cluster(second) as slurm:
        assert_ended(left)
        assert all(Path(os.readlink(link)).is_relative_to(second) for link in slurm_cluster.LINKS)
        assert slurm.run("srun", "--nodes=2", "echo", "well").split() == ["well", "well"]


@pytest.mark.parametrize("text", ["", "127.0.0.1 localhost\n", "127.0.0.1 localhost"])
def test_etc_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    hosts, links = tmp_path / "hosts", (tmp_path / "slurm" / "slurm.conf", tmp_path / "slurm" / "gres.conf")
    monkeypatch.setattr(slurm_cluster, "HOSTS", hosts)
    monkeypatch.setattr(slurm_cluster, "LINKS", links)
    hosts.write_text(text)
    slurm_cluster.announce(tmp_path / "cluster")
    named = [line.split()[1] for line in hosts.read_text().splitlines()]
    assert [name for name in named if name in NODES] == ["node1", "node2"]
    slurm_cluster.forget()
    assert hosts.read_text() == text
    assert not any(map(os.path.lexists, links))


def test_somebody_elses_slurm_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, link = tmp_path / "hosts", tmp_path / "slurm.conf"
    monkeypatch.setattr(slurm_cluster, "_PROGRAMS", ("sh",))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(slurm_cluster, "HOSTS", hosts)
    monkeypatch.setattr(slurm_cluster, "LINKS", (link,))
    monkeypatch.setattr(slurm_cluster, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(()))
    hosts.write_text("127.0.0.1 localhost # not node1\n")
    assert slurm_cluster.missing() is None
    link.write_text("ClusterName=theirs\n")
    assert "a Slurm of its own" in str(slurm_cluster.missing())
    slurm_cluster.forget()
    assert link.read_text() == "ClusterName=theirs\n"
    hosts.write_text("10.0.0.7 node1.example.org node1\n")
    assert "another meaning" in str(slurm_cluster.missing())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root" in str(slurm_cluster.missing())
    monkeypatch.setattr(slurm_cluster, "_PROGRAMS", ("sh", "no-such-program"))
    assert "no no-such-program). On Debian: apt-get install slurmctld" in str(slurm_cluster.missing())


def test_what_scontrol_prints_is_understood() -> None:
    line = "JobId=7 JobName=a b=c Reason=None ReqB:S:C:T=0:0:*:* Socks/Node=* Command=/a b/c WorkDir=/ Power= "
    assert slurm_cluster.parse(line) == {
        "JobId": "7",
        "JobName": "a b=c",
        "Reason": "None",
        "ReqB:S:C:T": "0:0:*:*",
        "Socks/Node": "*",
        "Command": "/a b/c",
        "WorkDir": "/",
        "Power": "",
    }


def test_a_folder_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long for the sockets"), cluster(tmp_path / ("x" * 70)):
        pass
