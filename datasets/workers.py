"""A loader's processes: how they are made, what they are given, and what they obey.

Nothing here needs torch, so that the server of these processes can be started before anything else is imported.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from itertools import accumulate
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

from detr_container.base.host_memory import keep_freed_memory

JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
"""What a terminal or a scheduler sends to every process of a job, though only the training process should react."""
PRELOADED = "detr_container.datasets.preloaded"
"""What a loader process of detection needs."""
_ALIGNMENT = 64
"""Where values of any type may begin."""


def worker_context(module: str = PRELOADED) -> ForkServerContext:
    """How loader processes are made: by a server that was started clean, which this starts where it is not yet there.

    A fork of the training process would copy locks that threads of CUDA, NCCL, OpenMP or TensorBoard may hold at that
    moment, and hang now and then; spawning would import torch anew for every worker. A fork server imports it once,
    which takes seconds: whoever trains starts it before the data are read and the model is built.
    module: what a loader process needs, which a server that is there already does not import any more.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    # The server would die of a signal to the whole job, and its workers with it. It inherits what is blocked here;
    # signals that arrive meanwhile wait. Starting the tracker unblocks them, hence the order.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context


def start_worker(_: int) -> None:
    """Leave signals to the training process, and end with it; torch runs workers on one thread.

    SIGTERM goes to every process of a job that is preempted. A worker that obeyed would take the training process
    with it before it could save, so workers obey SIGTERM from their parent only.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    # Images of one size after the other: their memory would be given back and faulted in again for each.
    keep_freed_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    # torch watches the worker's parent in the system's sense, which is the fork server: it outlives a killed run.
    while parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 2.0)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


class Sent:
    """A data set that is pickled once for all processes, which share its arrays: COCO's have 55 MB.

    In this process it stands for the data set; a process that is being made gets the data set itself.
    """

    def __init__(self, dataset: Any, descriptor: int, lengths: list[int]) -> None:
        self.dataset, self._descriptor, self._lengths = dataset, descriptor, lengths
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, dataset: Any) -> Any:
        """That data set; or itself, which is sent anew each time, where the system has no memory without a file."""
        try:
            descriptor = os.memfd_create("dataset")
        except (OSError, AttributeError):
            return dataset
        arrays: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(dataset, protocol=5, buffer_callback=arrays.append)
        pieces = [memoryview(pickled), *(array.raw() for array in arrays)]
        with open(descriptor, "wb", closefd=False) as file:
            for piece in pieces:
                file.write(piece)
                file.write(bytes(-piece.nbytes % _ALIGNMENT))
        return cls(dataset, descriptor, [piece.nbytes for piece in pieces])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._descriptor), self._lengths)


def _received(descriptor: Any, lengths: list[int]) -> Any:
    """The data set, in a loader process; what it changes in its arrays is its own."""
    number = descriptor.detach()
    whole = memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_COPY))
    os.close(number)
    starts = accumulate((-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths), initial=0)
    pickled, *arrays = (whole[start : start + length] for start, length in zip(starts, lengths, strict=False))
    return pickle.loads(pickled, buffers=arrays)
