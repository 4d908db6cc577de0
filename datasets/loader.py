"""Batches for training and evaluation: which images make up which step, and the processes that load them.

Nothing here has state to save. The images of a step follow from (seed, step), so resuming is starting at a step.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from .dataset import Key
from .handover import SHARED, Collate, Handed, Join, Slot, free_shared_memory, plan_memory
from .padding import TO_LARGEST, Padding
from .workers import Sent, start_worker, worker_context

POLL, WAIT = 1, 30
"""Seconds between two checks of what a batch is waiting for, and of waiting for room before giving up."""
FILES_EACH, FILES = 4, 16
"""Open files of this process for each of a loader's processes, and for all together with what they hand over."""
Ends = Callable[[bool], bool]
"""Whether who waits for a batch wants no more; its argument: whether it cannot come for want of room."""


class Loadable(Protocol):
    """A data set whose samples become batches. preloaded: the module with what a process that loads it needs."""

    preloaded: str

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key, /) -> Any: ...

    def joining(self, padding: Padding) -> Join:
        """How samples become a batch; it holds no data, since each process is sent one."""

    def largest_bytes(self, batch: int, padding: Padding) -> int:
        """Of a batch of so many images; larger ones are handed over more slowly."""


def steps_per_epoch(length: int, batch: int) -> int:
    """Optimizer steps in one pass over `length` images; what does not fill a batch is left out, as published.

    Raises ValueError when there are not enough images for one step.
    """
    if not 1 <= batch <= length:
        raise ValueError(
            f"train.batch={batch} images per step, but the training set has {length}: "
            f"choose train.batch between 1 and {length}"
        )
    return length // batch


def shuffled(length: int, seed: int, epoch: int) -> Tensor:
    """[length] the order of the images in an epoch, a function of its arguments alone."""
    # A golden-ratio stride keeps (seed, epoch) and (seed + 1, epoch - 1) apart, which adding them would not.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + epoch) % 2**63)
    return torch.randperm(length, generator=generator)


def permutation(length: int, seed: int, epoch: int) -> list[int]:
    """`shuffled` as a list."""
    order: list[int] = shuffled(length, seed, epoch).tolist()
    return order


class StepBatches(Sampler[list[Key]]):
    """The keys of one rank's micro batches, in order, from `start_step` to `total_steps` without a pause at epochs.

    length: images that an epoch shows; batch: images per optimizer step over all ranks; micro_batch: images per
    rank and forward pass. Each step has `accumulation` = batch / (micro_batch x world) micro batches per rank. The
    images of a step are the same for every world and micro_batch; ranks and micro batches divide them: each takes a
    piece, or, where `strided`, every so-manieth image, so that views of an image that stand side by side part.
    order: [length] the items of an epoch; default: `shuffled`.
    Raises ValueError when the batch cannot be divided so, or exceeds the data set.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch: int,
        micro_batch: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Callable[[int], Tensor] | None = None,
        strided: bool = False,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(length, batch)
        if micro_batch < 1 or batch % (micro_batch * world):
            raise ValueError(
                f"train.batch={batch} is not divisible by {world} process(es) x train.micro_batch={micro_batch}: "
                f"make train.batch a multiple of {max(1, micro_batch) * world}, or lower train.micro_batch"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} process(es): ranks count from 0 to {world - 1}")
        if not 0 <= start_step <= total_steps:
            raise ValueError(
                f"start at step {start_step} of {total_steps}: the run is already longer than its schedule; "
                "raise train.epochs, or start a new run"
            )
        self.length = length
        self.seed = seed
        self.batch = batch
        self.micro_batch = micro_batch
        self.total_steps = total_steps
        self.start_step = start_step
        self.rank = rank
        self.world = world
        self.accumulation = batch // (micro_batch * world)
        self.order = order or partial(shuffled, length, seed)
        self.strided = strided

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, torch.empty(0)
        for step in range(self.start_step, self.total_steps):
            if epoch != step // self.steps_per_epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            first = step % self.steps_per_epoch * self.batch
            block = order[first : first + self.batch].tolist()
            for micro_step in range(self.accumulation):
                yield [(epoch, item) for item in block[self._part(micro_step * self.world + self.rank)]]

    def _part(self, number: int) -> slice:
        """Which of a step's images one of its forward passes takes."""
        if self.strided:
            return slice(number, None, self.world * self.accumulation)
        return slice(number * self.micro_batch, (number + 1) * self.micro_batch)


