"""Interrupt a run on a real Slurm in every way that a cluster knows, and compare it with an uninterrupted one.

python tests/slurm_campaign.py FOLDER --times 40 --draw 1 starts a private cluster (tests/slurm_cluster.py) in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from runs import tiny, train_in
from slurm_cluster import MARK, Cluster, cluster
from slurm_configuration import NODES

from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.shapes import make_shapes
from detr_container.launch.resources import Resources
from detr_container.measure import soak

Facts = Mapping[str, Any]
"""What job.json holds."""
QUIET = 10.0
"""Seconds of training between two interruptions, on average, at most."""
LEAVING = 60.0
"""Seconds that an srun whose batch script was killed may take to notice it."""


class Ways:
    """What can happen to a job; each returns whether it has happened."""

    def __init__(self, slurm: Cluster) -> None:
        self.slurm = slurm

    def all(self) -> dict[str, soak.Way]:
        """By name, those that any user can do to a job of his own included."""
        mine: dict[str, soak.Way] = {
            "SIGKILL of a rank": self.kill_a_rank,
            "batch script and ranks killed": self.kill_everything,
            "preemption": self.preempt,
            "SIGKILL of all processes, then preemption": self.preempt_after_kill,
            "node down": self.node_down,
            "slurmd killed": self.slurmd_killed,
            "power cut": self.power_cut,
            "time limit": self.time_limit,
        }
        return soak.WAYS["slurm"] | mine

    def kill_a_rank(self, facts: Facts, draw: random.Random) -> bool:
        ranks = _ranks(facts)
        return bool(ranks) and _kill([draw.choice(ranks)])

    def kill_everything(self, facts: Facts, draw: random.Random) -> bool:
        return _kill([*_batch(facts), *_ranks(facts)])

    def preempt(self, facts: Facts, draw: random.Random) -> bool:
        wants = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--output=/dev/null"]
        self.slurm.run("sbatch", "--partition=high", *wants, "--wrap=sleep 2")
        return True

    def preempt_after_kill(self, facts: Facts, draw: random.Random) -> bool:
        """As the whole job dies, somebody of more importance wants its nodes."""
        killed = _kill(_ranks(facts))
        time.sleep(draw.uniform(0, 1))
        return killed and self.preempt(facts, draw)

    def node_down(self, facts: Facts, draw: random.Random) -> bool:
        node = draw.choice(NODES)
        self.slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=campaign")
        self._back(node)
        return True

    def slurmd_killed(self, facts: Facts, draw: random.Random) -> bool:
        """The node is unreachable: what runs there continues until its slurmd is back."""
        node = draw.choice(NODES)
        self.slurm.kill_slurmd(node)
        self.slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=campaign")
        time.sleep(2)
        self.slurm.start_slurmd(node)
        self._back(node)
        return True

    def power_cut(self, facts: Facts, draw: random.Random) -> bool:
        """All of the job's processes on a node, and what looks after them, are gone at once."""
        node = draw.choice(NODES)
        stepds = [each for each in psutil.process_iter(["cmdline"]) if _is_step(each, facts) and _node(each) == node]
        victims = [child for each in stepds for child in _children(each)]
        for each in [*stepds, *victims]:
            with suppress(psutil.Error):
                each.suspend()
        self.slurm.kill_slurmd(node)
        _kill([*stepds, *victims])
        self.slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=campaign")
        self.slurm.start_slurmd(node)
        self._back(node)
        return True

    def time_limit(self, facts: Facts, draw: random.Random) -> bool:
        """The limit comes within a minute, whichever start this is; afterwards the job has its time again."""
        known = self.slurm.job(facts["job"])
        if known["JobState"] != "RUNNING":
            return False
        hours, minutes, _ = map(int, known["RunTime"].split(":"))
        self.slurm.run("scontrol", "update", f"JobId={facts['job']}", f"TimeLimit={60 * hours + minutes + 1}")
        end = time.monotonic() + 150
        while self.slurm.job(facts["job"])["Restarts"] == known["Restarts"] and time.monotonic() < end:
            if self.slurm.job(facts["job"])["JobState"] not in ("RUNNING", "COMPLETING", "PENDING", "TIMEOUT"):
                break
            time.sleep(0.5)
        self.slurm.run("scontrol", "update", f"JobId={facts['job']}", "TimeLimit=60")
        return True

    def _back(self, node: str) -> None:
        time.sleep(2)
        with suppress(RuntimeError):
            self.slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")


