"""Training a detector, from a configuration to a finished run."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import asking
from detr_container.config.memory import for_step
from detr_container.config.settings import Experiment
from detr_container.engine.run import Run
from detr_container.engine.session import StoppedError, session
from detr_container.engine.trainer import Trainer

from .task import DetectionTask
from .together import data_on_all

_log = logging.getLogger(__name__)


def train(experiment: Experiment, folder: Path, stop: StopRequest | None = None) -> int:
    """Train an experiment in a run folder, from its newest checkpoint if there is one.

    stop: who listens to signals already, if anybody. SIGUSR2 counts, too: it is what Slurm can be asked to send ahead
    of a time limit. Returns the exit status: 0 when finished (or at `train.max_steps`), 128 + the signal's number when
    interrupted. Raises ValueError for what the person can mend, FloatingPointError when something is not finite.
    """
    with nullcontext(stop) if stop is not None else StopRequest(usr2=True) as stop:
        try:
            with session(experiment.device, stop) as here:
                with asking("the annotation files", {}):
                    task = DetectionTask(experiment, data_on_all(here, experiment))
                with here.alone_in(folder), asking("training", for_step(experiment)):
                    return Trainer(task, experiment, Run(folder), here, stop).run_to_end()
        except StoppedError as error:
            _log.warning("%s: nothing was begun", error)
            return stop.exit_code
