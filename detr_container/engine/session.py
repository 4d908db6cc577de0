"""One process or many: devices, the process group, and the few sums that processes exchange."""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from detr_container.base.files import refuse_links
from detr_container.base.host_memory import keep_freed_memory
from detr_container.base.interrupt import StopRequest
from detr_container.base.lock import FolderLock
from detr_container.base.native_threads import wait_until_asleep
from detr_container.base.processes import ProcessInfo, count, current_process

from .peak_memory import peak_memory
from .run import WRITTEN

T = TypeVar("T")
_log = logging.getLogger(__name__)
RENDEZVOUS = timedelta(minutes=10)
"""How long the processes of a job wait for each other at its start."""
GRACE = 20.0
"""Seconds for ending by itself after another process has failed; a GPU may wait for that one for ever."""
_FAILED = "failed"
# What may go wrong on one process alone; a fault of the program ends it at once, which the others notice.
_ALONE = (ArithmeticError, MemoryError, OSError, RuntimeError, ValueError)
# gloo has no exceptions of its own; these are what a connection to a process that has ended gives.
_GLOO = ("by peer", "Broken pipe", "gloo/transport", "Application timeout caused pair closure")
_GLOO_THREADS = "pt_gloo_runloop"
# What NCCL reports, in an exception of the same kind as of a lost neighbour, when something is wrong on this process;
# its ncclSystemError may be either, as the words of the system show.
_NCCL_OWN = (
    *("ncclUnhandledCudaError", "ncclInternalError", "ncclInvalidArgument", "ncclInvalidUsage"),
    *("No space left on device", "Cannot allocate memory", "Too many open files", "CUDA error"),
)


class StoppedError(Exception):
    """This process was asked to stop while it waited for the others, before anything was begun."""


