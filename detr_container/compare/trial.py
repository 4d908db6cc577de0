"""How long training will take, by a few steps of it, in a process of its own: what it took is given back by its end.

python -m detr_container.compare.trial reads experiments from standard input, as JSON {name: settings}, and writes
{name: seconds}.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from detr_container import config
from detr_container.config import Experiment

STEPS, SECONDS = 3, 10.0
"""Steps to measure after the first, and after how long to be content with fewer."""


def training_seconds(experiments: Mapping[str, Experiment], environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds that each experiment's training will take on this machine, evaluation not counted.

    environment: of the processes that will train, which says how many threads they will have.
    Raises ValueError, in its own words, when one cannot be trained.
    """
    if not experiments:
        return {}
    request = json.dumps({name: config.to_dict(experiment) for name, experiment in experiments.items()})
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=request, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise ValueError(f"a first step of the comparison failed: {words[-1]}")
    return dict(json.loads(done.stdout))


def _tried(experiment: Experiment) -> float:
    from detr_container.build import open_data
    from detr_container.distributed import session
    from detr_container.probe import Probe

    with tempfile.TemporaryDirectory(prefix="compare-") as folder, session(experiment.device) as here:
        probe = Probe(experiment, Path(folder) / "probe", open_data(experiment), here)
        steps, taken = probe.timed_steps(), list[float]()
        # The first pays for what is set up once.
        next(steps)
        began = time.monotonic()
        while len(taken) < STEPS and (not taken or time.monotonic() - began < SECONDS):
            taken.append(next(steps)[1])
        steps.close()
        return statistics.median(taken) * probe.total


def main() -> int:
    """Try every experiment in turn."""
    experiments = {name: config.from_dict(values) for name, values in json.load(sys.stdin).items()}
    found = {}
    for name, experiment in experiments.items():
        try:
            found[name] = _tried(experiment)
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
            return 1
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
