"""One process or many: devices, the process group, and the few sums that processes exchange."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detr_container.launch.lock import FolderLock
from detr_container.launch.memory import keep_freed_memory
from detr_container.launch.processes import ProcessInfo, current_process

from .peak_memory import peak_memory

_log = logging.getLogger(__name__)


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

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank; pickled, so for what is small or rare."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share(self, tensors: list[Tensor]) -> None:
        """Overwrite every process's tensors with the main process's."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def peak_memory(self) -> float:
        """Most memory that this process has had, in GiB: the GPU's where it computes on one."""
        return peak_memory(self.device)

    @contextmanager
    def alone_in(self, folder: Path) -> Iterator[None]:
        """Keep other jobs out of a run's folder. Raises ValueError, on every process, when one is in it already."""
        with ExitStack() as held:
            refusal = ""
            if self.main:
                try:
                    held.enter_context(FolderLock(folder, os.environ.get("SLURM_JOB_ID", "")))
                except ValueError as error:
                    refusal = str(error)
            refusal = self.gather(refusal)[0]
            if refusal:
                raise ValueError(refusal)
            yield

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def session(device: str = "auto") -> Iterator[Session]:
    """Join the other processes, if torchrun started any, and leave them at the end.

    Raises ValueError when the wanted device is not there, ConnectionError when another process has ended.
    """
    process = current_process(os.environ)
    chosen = choose_device(device, process.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
        if process.world > 1 and "OMP_NUM_THREADS" not in os.environ:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", process.world))
            mine = int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or (os.cpu_count() or 1) // local
            torch.set_num_threads(max(1, mine))
    if process.world == 1:
        yield Session(process, chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    identity = chosen if chosen.type == "cuda" else None
    dist.init_process_group(backend, timeout=timedelta(minutes=30), device_id=identity)
    try:
        yield Session(process, chosen)
    except RuntimeError as error:
        if "by peer" not in str(error):
            raise
        raise ConnectionError("another process of this job has ended: its own message says why") from error
    finally:
        dist.destroy_process_group()


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for a setting of `auto`, `cpu` or `cuda`. Raises ValueError when there is no such GPU."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ValueError(
            f"device={wanted}: PyTorch {torch.__version__} ({built}) finds no GPU here. Use device=cpu, or see whether "
            "`nvidia-smi` lists one and its driver is new enough"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank} of this machine needs GPU {local_rank}, but there are {count}: "
            f"start at most {count} processes here (torchrun --nproc-per-node {count})"
        )
    return torch.device("cuda", local_rank)
