"""How long training will take, by a few steps of it, in a process of its own: what it took is given back by its end.

python -m detr_container.compare.trial is the other process of `one_by_one`: an item is an experiment's settings, and
what is found the seconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from detr_container.config import settings as config
from detr_container.config.settings import Experiment
from detr_container.measure.one_by_one import answer_each, found_of

STEPS, SECONDS = 3, 10.0
"""Steps to measure after the first, and after how long to be content with fewer."""
LIMIT = 3600.0
"""Seconds that the steps of one experiment may take; what takes longer hangs."""


def training_seconds(
    experiments: Mapping[str, Experiment], environment: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds that each experiment trains on this machine, evaluation not counted; why others cannot be trained.

    environment: of the processes that will train, which sets how many threads they will have.
    """
    items = {name: config.to_dict(experiment) for name, experiment in experiments.items()}
    seconds, failed = dict[str, float](), dict[str, str]()
    for name, found, why in found_of(__name__, items, LIMIT, environment):
        if why:
            failed[name] = why
        else:
            seconds[name] = float(found)
    return seconds, failed


def _tried(experiment: Experiment) -> float:
    from detr_container.base.shortage import asking
    from detr_container.engine.session import open_session
    from detr_container.engine.trials import trials_of
    from detr_container.measure.probe import Probe

    with (
        tempfile.TemporaryDirectory(prefix="compare-") as folder,
        open_session(experiment.device) as session,
        asking("a training step", experiment.memory),
    ):
        probe = Probe(trials_of(experiment).opened(), experiment, Path(folder) / "probe", session)
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
    return answer_each(
        lambda name, item: _tried(config.from_dict(item)),
        (ValueError, OSError, RuntimeError, FloatingPointError),
    )


if __name__ == "__main__":
    sys.exit(main())
