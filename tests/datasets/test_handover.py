"""Batches in slots of shared memory: what arrives is what was made, whatever its size, and stays what it is."""

import io
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noisy_images import assert_same, make_dataset, steps_of

from detr_container.datasets import handover
from detr_container.datasets.batch import Batch, Sample, collate
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.handover import AHEAD, Collate, Ring, Slot, plan_memory
from detr_container.datasets.loader import batches, training_loader
from detr_container.datasets.masks import SIDE
from detr_container.datasets.padding import Padding


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return make_dataset(tmp_path_factory.mktemp("images"))


def sample(height: int, width: int, objects: int) -> Sample:
    generator = torch.Generator().manual_seed(height + objects)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    boxes, labels = torch.rand(objects, 4, generator=generator), torch.arange(objects)
    return Sample(image, boxes, labels, 7 * height, (2 * height, 2 * width))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5)), min_size=1, max_size=3),
    st.integers(0, 1),
)
def test_a_batch_comes_out_as_it_went_in(shapes: list[tuple[int, int, int]], slot: int) -> None:
    batch = collate([sample(*shape) for shape in shapes], Padding(multiple=4))
    ring, file = Ring(1, 2, 40_000), io.BytesIO()
    writer = handover._Writer(file, ring.memory[0, slot])
    writer.dump(batch)
    taken = Slot(ring.number, 0, slot, writer.used, file.getvalue()).taken()
    ring.memory.zero_()
    assert_same([taken], [batch])
    assert taken.images.stride() == batch.images.stride()
    assert (taken.original_sizes, taken.padded) == (batch.original_sizes, batch.padded)


def test_slots_end_with_their_ring() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    ring = Ring(3, 2, 5000)
    assert ring.memory.shape == (3, 2, 8192)
    number = ring.number
    assert number in handover._rings
    del ring
    assert number not in handover._rings
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_no_batch_is_written_over_while_it_is_in_use(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two slots, the fewest, and a training process that is slower than the loader's."""
    alone = list(batches(training_loader(dataset, steps_of(0, 10))))
    monkeypatch.setattr(handover, "MOST", 2 * 2 * dataset.largest_bytes(2, Padding()))
    made = training_loader(dataset, steps_of(0, 10), workers=2)
    assert isinstance(made.collate_fn, Collate)
    assert (made.prefetch_factor, made.collate_fn.shape[1]) == (1, 2)
    taken: list[Batch] = []
    for batch in batches(made):
        taken.append(batch)
        time.sleep(0.01)
    assert_same(taken, alone)


def test_a_batch_that_is_larger_than_a_slot_comes_in_turn(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = list(batches(training_loader(dataset, steps_of(0, 6))))
    sizes = sorted(batch.images.nbytes for batch in alone)
    # In the middle, but between two numbers of pages.
    monkeypatch.setattr(DetectionDataset, "largest_bytes", lambda *_: sizes[len(sizes) // 2] - 4096)
    assert_same(list(batches(training_loader(dataset, steps_of(0, 6), workers=2))), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_come_with_their_batch_and_fit_into_its_slot(
    tmp_path: Path, dataset: DetectionDataset, workers: int
) -> None:
    masked, padding = make_dataset(tmp_path, masks=True), Padding(slots=40)
    found = list(batches(training_loader(masked, steps_of(0, 10), padding=padding, workers=workers)))
    for batch in found:
        assert sum(tensor.nbytes for tensor in batch.tensors) < masked.largest_bytes(2, padding)
        masks = batch.targets.masks
        assert masks is not None
        assert masks.dtype == torch.bool
        assert masks.shape == (*batch.targets.valid.shape, SIDE, SIDE)
        assert masks[batch.targets.valid].any(dim=(1, 2)).all()
    assert_same(found, list(batches(training_loader(masked, steps_of(0, 10), padding=padding))))
    # But for the masks nothing has changed.
    without = [replace(batch, targets=replace(batch.targets, masks=None)) for batch in found]
    assert_same(without, list(batches(training_loader(dataset, steps_of(0, 10), padding=padding))))


def test_without_anonymous_memory_batches_come_through_files(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system forbids it, which shows when the ring is made."""

    def refused(name: str) -> int:
        raise PermissionError(name)

    monkeypatch.setattr(os, "memfd_create", refused)
    alone = list(batches(training_loader(dataset, steps_of(0, 2))))
    assert_same(list(batches(training_loader(dataset, steps_of(0, 2), workers=1))), alone)


def test_fewer_are_made_ahead_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "MOST", 2**30)
    monkeypatch.setattr(handover, "free_shared_memory", lambda: 2**28)
    assert plan_memory(4, 2**20) == (AHEAD, AHEAD + 1)
    assert plan_memory(4, 2**30 // 12) == (2, 3)
    assert plan_memory(1, 2**29 + 1) == (1, 0)
    assert plan_memory(2, 2**26 * 5) == (1, 0)
    monkeypatch.setattr(handover, "free_shared_memory", lambda: None)
    assert plan_memory(1, 2**40) == (AHEAD, 0)


@pytest.mark.gpu
def test_batches_for_a_gpu_arrive_page_locked(dataset: DetectionDataset) -> None:
    alone = list(batches(training_loader(dataset, steps_of(0, 6))))
    pinned = list(batches(training_loader(dataset, steps_of(0, 6), workers=2, pin_memory=True)))
    assert_same(pinned, alone)
    assert all(batch.images.is_pinned() and batch.targets.boxes.is_pinned() for batch in pinned)


@pytest.mark.shared
def test_real_images_fit_their_slots(shared_data: Path) -> None:
    """Of COCO, at the published sizes: none takes the slow way."""
    from detr_container.datasets.annotations import read_annotations
    from detr_container.datasets.transforms import Augmentation

    root = shared_data / "coco_permissive"
    read = read_annotations(root / "annotations" / "instances_train2017.json", root / "train2017")
    augmentation = Augmentation(range(480, 801, 32), 1333, augment="detr")
    dataset = DetectionDataset(read, augmentation)
    sizes = [dataset.plan((epoch, index)).size for epoch in range(20) for index in range(len(dataset))]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    most = -(-height // 32) * 32 * (-(-width // 32) * 32) * 3
    assert 2 * most < dataset.largest_bytes(2, Padding(32))
