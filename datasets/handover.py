"""How a loader process hands a batch over to the training process: through memory that they share.

The memory is one ring of slots for each loader process, made once: new memory for every batch costs both sides more
than all else, since its pages are cleared, mapped, faulted in and given back, and each tensor's file descriptor is
asked for over a socket. A batch that is larger than a slot gets memory of its own, and waits until there is room.
"""

from __future__ import annotations

import errno
import io
import itertools
import mmap
import multiprocessing
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from multiprocessing import reduction
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SHARED = "/dev/shm"
"""Where Linux keeps shared memory that has a name; in a container it has 64 MB unless more is asked for."""
AHEAD = 4
"""Batches that a loader process makes in advance."""
MOST = 8 << 30
"""Bytes of all slots, if each held the largest batch that there can be."""
_ALIGNMENT = 64
_rings: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()
"""Those of this process by their numbers, which is what arrives with a batch."""
_numbers = itertools.count()


class Handed(Protocol):
    """A batch that can be handed over."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors."""

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same batch with others in the place of its `tensors`."""

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""


Join = Callable[[Sequence[Any]], Handed]
"""How samples become a batch; it is sent to each loader process."""


class Ring:
    """Slots for batches, in memory that has no file: [workers, slots, size] bytes.

    Memory is taken where it is written to, so that slots may be larger than most batches. It is not /dev/shm's, of
    which containers have little. Raises OSError where there is none.
    """

    def __init__(self, workers: int, slots: int, size: int) -> None:
        # Whole pages, so that a slot begins where values of any type may.
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.shape, self.number = (workers, slots, whole), next(_numbers)
        self._descriptor = os.memfd_create("batches")
        weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, prod(self.shape))
        self.memory = _mapped(self._descriptor, self.shape)
        _rings[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """To a process that is being made."""
        return _RingThere, (reduction.DupFd(self._descriptor), self.shape, self.number)


class _RingThere:
    """A `Ring` of the training process, in a loader process."""

    def __init__(self, descriptor: Any, shape: tuple[int, int, int], number: int) -> None:
        self.shape, self.number = shape, number
        received = descriptor.detach()
        self.memory = _mapped(received, shape)
        os.close(received)


def _mapped(descriptor: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, prod(shape)), dtype=torch.uint8).view(shape)


def plan_memory(workers: int, size: int) -> tuple[int, int]:
    """How many batches each process makes in advance, and the slots it gets for them; none where a ring is too large.

    size: bytes of the largest batch.
    """
    # One more than are made in advance: the training process copies the one before them meanwhile.
    slots = min(AHEAD + 1, MOST // (workers * size))
    if slots > 1 and hasattr(os, "memfd_create"):
        return slots - 1, slots
    free = free_shared_memory()
    return AHEAD if free is None else max(1, min(AHEAD, free // (workers * size))), 0


def free_shared_memory() -> int | None:
    """Bytes that are free for batches on their way between processes; None where there is no such file system."""
    try:
        facts = os.statvfs(SHARED)
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


class Collate:
    """Samples become a batch, and in a loader process it is handed over: in a slot, or in shared memory of its own.

    Otherwise a thread of torch's would move it to the latter, which prints that there is no room and forgets the batch;
    the training process then waits for it without end.
    context: how the processes are made, None without any; shape: of their ring, without slots for none.
    """

    def __init__(
        self,
        join: Join,
        context: multiprocessing.context.BaseContext | None = None,
        shape: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self.join, self.shape = join, shape
        self.short = context.Event() if context else None
        """Set while there is no room."""
        self._over = context.Event() if context else None
        self._ring: Ring | None = None
        self._made = 0

    def begin(self) -> None:
        """Make the ring, before the processes are made."""
        if self._over is not None:
            self._over.clear()
        if prod(self.shape):
            # A system that does not let us leaves /dev/shm.
            with suppress(OSError):
                self._ring = Ring(*self.shape)

    def wait_no_more(self) -> None:
        """Let no process wait for room; torch would wait five seconds for each that does before it ends it."""
        if self._over is not None:
            self._over.set()

    def end(self) -> None:
        """Give the ring back, after the processes have ended."""
        self._ring = None

    def __call__(self, samples: Sequence[Any]) -> Handed | Slot:
        """The samples as a batch; in a loader process, as what is sent of it."""
        batch = self.join(samples)
        if self._over is None or self.short is None:
            return batch
        slot = self._slot(batch)
        if slot is None:
            self._wait_for_room(batch)
        return slot or batch

    def _slot(self, batch: Handed) -> Slot | None:
        """The batch in this process's next slot; None where there is none, or the batch is larger.

        Nobody needs to say when a slot is free: torch asks a process for a batch only after it has handed out the one
        that is as many before it as there are slots, less one.
        """
        worker = get_worker_info()
        if self._ring is None or worker is None:
            return None
        slot = self._made % self.shape[1]
        self._made += 1
        file = io.BytesIO()
        writer = _Writer(file, self._ring.memory[worker.id, slot])
        try:
            writer.dump(batch)
        except _LargerError:
            return None
        return Slot(self._ring.number, worker.id, slot, writer.used, file.getvalue())

    def _wait_for_room(self, batch: Handed) -> None:
        assert self._over is not None
        assert self.short is not None
        for tensor in batch.tensors:
            while not _moved(tensor):
                if self._over.is_set():
                    raise InterruptedError("nobody waits for this batch any more")
                self.short.set()
                time.sleep(0.1)
        self.short.clear()


@dataclass(frozen=True)
class Slot:
    """A batch in the first `used` bytes of a process's slot; `pickled` is what it is but for its tensors' values."""

    ring: int
    worker: int
    slot: int
    used: int
    pickled: bytes

    def pin_memory(self) -> Handed:
        """The batch in page-locked memory of its own (called by the data loader)."""
        return self.taken(pin=True)

    def taken(self, pin: bool = False) -> Handed:
        """The batch in memory of its own, which is one piece."""
        memory = _rings[self.ring].memory[self.worker, self.slot, : self.used]
        batch: Handed = _Reader(io.BytesIO(self.pickled), memory.pin_memory() if pin else memory.clone()).load()
        return batch


class _LargerError(Exception):
    """A batch does not fit into its slot."""


class _Writer(pickle.Pickler):
    """Pickles a value whose tensors it puts into memory, [n] uint8, one after the other."""

    def __init__(self, file: io.BytesIO, memory: Tensor) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._memory, self.used = memory, 0

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        """Where a tensor lies; None for anything else, which is pickled as ever."""
        if not isinstance(value, Tensor):
            return None
        # Channels last stays so.
        strides = torch.empty_like(value, device="meta").stride()
        place = self.used, value.dtype, tuple(value.shape), strides
        self.used += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self.used > len(self._memory):
            raise _LargerError
        _tensor_at(self._memory, *place).copy_(value)
        return place


class _Reader(pickle.Unpickler):
    """Reads what a `_Writer` has written; its tensors are views of the memory."""

    def __init__(self, file: io.BytesIO, memory: Tensor) -> None:
        super().__init__(file)
        self._memory = memory

    def persistent_load(self, place: Any) -> Tensor:
        """The tensor that lies there."""
        return _tensor_at(self._memory, *place)


def _tensor_at(
    memory: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    size = prod(shape) * dtype.itemsize
    return memory[start : start + size].view(dtype).as_strided(shape, strides)


def _moved(tensor: Tensor) -> bool:
    """Put a tensor into shared memory. Returns False when there is no room."""
    try:
        tensor.share_memory_()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        return False
    return True
