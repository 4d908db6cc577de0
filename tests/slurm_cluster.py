"""A real Slurm of two virtual nodes on this machine, for the tests of launching; started in a folder, stopped wholly.

Signals, requeues and preemption are a scheduler's own; no imitation of one has them right. The nodes pretend to have
four CPUs and two GPUs each, whatever the machine has.

Outside its folder a cluster leaves three marks while it lives: processes that carry MARK in their environment or are
Slurm's in a folder called CONFIGURATION, links in /etc/slurm to files of such a folder, and lines of /etc/hosts that
end with MARK. Each is recognised without any record, so the next cluster cleans up after a test run that was killed,
even when that one's folder is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from slurm_configuration import CONFIGURATION, NODES, configure, host

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
"""Debian's, which have everything."""
MARK = "DETR_CONTAINER_TEST_SLURM"

HOSTS = Path("/etc/hosts")
LINKS = (Path("/etc/slurm/slurm.conf"), Path("/etc/slurm/gres.conf"))
LOCK = Path("/run/detr-container-slurm.lock")
"""Not in the temporary folder, which TMPDIR moves: what is locked, /etc, is the machine's."""
_PROGRAMS = ("slurmctld", "slurmd", "munged", "munge", "srun", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
_PATH = os.pathsep.join(dict.fromkeys([*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/bin", "/usr/sbin"]))
_GONE = (psutil.Error, OSError)
"""What psutil raises about a process that ends while it is looked at."""
_LONGEST_FOLDER = 107 - len("/spool.node1/node1_99999999.4294967291")
"""Characters: the kernel allows a socket's whole name 107, and every step of a job has one in the folder."""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"Slurm is not installed (no {', '.join(absent)}). On Debian: apt-get install {' '.join(PACKAGES)}"
    if os.geteuid() != 0:
        return "only root can start a Slurm that runs jobs, and give its nodes names"
    etc = LINKS[0].parent
    for path in (HOSTS, etc if etc.exists() else etc.parent, LOCK.parent):
        if not os.access(path, os.W_OK):
            return f"{path} cannot be written"
    for line in HOSTS.read_text().splitlines():
        if not line.endswith(MARK) and set(NODES) & set(line.partition("#")[0].split()):
            return f"{HOSTS} has another meaning for the nodes' names: {line}"
    return _others()


@contextmanager
def cluster(folder: Path, *, grace: int = 30, **settings: object) -> Iterator[Cluster]:
    """A cluster that lives in `folder` (made; its whole name must be short) while the context is entered.

    grace: seconds that a job of the partition `low` is given when it is preempted.
    settings: lines of slurm.conf that replace or extend the usual ones, such as KillWait=30.
    Waits for its turn while another process has a cluster. Raises RuntimeError, with the reason or the logs, when none
    can be started.
    """
    folder = folder.resolve()
    if len(str(folder)) > _LONGEST_FOLDER:
        raise ValueError(f"{folder} is too long for the sockets in it: at most {_LONGEST_FOLDER} characters")
    with alone(), ExitStack() as undo:
        clean()
        reason = missing()
        if reason is not None:
            raise RuntimeError(reason)
        running = Cluster(folder)
        # Undone from the last to the first; what an interrupted step leaves over, the next one sees to.
        undo.callback(running.reap)
        undo.callback(clean)
        configure(folder, grace, settings)
        announce(folder)
        undo.callback(running.cancel_all)
        running.start()
        yield running


class Cluster:
    """A running Slurm. Partitions: low (the default), low0 (as low, without a time of grace), high (preempts both).

    environment: the variables that a program needs to reach it, to be added to the program's own.
    """

    def __init__(self, folder: Path) -> None:
        configuration = folder / CONFIGURATION / "slurm.conf"
        self.environment: dict[str, str] = {"SLURM_CONF": str(configuration), "PATH": _PATH, MARK: str(folder)}
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._slurmds: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str | os.PathLike[str], seconds: float = 60) -> str:
        """What a command such as squeue writes to stdout; RuntimeError with all that it wrote when it fails."""
        environment = _outside() | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` prints of a job: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        return parse(self.run("scontrol", "show", "job", "-o", str(number)).splitlines()[0])

    def wait(self, number: int | str, states: str | Collection[str], seconds: float) -> dict[str, str]:
        """The job, once it is in one of the states; TimeoutError with the logs after `seconds`."""
        expected = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in expected:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"job {number} is not {' or '.join(expected)} after {seconds} s: {job}\n{self.log()}"
                )
            time.sleep(0.1)
        return job

    def log(self, lines: int = 40) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for output in sorted((self._folder / "log").glob("*.out")):
            # What a daemon prints before it has opened its log, and all of munged's words, are in the output.
            log = output.with_suffix(".log")
            path = log if log.exists() and log.stat().st_size else output
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(parts)

    def start(self) -> None:
        """Start the daemons, each once those that it needs answer."""
        munge_socket = str(self._folder / "munge.socket")
        files = [f"--{name}-file={self._folder / f'munge.{name}'}" for name in ("key", "pid", "seed")]
        # --force: it would refuse to live below a folder that everybody may write to, such as /tmp.
        self._launch("munged", "munged", "--foreground", "--force", f"--socket={munge_socket}", *files)
        self._until("answer of munged", "", "munge", "-S", munge_socket, "-n", "-o", os.devnull)
        self._launch("slurmctld", "slurmctld", "-D", "-c", "-i")
        self._until("answer of slurmctld", " UP", "scontrol", "ping")
        for node in NODES:
            self.start_slurmd(node)
        self._until("idle nodes", str(len(NODES)), "sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D")

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon, for the first time or again."""
        self._slurmds[node] = self._launch(f"slurmd.{node}", "slurmd", "-D", "-N", node)

    def kill_slurmd(self, node: str) -> None:
        """A node's daemon dies; the jobs there do not."""
        daemon = self._slurmds.pop(node)
        self._daemons.remove(daemon)
        daemon.kill()
        daemon.wait(10)

    def cancel_all(self, seconds: float = 2) -> None:
        """Cancel every job and wait a little, as far as the daemons still answer."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            end = time.monotonic() + seconds
            if self.run("squeue", "-h", seconds=5):
                self.run("scancel", "--user=root", seconds=5)
            while self.run("squeue", "-h", seconds=5) and time.monotonic() < end:
                time.sleep(0.1)

    def reap(self) -> None:
        """Collect the daemons' exit statuses, lest they stay as zombies; `clean` has ended them."""
        for daemon in self._daemons:
            daemon.wait(10)

    def _launch(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon that shares nothing with this process: no terminal, no open file, no signal."""
        with (self._folder / "log" / f"{name}.out").open("ab") as output:
            daemon = subprocess.Popen(
                [shutil.which(command[0], path=_PATH) or command[0], *command[1:]],
                env=_outside() | self.environment,
                cwd=self._folder / CONFIGURATION,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons.append(daemon)
        return daemon

    def _until(self, what: str, expected: str, *command: str, seconds: float = 30) -> None:
        """Wait until a command succeeds and writes what is expected."""
        end = time.monotonic() + seconds
        while True:
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                if expected in self.run(*command, seconds=5):
                    return
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                raise RuntimeError(f"no {what}{f', and these have ended: {dead}' if dead else ''}\n{self.log()}")
            time.sleep(0.05)


def parse(line: str) -> dict[str, str]:
    """A line of `scontrol show ... -o`: NAME=VALUE NAME=VALUE, where values may have spaces."""
    return dict(re.findall(r"([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", line))


@contextmanager
def alone(seconds: float = 900) -> Iterator[None]:
    """Hold the lock that a machine has once; TimeoutError after `seconds`. The kernel frees it when its holder dies."""
    end = time.monotonic() + seconds
    with LOCK.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has had {LOCK} for {seconds} s") from None
                time.sleep(0.2)
        try:
            yield
        finally:
            # A process forked meanwhile may have the file open still, so that closing it here would not do.
            fcntl.flock(file, fcntl.LOCK_UN)


def clean() -> None:
    """End all processes of any cluster of the tests, and remove its links and its lines of /etc/hosts.

    To be called by whoever holds the lock: nobody else's cluster is alive then.
    """
    try:
        # A process that dies may have started another, hence the second KILL.
        for how, seconds in ((psutil.Process.terminate, 2.0), (psutil.Process.kill, 5.0), (psutil.Process.kill, 5.0)):
            if _end(how, seconds):
                break
        else:
            raise RuntimeError(f"these survive SIGKILL: {marked()}")
    finally:
        forget()


def announce(folder: Path) -> None:
    """Make the nodes' names known, and the configuration found without SLURM_CONF, which submitit drops for jobs."""
    for link in LINKS:
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(folder / CONFIGURATION / link.name)
    # Each has an address of its own (all of 127.x.x.x is this machine), lest 127.0.0.1 be called node1 by everybody.
    lines = [f"127.0.0.{place} {node} # {MARK}" for place, node in enumerate(NODES, start=2)]
    try:
        socket.gethostbyname(host())
    except OSError:
        lines.append(f"127.0.0.1 {host()} # {MARK}")
    text = HOSTS.read_text()
    with HOSTS.open("a") as file:
        file.write("\n".join([*lines, ""] if text.endswith("\n") or not text else ["", *lines]))


def forget() -> None:
    """Undo `announce`, whoever called it: /etc is what it was, to the byte."""
    for link in LINKS:
        if _is_ours(link):
            link.unlink()
    lines = HOSTS.read_text().split("\n")
    kept = "\n".join(line for line in lines if not line.endswith(MARK)).encode()
    # In place, since a container's /etc/hosts cannot be replaced, and so that nobody ever reads half of it: the marked
    # lines are the last ones unless somebody else has added to them.
    with HOSTS.open("r+b") as file:
        file.write(kept)
        file.truncate()


def marked() -> list[psutil.Process]:
    """The living processes of the clusters of the tests, except this one and those that it descends from."""
    found: set[psutil.Process] = set()
    for process in _processes():
        if _is_marked(process):
            found.add(process)
            with suppress(*_GONE):
                found.update(process.children(recursive=True))
    return [process for process in found - {psutil.Process(), *psutil.Process().parents()} if _is_alive(process)]


def _processes() -> Iterator[psutil.Process]:
    """All of this machine's, or of this container's: a machine sees those of its containers, whose /etc is another."""
    own = os.stat("/proc/self/ns/pid").st_ino
    for process in psutil.process_iter():
        with suppress(*_GONE):
            if os.stat(f"/proc/{process.pid}/ns/pid").st_ino == own:
                yield process


def _others() -> str | None:
    """The Slurm that somebody else has on this machine, in words, or None."""
    for link in LINKS:
        if os.path.lexists(link) and not _is_ours(link):
            return f"this machine has a Slurm of its own: {link}"
    for process in _processes():
        with suppress(*_GONE):
            if process.name() in ("slurmctld", "slurmd") and not _is_marked(process) and _is_alive(process):
                return f"this machine runs a Slurm of its own: {process.name()}, process {process.pid}"
    return None


def _is_marked(process: psutil.Process) -> bool:
    try:
        if process.name().startswith("slurm") and Path(process.cwd()).name.startswith(CONFIGURATION):
            # Some daemons have their title written over their environment, but are still where they were started.
            return True
        return MARK in process.environ()
    except _GONE:
        return False


def _is_alive(process: psutil.Process) -> bool:
    # A container's first process may never collect its dead.
    with suppress(*_GONE):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _end(how: Callable[[psutil.Process], None], seconds: float) -> bool:
    """Whether no process of a cluster is left some time after a signal to all of them."""
    for process in marked():
        with suppress(*_GONE):
            how(process)
    end = time.monotonic() + seconds
    while marked():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _is_ours(link: Path) -> bool:
    return link.is_symlink() and Path(os.readlink(link)).parent.name == CONFIGURATION


def _outside() -> dict[str, str]:
    """This process's environment without any Slurm's variables: the tests may themselves run in a job."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