@dataclass(frozen=True)
class Session:
    """This process's place among all, and the device it computes on."""

    process: ProcessInfo
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the person."""
        return self.process.is_main

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.process.world

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; it never leaves its device."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so on one process at least; on a GPU all wait for what it still has to do."""
        return self.sum(torch.tensor(float(flag), device=self.device)).item() > 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank; pickled, so for what is small or rare."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def to_main(self, value: T) -> list[T]:
        """Every process's value, in order of rank, on the main process; nothing on the others."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.main else None
        dist.gather_object(value, values)
        return values or []

    def of_main(self, value: Any) -> Any:
        """The main process's value, on all; what the others give is of no account."""
        return self.gather(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what every process does alone, without exchanging anything: it succeeds on all or fails on all.

        Raises what went wrong on this process; where it went well, ConnectionError with what went wrong on another.
        """
        failure: Exception | None = None
        try:
            yield
        except _ALONE as error:
            failure = error
        own = "" if failure is None else f"rank {self.process.rank} on {_host()} cannot continue: {_reason(failure)}"
        reason = next(filter(None, self.gather(own)), "")
        if failure is not None:
            raise failure
        if reason:
            raise ConnectionError(f"another process of this job has ended: {reason}")

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise ValueError, on all processes, unless they all have the same facts: names, and values to show."""
        everyone = self.gather((_host(), dict(facts)))
        for rank, (host, theirs) in enumerate(everyone):
            for name, value in everyone[0][1].items():
                if theirs.get(name) != value:
                    raise ValueError(
                        f"the processes of this job do not agree on {name}: rank 0 on {everyone[0][0]} has {value}, "
                        f"rank {rank} on {host} has {theirs.get(name)}. Give all of them the same settings and files"
                    )

    def spread(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averaged over all processes."""
        if self.world == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        # Printed once per process, about convolutions in channels_last: a remark on speed that nobody can act on.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with warnings.catch_warnings():
            # The name that replaces broadcast_buffers is not in every version of PyTorch that we run on.
            warnings.filterwarnings("ignore", ".*broadcast_buffers.* is deprecated", FutureWarning)
            # Forward passes in training do not read batch statistics; evaluation shares them first.
            return DistributedDataParallel(model, ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def share(self, tensors: list[Tensor]) -> None:
        """Overwrite every process's tensors with the main process's."""
        if self.world > 1:
            for tensor in tensors:
                # gloo sends memory as it lies, so what lies in another order (channels last) goes through a copy.
                plain = tensor.detach().contiguous()
                dist.broadcast(plain, 0)
                if plain.data_ptr() != tensor.data_ptr():
                    tensor.detach().copy_(plain)

    def peak_memory(self) -> float:
        """Most memory that this process has had, in GiB: the GPU's where it computes on one."""
        return peak_memory(self.device)

    @contextmanager
    def alone_in(self, folder: Path) -> Iterator[None]:
        """Keep other jobs out of a run's folder. Raises as `together` when one is in it already."""
        with ExitStack() as held:
            with self.together():
                if self.main:
                    refuse_links(folder, WRITTEN)
                    held.enter_context(FolderLock(folder, os.environ.get("SLURM_JOB_ID", "")))
            yield

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def open_session(device: str = "auto", stop: StopRequest | None = None) -> Iterator[Session]:
    """Join the other processes, if torchrun started any, and leave them at the end.

    stop: a request to stop, answered by StoppedError while this process waits for the others to join.
    Raises ValueError when that device is not there, ConnectionError when another process has ended.
    """
    process = current_process(os.environ)
    chosen = choose_device(device, process.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
        if process.world > 1 and "OMP_NUM_THREADS" not in os.environ:
            local = count(os.environ, "LOCAL_WORLD_SIZE") or process.world
            mine = count(os.environ, "SLURM_CPUS_PER_TASK") or (os.cpu_count() or 1) // local
            torch.set_num_threads(max(1, mine))
    if process.world == 1:
        yield Session(process, chosen)
        return
    store = _join(process, chosen, stop or StopRequest())
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(store, over), daemon=True)
    watcher.start()
    try:
        yield Session(process, chosen)
    except BaseException as error:
        if not isinstance(error, ConnectionError) and not is_lost(error):
            _report_failure(store, f"rank {process.rank} on {_host()} has ended: {_reason(error)}")
        if not is_lost(error):
            raise
        why = _failure(store) or "its own message names the reason"
        raise ConnectionError(f"another process of this job has ended: {why} ({_reason(error)})") from error
    finally:
        over.set()
        watcher.join()
        dist.destroy_process_group()
        # Its threads outlive it where DistributedDataParallel has held it. One that lets go of its last tensors while
        # Python is ending brings the process down (pytorch/pytorch#179291).
        wait_until_asleep(_GLOO_THREADS, 2.0)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process cannot be reached: it ended, or the network between them did."""
    if isinstance(error, dist.DistBackendError) and any(words in str(error) for words in _NCCL_OWN):
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GLOO)


def _join(process: ProcessInfo, device: torch.device, stop: StopRequest) -> Store:
    """Meet the other processes.

    Raises ConnectionError when one does not come, StoppedError when they need not, ValueError when devices differ.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    mine = f"{device.type}, PyTorch {torch.__version__}"

    def meet() -> tuple[Store, list[list[str]]]:
        store, _, _ = next(rendezvous("env://", process.rank, process.world, timeout=RENDEZVOUS))
        store.set(f"device/{process.rank}", f"{_host()}\n{mine}")
        return store, [store.get(f"device/{rank}").decode().split("\n") for rank in range(process.world)]

    try:
        store, everyone = _unless_stopped(meet, stop)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConnectionError(
            f"rank {process.rank} on {_host()} could not meet the other {process.world - 1} processes of this job at "
            f"{place} within {RENDEZVOUS.total_seconds() / 60:g} minutes ({_reason(error)}). See whether all were "
            "started, and whether MASTER_ADDR and MASTER_PORT are the first one's and its port is free"
        ) from error
    for rank, (host, theirs) in enumerate(everyone):
        if theirs != everyone[0][1]:
            raise ValueError(
                f"the processes of this job cannot work together: rank 0 on {everyone[0][0]} has {everyone[0][1]}, "
                f"rank {rank} on {host} has {theirs}. Say device=cpu or device=cuda, and install the same everywhere"
            )
    identity = device if device.type == "cuda" else None
    dist.init_process_group(
        "nccl" if identity is not None else "gloo",
        store=store,
        rank=process.rank,
        world_size=process.world,
        timeout=timedelta(minutes=30),
        device_id=identity,
    )
    return store


def _unless_stopped(wait: Callable[[], T], stop: StopRequest) -> T:
    """What comes of waiting outside Python, where a signal would not be heard. Raises StoppedError on a request."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(wait())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the outcome
            outcome.set_exception(error)

    # A daemon, since nothing can end its waiting but the end of the process.
    threading.Thread(target=work, daemon=True).start()
    while not outcome.done():
        if stop.requested:
            raise StoppedError(f"asked to stop by {stop.requested} while waiting for the other processes")
        with suppress(TimeoutError):
            outcome.exception(timeout=0.2)
    return outcome.result()


def _watch(store: Store, over: threading.Event) -> None:
    """End this process when another has failed and this one, which waits for it perhaps, does not notice."""
    why = ""
    while not why and not over.wait(1.0):
        why = _failure(store)
    if why and not over.wait(GRACE):
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"[rank {rank}] error: another process of this job has ended: {why}\n")
        sys.stderr.flush()
        os._exit(2)


def _failure(store: Store) -> str:
    """What a process that failed has left for the others; empty when none has, or when it took the store along."""
    try:
        return store.get(_FAILED).decode() if store.check([_FAILED]) else ""
    except RuntimeError:
        return ""


def _report_failure(store: Store, text: str) -> None:
    # Whoever keeps the store may be gone.
    with suppress(RuntimeError):
        store.set(_FAILED, text)


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _reason(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device for a setting of `auto`, `cpu` or `cuda`. Raises ValueError when there is no such GPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ValueError(
            f"device={device}: PyTorch {torch.__version__} ({built}) finds no GPU here. Use device=cpu, or see whether "
            "`nvidia-smi` lists one and its driver is new enough"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank} of this machine needs GPU {local_rank}, but there are {count}: "
            f"start at most {count} processes here (torchrun --nproc-per-node {count})"
        )
    return torch.device("cuda", local_rank)