def _is_step(process: psutil.Process, facts: Facts) -> bool:
    return f"[{facts['job']}." in " ".join(process.info["cmdline"] or [])


def _steps(facts: Facts) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if _is_step(each, facts)]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _node(step: psutil.Process) -> str:
    """A step's node: with all nodes on one machine, its processes' environment holds it."""
    for child in _children(step):
        with suppress(psutil.Error):
            if name := child.environ().get("SLURMD_NODENAME"):
                return name
    return ""


def _ranks(facts: Facts) -> list[psutil.Process]:
    steps = [each for each in _steps(facts) if f"[{facts['job']}.batch" not in " ".join(each.info["cmdline"] or [])]
    return [child for each in steps for child in _children(each)]


def _batch(facts: Facts) -> list[psutil.Process]:
    steps = [each for each in _steps(facts) if f"[{facts['job']}.batch" in " ".join(each.info["cmdline"] or [])]
    return [child for each in steps for child in _children(each)]


def _kill(processes: list[psutil.Process]) -> bool:
    for each in processes:
        with suppress(psutil.Error):
            each.send_signal(signal.SIGKILL)
    return bool(processes)


def left_behind(folder: Path, slurm: Path, seconds: float = LEAVING) -> list[str]:
    """Files of killed processes in the folder of a campaign's runs, and srun processes that do not end soon.

    slurm: the folder of the cluster that they would be of.
    """
    found = [
        str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name == ".lock" or ".tmp" in path.name
    ]
    end = time.monotonic() + seconds
    while (sruns := _sruns(slurm)) and time.monotonic() < end:
        time.sleep(0.5)
    return found + sruns


def _sruns(slurm: Path) -> list[str]:
    found = []
    for each in psutil.process_iter(["name", "status"]):
        if each.info["name"] == "srun" and each.info["status"] != psutil.STATUS_ZOMBIE:
            with suppress(psutil.Error):
                if each.environ().get(MARK) == str(slurm):
                    found.append(f"srun, process {each.pid}")
    return found


def _epoch(folder: Path, experiment: DetectionExperiment) -> float:
    """Seconds that an epoch takes one process, here and now."""
    epochs = 20
    began = time.monotonic()
    train_in(folder, replace(experiment, train=replace(experiment.train, epochs=epochs, eval_every=0)))
    return (time.monotonic() - began) / epochs


def campaign(
    slurm: Cluster, folder: Path, times: int, draw: int, within: float = 12.0, kinds: Collection[str] = ()
) -> int:
    """Interrupt a run so often; returns 0 when it ended as the uninterrupted one, nothing left behind.

    kinds: names of `Ways.all`; default: all of them.
    """
    root = folder / "data"
    if not root.exists():
        make_shapes(root, 16, 5, 64, workers=0)
    settings = {"train__micro_batch": 1, "train__ema_decay": 0.9, "head__dropout": 0.1}
    # It must not end before the last interruption, on a fast machine neither.
    epochs = round(QUIET * times / _epoch(folder / f"pace-{draw}", tiny(root, **settings)))
    changed = {"train__epochs": epochs, "train__eval_every": epochs // 2, "train__checkpoint_minutes": 0.05}
    experiment = tiny(root, **settings, **changed)
    resources = Resources(nodes=2, gpus_per_node=0, tasks_per_node=1, time="1h", cpus_per_task=1)
    options = soak.SoakOptions(
        experiment, resources, cluster="slurm", times=times, within=within, draw=draw, folder=folder / f"soak-{draw}"
    )
    ways = {name: way for name, way in Ways(slurm).all().items() if not kinds or name in kinds}
    status = soak.run(options, ways)
    found = left_behind(options.folder, Path(slurm.environment[MARK]))
    sys.stdout.write(f"left behind: {', '.join(found) or 'nothing'}\n")
    return status or bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--draw", type=int, nargs="+", default=[0])
    parser.add_argument("--within", type=float, default=12.0)
    options = parser.parse_args()
    folder = options.folder.resolve()
    with cluster(folder / "cluster") as slurm:
        os.environ.update(slurm.environment, OMP_NUM_THREADS="1")
        return max(campaign(slurm, folder, options.times, draw, options.within) for draw in options.draw)


if __name__ == "__main__":
    sys.exit(main())
