"""What detectron2 does that current versions of its surroundings, or a launcher, do not go along with.

Each function is named after the cause, and is called only where that is met; nothing is changed by importing this.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from importlib import import_module, resources
from importlib.util import find_spec
from typing import Any

import torch


def model_zoo_imports_pkg_resources() -> None:
    """Import detectron2.model_zoo, which needs one function of a part of setuptools that current ones no longer have.

    Configuration files of others import it.
    """
    if find_spec("pkg_resources") is not None:
        return
    stand_in = types.ModuleType("pkg_resources")
    vars(stand_in)["resource_filename"] = lambda package, name: str(resources.files(package).joinpath(name))
    # Only while it is imported: others ask whether setuptools has this part, and would find one that is not whole.
    sys.modules["pkg_resources"] = stand_in
    try:
        import_module("detectron2.model_zoo")
    finally:
        del sys.modules["pkg_resources"]


@contextlib.contextmanager
def deprecated_functions_of_torch_are_called() -> Iterator[None]:
    """Keep quiet about what nobody but detectron2 can mend.

    It calls torch.jit.script whenever it is imported, torch.cuda.amp in each of AMPTrainer's steps, and
    DistributedDataParallel with broadcast_buffers.
    """
    with warnings.catch_warnings():
        for name in (r"torch\.jit\.script", r"torch\.cuda\.amp\.", "broadcast_buffers"):
            warnings.filterwarnings("ignore", f".*{name}.* is deprecated", FutureWarning)
        # Printed once per process, about convolutions in channels_last: a remark on speed that nobody can act on.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        yield


def torch_says_once_what_will_change() -> None:
    """Have torch say now, to nobody, what it would say at the first image: of meshgrid, and of whether fx traces."""
    from torch.fx import _symbolic_trace

    log = logging.getLogger(_symbolic_trace.__name__)
    before, log.disabled = log.disabled, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.meshgrid(torch.zeros(1), torch.zeros(1))
        _symbolic_trace.is_fx_tracing()
    log.disabled = before


@contextlib.contextmanager
def scripts_are_optimised_after_some_calls() -> Iterator[None]:
    """Run what was scripted as it stands, from the first call on.

    PyTorch makes other operations of it after a few calls in a process, which round otherwise: RetinaNet's focal loss,
    after a resume, would not be that of the uninterrupted run.
    """
    # It is public, and torch's own stubs do not say so.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield


@contextlib.contextmanager
def setup_logger_is_for_good() -> Iterator[None]:
    """Let the log of a training, and its way to the terminal, end with it; a second one would write to both."""
    from detectron2.utils import logger

    logs = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(log, list(log.handlers), log.level, log.propagate) for log in logs]
    try:
        yield
    finally:
        for log, handlers, level, propagate in before:
            log.handlers[:], log.level, log.propagate = handlers, level, propagate
        logger.setup_logger.cache_clear()
        logger._cached_log_stream.cache_clear()


@contextlib.contextmanager
def train_loop_logs_tracebacks() -> Iterator[None]:
    """Leave the words about an error to whoever catches it: detectron2's loop logs each with its traceback as well."""

    def others(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("Exception during training", "Exception in writing metrics"))

    log = logging.getLogger("detectron2.engine.train_loop")
    log.addFilter(others)
    try:
        yield
    finally:
        log.removeFilter(others)


@contextlib.contextmanager
def default_trainer_numbers_gpus_itself(device: torch.device) -> Iterator[None]:
    """Have `DefaultTrainer` spread its model over processes on `device`.

    It asks for the GPU of the process's number on its machine: there is none on a CPU, and where a cluster shows each
    process one GPU alone, all of them have number 0.
    """
    from detectron2.engine import defaults

    theirs = defaults.create_ddp_model

    def create(model: Any, **others: Any) -> Any:
        return theirs(model, **{"device_ids": device_ids(device), **others})

    defaults.create_ddp_model = create
    try:
        yield
    finally:
        defaults.create_ddp_model = theirs


def device_ids(device: torch.device) -> list[torch.device] | None:
    """What DistributedDataParallel is told of a process's device."""
    return [device] if device.type == "cuda" else None


@contextlib.contextmanager
def settings_errors_are_assertions() -> Iterator[None]:
    """Raise as ValueError what detectron2 finds wrong with settings and data by KeyError and AssertionError."""
    try:
        yield
    except (KeyError, AssertionError) as error:
        # Of a KeyError the text would be in quotes.
        text = " ".join(str(error.args[0] if error.args else "").split())
        if " " not in text:
            # No sentence, so no words for a person.
            raise
        raise ValueError(text) from error


@contextlib.contextmanager
def comm_keeps_its_groups() -> Iterator[None]:
    """Have detectron2 forget its groups of processes, which end with those of torch.distributed."""
    from detectron2.utils import comm

    try:
        yield
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()
