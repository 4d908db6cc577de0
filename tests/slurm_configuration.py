"""What the Slurm of the tests is configured as: two nodes, three partitions, pretended GPUs."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = ("node1", "node2")
CPUS, GPUS, MEMORY = 4, 2, 8000
"""What each node pretends to have; memory in MiB."""
CONFIGURATION = "detr-container-slurm"
"""The folder of the files, by whose name a cluster's processes are known."""


def host() -> str:
    """This machine's name as Slurm wants it."""
    return socket.gethostname().partition(".")[0]


def configure(folder: Path, grace: int, settings: dict[str, object]) -> None:
    """Write the configuration, the pretended GPUs and munged's key into a folder that only its owner can enter."""
    for path in (folder, folder / CONFIGURATION, folder / "log", folder / "state"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    port, *ports = _ports(1 + len(NODES))
    lines = [f"{name}={value}" for name, value in (_settings(folder, port) | settings).items()]
    shape = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory={MEMORY}"
    for node, number in zip(NODES, ports, strict=True):
        where = f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host()} Port={number}"
        lines.append(f"{where} {shape} Gres=gpu:{GPUS} State=UNKNOWN")
        (folder / f"spool.{node}").mkdir(mode=0o755, exist_ok=True)
    usual = f"Nodes={','.join(NODES)} DefaultTime=10 MaxTime=1440 DefMemPerCPU=500 State=UP"
    lines += [
        f"PartitionName=low {usual} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}",
        f"PartitionName=low0 {usual} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
        f"PartitionName=high {usual} PriorityTier=10 PreemptMode=OFF",
    ]
    (folder / CONFIGURATION / "slurm.conf").write_text("\n".join(lines) + "\n")
    for number in range(GPUS):
        # Any device will do as long as its name ends with the GPU's number; containers have no /dev/tty0.
        with suppress(FileExistsError):
            (folder / f"gpu{number}").symlink_to(os.devnull)
    gpus = "".join(f"NodeName={node} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n" for node in NODES)
    (folder / CONFIGURATION / "gres.conf").write_text(gpus)
    # slurmd looks for cgroups although nothing uses them, and gives up where there are none, but for their version.
    (folder / CONFIGURATION / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _settings(folder: Path, port: int) -> dict[str, object]:
    """What slurm.conf holds besides nodes and partitions. port: of slurmctld."""
    return {
        "ClusterName": "test",
        "SlurmctldHost": f"{host()}(127.0.0.1)",
        "SlurmctldPort": port,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A requeued job waits until its old credential has expired: about 7 s so, two minutes by default.
        "AuthInfo": f"socket={folder / 'munge.socket'},cred_expire=5",
        "AccountingStorageType": "accounting_storage/none",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool.%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.%n.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": folder / "log" / "slurmd.%n.log",
        "SlurmctldDebug": "verbose",
        "SlurmdDebug": "verbose",
        "MailProg": "/bin/true",
        # Nothing of cgroups or systemd, which containers lack. proctrack/pgid would lose signals.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "ReturnToService": 2,
        # What can never be had is refused; by default it would be waited for.
        "EnforcePartLimits": "ALL",
        # The nodes have what the configuration states, not what the machine has.
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "GresTypes": "gpu",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        # The signal of --signal is sent ahead of preemption, too.
        "SlurmctldParameters": "preempt_send_user_signal",
        "JobRequeue": 1,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0",
        # By default 30. Two ranks that share a busy machine need more than a few seconds to save and leave.
        "KillWait": 20,
        "OverTimeLimit": 0,
        # Ended jobs can be asked about for an hour, since there is no accounting.
        "MinJobAge": 3600,
        # Were numbers used again, files of an earlier cluster's jobs would be taken for this one's.
        "FirstJobId": 1000 + int(time.time() * 10) % 60_000_000,
        "MessageTimeout": 30,
        **({"CommunicationParameters": "EnableIPv6"} if _is_without_network() else {}),
    }


def _is_without_network() -> bool:
    """Whether there is the loopback interface alone: Slurm's question for its own addresses has no answer in IPv4."""
    try:
        socket.getaddrinfo(None, 1, socket.AF_INET, socket.SOCK_STREAM, 0, socket.AI_PASSIVE | socket.AI_ADDRCONFIG)
    except OSError:
        return True
    return False
