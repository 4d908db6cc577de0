"""`d2 train`: a configuration in detectron2's own loop, under our launcher.

Whatever ends a start, the next one continues from the newest checkpoint in the output folder: weights, optimizer,
schedule and iteration. Which images come next is not part of detectron2's checkpoints, so that data are drawn anew: a
resumed run is as good as an uninterrupted one, but not the same, and an evaluation that was cut short is not made up
for, but for the final one.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from detr_container.base.interrupt import StopRequest
from detr_container.base.processes import count
from detr_container.base.shortage import asking
from detr_container.engine.session import Session, StoppedError, open_session
from detr_container.tasks.detection.anchors import workarounds
from detr_container.tasks.detection.catalog import known

from .checkpoints import done
from .config_files import Loaded, load
from .stopping import StoppedTraining
from .training import Trainer, adopt, lazy_trainer

_log = logging.getLogger(__name__)


def train(
    config: str,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    stop: StopRequest | None = None,
    module: str = "",
) -> int:
    """Train a configuration to its end, or until it is asked to stop; see `config_files.load` for what is named.

    output: where to, in the place of the configuration's. Returns the exit status: 0 when finished, 128 + the signal's
    number when interrupted and saved. Raises ValueError for what the person can fix, FloatingPointError when something
    is not finite.
    """
    with ExitStack() as entered:
        entered.enter_context(workarounds.deprecated_functions_of_torch_are_called())
        entered.enter_context(workarounds.train_loop_logs_tracebacks())
        entered.enter_context(workarounds.setup_logger_is_for_good())
        stop = stop or entered.enter_context(StopRequest(usr2=True))
        loaded = load(config, overrides, module)
        if output is not None:
            loaded.into(output)
        check(loaded, count(os.environ, "WORLD_SIZE") or 1)
        _check_precision(loaded)
        try:
            with (
                open_session(torch.device(loaded.device[1]).type, stop) as session,
                _joined(session),
                session.alone_in(loaded.output),
                asking("training", dict([loaded.batch])),
            ):
                return _run(loaded, session, stop)
        except StoppedError as error:
            _log.warning("%s: nothing was begun", error)
            return stop.exit_code


def check(loaded: Loaded, world: int) -> None:
    """Raise ValueError for settings that so many processes cannot follow, as far as it can be known without them."""
    key, device = loaded.device
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"{key}={device}: there is no such device; use cuda or cpu") from error
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"{key}={device}: training is on cuda or cpu; use one of these")
    key, weights = loaded.weights
    if weights and "://" not in weights and not Path(weights).is_file():
        raise ValueError(f"{key}={weights}: there is no such file")
    for name in loaded.data:
        known(name, "--module")
    key, batch = loaded.batch
    if batch % world:
        raise ValueError(f"{key}={batch} is not divisible by {world} processes: make it a multiple of {world}")


def _check_precision(loaded: Loaded) -> None:
    """Raise ValueError for mixed precision without a GPU; a configuration may take one only where there is one."""
    (device_key, device), (key, mixed) = loaded.device, loaded.mixed_precision
    if mixed and torch.device(device).type == "cpu":
        raise ValueError(f"{key}=True: detectron2's mixed precision needs a GPU; set {device_key}=cuda or {key}=False")


def _run(loaded: Loaded, session: Session, stop: StopRequest) -> int:
    told = argparse.Namespace(config_file=loaded.path, resume=True, eval_only=False)
    default_setup(loaded.cfg, told)
    begun = session.of_main(done(loaded.output))
    if begun and loaded.seed >= 0:
        # Or each start would draw the images that the first one began with.
        seed_all_rng(loaded.seed + session.process.rank + begun)

    def asked() -> bool:
        if not session.any(stop.requested is not None):
            return False
        # Of those whom no signal has reached.
        stop.request()
        return True

    try:
        if loaded.lazy:
            trainer, checkpointer = lazy_trainer(loaded.cfg, session.device, asked)
            checkpointer.resume_or_load(loaded.cfg.train.init_checkpoint, resume=True)
            first = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
            adopt(trainer, loaded.output, first)
            trainer.train(first, loaded.cfg.train.max_iter)
        else:
            # This one takes the seed from here.
            loaded.cfg.SEED += begun
            loaded.cfg.freeze()
            numbered = workarounds.default_trainer_numbers_gpus_itself(session.device)
            with numbered, workarounds.settings_errors_are_assertions():
                default = Trainer(loaded.cfg, asked)
            default.resume_or_load(resume=True)
            adopt(default, loaded.output, default.start_iter)
            default.train()
    except StoppedTraining:
        if session.main:
            _log.warning("interrupted (%s): saved in %s. The same command resumes", stop.requested, loaded.output)
        return stop.exit_code
    return 0


@contextmanager
def _joined(session: Session) -> Iterator[None]:
    """Let detectron2 know of the other processes of this job, for as long as there are any."""
    if session.world == 1:
        yield
        return
    with workarounds.comm_keeps_its_groups():
        comm.create_local_process_group(count(os.environ, "LOCAL_WORLD_SIZE") or session.world)
        yield
