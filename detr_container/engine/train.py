"""Training of any task, from a configuration to a finished run."""

from __future__ import annotations

import importlib
import logging
from contextlib import nullcontext
from pathlib import Path

from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import asking
from detr_container.config import settings as config
from detr_container.config.settings import Experiment
from detr_container.datasets.workers import worker_context

from .run import Run
from .session import Session, StoppedError, open_session
from .task import Task
from .trainer import Trainer

_log = logging.getLogger(__name__)


def train(experiment: Experiment, folder: Path, stop: StopRequest | None = None) -> int:
    """Train an experiment in a run folder, from its newest checkpoint if there is one.

    stop: who listens to signals already, if anybody. SIGUSR2 counts, too: it is what Slurm can be asked to send ahead
    of a time limit. Returns the exit status: 0 when finished (or at `train.max_steps`), 128 + the signal's number when
    interrupted. Raises ValueError for what the person can fix, FloatingPointError when something is not finite.
    """
    with nullcontext(stop) if stop is not None else StopRequest(usr2=True) as stop:
        try:
            with open_session(experiment.device, stop) as session:
                with asking("the data", {}):
                    task = task_of(experiment, session)
                with session.alone_in(folder), asking("training", experiment.memory):
                    return Trainer(task, experiment, Run(folder), session, stop).run_to_end()
        except StoppedError as error:
            _log.warning("%s: nothing was begun", error)
            return stop.exit_code


def task_of(experiment: Experiment, session: Session) -> Task:
    """An experiment's task with its data, on every process; all must have the same, valid settings."""
    with session.together():
        for warning in config.validate(experiment):
            if session.main:
                _log.warning("%s", warning)
    session.agree({f"the setting {name}": repr(value) for name, value in config.flatten(experiment).items()})
    if experiment.loader_workers:
        # The server of loader processes imports what they need while the data are read and the model is built.
        worker_context(experiment.preloaded)
    with session.together():
        module = importlib.import_module(experiment.module)
    task: Task = module.open_task(experiment, session)
    return task
