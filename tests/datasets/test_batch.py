"""A batch's objects are padded, and its tensors can be exchanged for others."""

from dataclasses import replace

import pytest
import torch

from detr_container.datasets.batch import Batch, Sample, collate
from detr_container.datasets.padding import Padding


def samples() -> list[Sample]:
    """Of two, no and one object."""
    images = [torch.full((3, height, width), 9, dtype=torch.uint8) for height, width in ((4, 6), (5, 3), (5, 6))]
    labels = [torch.tensor([7, 3]), torch.zeros(0, dtype=torch.int64), torch.tensor([5])]
    boxes = [torch.rand(len(each), 4) for each in labels]
    return [
        Sample(image, box, label, number, (40, 60))
        for number, (image, box, label) in enumerate(zip(images, boxes, labels, strict=True))
    ]


def test_objects_lie_in_the_first_slots() -> None:
    given = samples()
    for asked, slots in ((0, 2), (1, 2), (5, 5)):
        targets = collate(given, Padding(slots=asked)).targets
        assert targets.counts == (2, 0, 1)
        assert targets.valid.sum(dim=1).tolist() == [2, 0, 1]
        assert targets.labels.shape == targets.valid.shape == (3, slots)
        for image, sample in enumerate(given):
            own = len(sample.labels)
            assert targets.valid[image, :own].all()
            assert torch.equal(targets.labels[image, :own], sample.labels)
            assert torch.equal(targets.boxes[image, :own], sample.boxes)
        assert not targets.labels[~targets.valid].any()
        assert (targets.boxes[~targets.valid] == torch.tensor([0.5, 0.5, 1, 1])).all()


def test_a_batch_without_objects_has_no_slots() -> None:
    targets = collate([samples()[1]]).targets
    assert targets.labels.shape == targets.valid.shape == (1, 0)
    assert targets.boxes.shape == (1, 0, 4)


def with_masks() -> list[Sample]:
    """The same, each object with a mask of its own."""
    masks = [torch.rand(len(sample.labels), 3, 3) < 0.5 for sample in samples()]
    return [replace(sample, masks=each) for sample, each in zip(samples(), masks, strict=True)]


def test_masks_are_in_the_slots_of_their_objects() -> None:
    given = with_masks()
    for asked, slots in ((0, 2), (5, 5)):
        targets = collate(given, Padding(slots=asked)).targets
        assert targets.masks is not None
        assert targets.masks.shape == (3, slots, 3, 3)
        assert targets.masks.dtype == torch.bool
        for image, sample in enumerate(given):
            assert sample.masks is not None
            assert torch.equal(targets.masks[image, targets.valid[image]], sample.masks)
        assert not targets.masks[~targets.valid].any()
    empty = collate([given[1]]).targets.masks
    assert empty is not None
    assert empty.shape == (1, 0, 3, 3)
    assert collate(samples()).targets.masks is None


@pytest.mark.parametrize("masks", [False, True])
def test_other_tensors_in_the_same_batch(masks: bool) -> None:
    batch = collate(with_masks() if masks else samples())
    assert len({id(tensor) for tensor in batch.tensors}) == 5 + masks
    other = batch.with_tensors(tensor + 1 if tensor.dtype != torch.bool else ~tensor for tensor in batch.tensors)
    for mine, theirs in zip(batch.tensors, other.tensors, strict=True):
        assert mine.shape == theirs.shape
        assert (mine != theirs).all()
    assert torch.equal(other.targets.labels, batch.targets.labels + 1)
    assert torch.equal(other.sizes, batch.sizes + 1)
    assert (other.image_ids, other.original_sizes) == (batch.image_ids, batch.original_sizes)
    assert other.targets.counts == batch.targets.counts
    if masks:
        assert batch.targets.masks is batch.tensors[-1]
        assert other.targets.masks is other.tensors[-1]


def test_only_padding_makes_another_form() -> None:
    def form(batch: Batch) -> object:
        return batch.form

    every = samples()
    assert form(collate(every)) == form(collate(every[:2], Padding(slots=9))) != form(collate(every[2:]))
