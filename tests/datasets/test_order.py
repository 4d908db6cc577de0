"""Against what DeiT's sampler shows each process, an epoch's last incomplete step left out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detr_container.datasets.loader import StepBatches, shuffled
from detr_container.datasets.order import repeated, shown

GOLDEN = Path(__file__).parents[1] / "golden" / "deit.npz"
BATCH = 24


def published(name: str) -> list[int]:
    with np.load(GOLDEN) as arrays:
        found: list[int] = np.atleast_1d(arrays[name]).tolist()
    return found


def random_order(length: int) -> Callable[[int], Tensor]:
    return lambda epoch: repeated(shuffled(length, 0, epoch), 3)


def shares(
    order: Callable[[int], Tensor], length: int, parts: int, epoch: int = 0, world: int = 1, rank: int = 0
) -> list[list[int]]:
    """The indices that a process sees in an epoch: of each micro step those of all its steps."""
    steps = shown(length, 3) // BATCH
    sampler = StepBatches(
        shown(length, 3),
        seed=0,
        batch=BATCH,
        micro_batch=BATCH // parts,
        start_step=epoch * steps,
        total_steps=(epoch + 1) * steps,
        rank=rank,
        world=world,
        order=order,
        strided=True,
    )
    micro = [[item % length for _, item in keys] for keys in sampler]
    count = sampler.accumulation
    return [[index for keys in micro[place::count] for index in keys] for place in range(count)]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("length", "world"), [(600, 1), (600, 2), (1000, 4)])
def test_processes_and_micro_batches_see_what_deit_shows_its_processes(length: int, world: int, epoch: int) -> None:
    order = random_order(length)
    accumulated = shares(order, length, world, epoch)
    for rank in range(world):
        if rank == 1 and (length, world) == (1000, 4):
            half = shares(order, length, 4, epoch, world=2, rank=1)
            assert half == [accumulated[1], accumulated[3]]
        [mine] = shares(order, length, world, epoch, world, rank)
        whole = published(f"ra_n{length}_world{world}_rank{rank}_epoch{epoch}")
        assert mine == accumulated[rank] == whole[: len(mine)]
        assert len(mine) == shown(length, 3) // BATCH * BATCH // world > len(whole) - BATCH // world
        assert len(whole) * world == shown(length, 3)


def test_without_shuffling_as_well() -> None:
    [mine] = shares(lambda epoch: repeated(torch.arange(600), 3), 600, 2, world=2, rank=1)
    whole = published("ra_n600_world2_rank1_ordered")
    assert mine == whole[: len(mine)]


def test_an_epoch_is_as_long_as_published_but_never_empty() -> None:
    assert shown(1_281_167, 3) == 8 * published("ra_imagenet_world8_length")[0] == 1_281_024
    assert published("ra_n255_world1_length") == [0]
    assert shown(255, 3) == 255
    assert shown(1_281_167, 1) == 1_281_167


def test_every_view_is_an_item_of_its_own() -> None:
    items = repeated(shuffled(300, 7, 2), 3)
    assert len(items) == 256 == len(items.unique())
    assert (items % 300).unique().numel() == 86
    assert items[:3].tolist() == [int(items[0]) + 300 * view for view in range(3)]