def training_loader(
    dataset: Loadable,
    sampler: StepBatches,
    *,
    padding: Padding = TO_LARGEST,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A loader of the sampler's micro batches; iterate over it with `batches`.

    workers: loader processes, 0 to load in this process; pin_memory: page-lock the batches, for copies to a GPU that do
    not wait.
    """
    return _loader(dataset, sampler, sampler.micro_batch, padding, workers, pin_memory)


def evaluation_loader(
    dataset: Loadable,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    padding: Padding = TO_LARGEST,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A loader of one rank's share of the data set, in order, each image exactly once over all ranks.

    Whole batches are dealt out in turn, so that an image has the same neighbours, and with them the same padding and
    outputs, for every number of ranks. Ranks may differ by one batch, and the last batch may be smaller.
    """
    if batch < 1 or not 0 <= rank < world:
        raise ValueError(
            f"data.eval_batch={batch}, rank {rank} of {world}: batches hold 1 image or more, ranks < world"
        )
    keys = [(0, index) for index in range(len(dataset))]
    every = [keys[start : start + batch] for start in range(0, len(keys), batch)]
    return _loader(dataset, every[rank::world], batch, padding, workers, pin_memory)


def batches(loader: DataLoader[Any], ends: Ends = lambda short: False) -> Generator[Any, None, None]:
    """The loader's batches, with errors of its processes raised as if they had happened in this one.

    ends: asked every second in which no batch has come. Closing the generator (or dropping it) ends the loader's
    processes.
    Raises ValueError for an image that cannot be loaded (see the data set), OSError when shared memory or open
    files run out, RuntimeError when a loader process was killed, InterruptedError when `ends` returns True.
    """
    iterator, collating = None, loader.collate_fn
    assert isinstance(collating, Collate)
    try:
        _enough_files(loader.num_workers)
        collating.begin()
        iterator = iter(loader)
        yield from _patiently(iterator, loader, collating, ends)
    except Exception as error:
        if loader.num_workers:
            # The text of a worker's error holds its traceback. The frames of torch's own would form a cycle with the
            # error that keeps the processes alive until the garbage collector comes by, and then stalls it.
            error.__traceback__ = None
        explained = _explained(error, loader.num_workers)
        if explained is None:
            raise
        raise explained from error
    finally:
        collating.wait_no_more()
        del iterator
        collating.end()
        _join_feeders()


def _patiently(
    iterator: Iterator[Handed | Slot], loader: DataLoader[Any], collating: Collate, ends: Ends
) -> Iterator[Handed]:
    """The batches, however long one takes, unless a loader process has no room to hand one over."""
    waited = 0.0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if not (loader.timeout and str(error).startswith("DataLoader timed out")):
                raise
        else:
            waited = 0.0
            # Before the next is asked for, whose slot it may be.
            yield batch.taken() if isinstance(batch, Slot) else batch
            continue
        short = collating.short is not None and collating.short.is_set()
        waited = waited + loader.timeout if short else 0.0
        if ends(short):
            full = f", for which there is no room in shared memory ({SHARED})" if short else ""
            raise InterruptedError(f"asked to stop while waiting for a batch{full}")
        if waited >= WAIT:
            raise _no_room(loader.num_workers)


def _enough_files(workers: int) -> None:
    """Raise OSError when the processes of a loader would need more open files than this process may have.

    Where they run out while processes are being made, torch and multiprocessing print tracebacks that nobody can stop.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        return
    if workers and used + FILES_EACH * workers + FILES > limit:
        raise _too_many_files(workers)


def _too_many_files(workers: int) -> OSError:
    return OSError(
        f"too many open files for data.workers={workers} loader processes: raise the limit (ulimit -n 4096), or "
        "lower data.workers; data.workers=0 loads without processes"
    )


def _no_room(workers: int) -> OSError:
    free = free_shared_memory()
    left = "" if free is None else f", where {free / 2**20:.0f} MiB are free"
    return OSError(
        f"a loader process cannot hand over a batch: shared memory ({SHARED}) is full{left}. Give the container more "
        f"(docker run --shm-size=8g, or --ipc=host), lower data.workers={workers} or train.micro_batch, or use "
        "data.workers=0, which needs none"
    )


def _join_feeders() -> None:
    """Wait for the threads that fed the loader's processes.

    torch does not. One that the interpreter's exit cuts off while it removes its semaphore leaves warnings of
    multiprocessing's resource tracker as the last thing a person reads.
    """
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(timeout=1.0)


def _explained(error: Exception, workers: int) -> Exception | None:
    """What the user needs to read of an error that came out of a loader; None where that is the error itself."""
    text = str(error)
    if isinstance(error, InterruptedError):
        return None
    if isinstance(error, ValueError):
        # torch returns a worker's error as its whole traceback in text; the user's part is what the last line says.
        return ValueError(text.rpartition("\nValueError: ")[2].strip())
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _no_room(workers)
    if os.strerror(errno.EMFILE) in text or "ancdata" in text:
        return _too_many_files(workers)
    # A dead process shows as torch's RuntimeError, or as a broken connection to what it had sent.
    if isinstance(error, OSError) and SHARED in text:
        return None
    killed = isinstance(error, RuntimeError) and "DataLoader worker (pid" in text
    broken = isinstance(error, OSError | EOFError) and "in DataLoader worker process" not in text
    if killed or broken:
        return ChildProcessError(
            f"a loader process ended unexpectedly ({error}). Most often memory or shared memory (/dev/shm) ran out: "
            "lower data.workers, or give the job more memory. data.workers=0 loads without processes"
        )
    return None


def _loader(
    dataset: Loadable,
    batch_sampler: Sampler[list[Key]] | Sequence[list[Key]],
    batch: int,
    padding: Padding,
    workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    if workers < 0:
        raise ValueError(f"data.workers={workers}: give the number of loader processes, 0 or more")
    context = worker_context(dataset.preloaded) if workers else None
    size = dataset.largest_bytes(batch, padding)
    ahead, slots = plan_memory(workers, size) if workers else (None, 0)
    source: Any = Sent.of(dataset) if workers else dataset
    return DataLoader(
        source,
        batch_sampler=batch_sampler,
        collate_fn=Collate(dataset.joining(padding), context, (workers, slots, size)),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=context,
        worker_init_fn=start_worker,
        # One pass over a training loader is the whole run, so workers last without outliving it; evaluation's, which
        # the fork server makes in a fraction of a second, hold no memory between two evaluations.
        persistent_workers=False,
        prefetch_factor=ahead,
        # How often `batches` checks while it waits; it then waits further.
        timeout=POLL if workers else 0,
        # Its own, because each pass over the loader draws a number, which must not move the model's dropout.
        generator=torch.Generator(),
    )
