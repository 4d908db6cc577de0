"""What travels from the loader to the model: one batch of images and everything that is known about them.

Shapes: B images, H x W the padded size, T slots for the objects of an image.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .padding import TO_LARGEST, Padding


@dataclass
class Sample:
    """One image as the data set gives it.

    image: [3, h, w] uint8; boxes: [n, 4] float32 (cx, cy, w, h in [0, 1]); labels: [n] int64, contiguous from 0;
    image_id: its id in the annotation file; original_size: (height, width) on disk, in pixels. masks: [n, S, S] bool,
    each in the frame of its own box, where they are read (see `masks.rasters`).
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]
    masks: Tensor | None = None


@dataclass
class Targets:
    """The objects of a batch, each image's in its first slots.

    labels: [B, T] int64, 0 beyond an image's objects; boxes: [B, T, 4] float32 (cx, cy, w, h in [0, 1]), the whole
    image beyond; valid: [B, T] bool, where objects are; counts: how many each image has, always on the host;
    masks: [B, T, S, S] bool, each in the frame of its own box and empty beyond, where they are read.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    counts: tuple[int, ...]
    masks: Tensor | None = None

    @classmethod
    def of_images(
        cls,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        slots: int = 0,
        masks: Sequence[Tensor] | None = None,
    ) -> Targets:
        """Those of images with labels [n], boxes [n, 4] and perhaps masks [n, S, S] each.

        They get `slots`, or as many as the fullest needs.
        """
        counts = tuple(map(len, labels))
        slots = max(slots, *counts)
        valid = torch.arange(slots) < torch.tensor(counts)[:, None]
        padded = Targets(
            torch.zeros(valid.shape, dtype=torch.int64),
            torch.tensor((0.5, 0.5, 1.0, 1.0), dtype=boxes[0].dtype).repeat(*valid.shape, 1),
            valid,
            counts,
        )
        padded.labels[valid] = torch.cat([*labels])
        padded.boxes[valid] = torch.cat([*boxes])
        if masks is not None:
            padded.masks = torch.zeros(*valid.shape, *masks[0].shape[1:], dtype=torch.bool)
            for slot, own in zip(padded.masks, masks, strict=True):
                slot[: len(own)] = own
        return padded


@dataclass
class Batch:
    """Padded images and their targets.

    images: [B, 3, H, W] uint8, padded at the bottom and the right; sizes: [B, 2] int64, true (height, width) in
    pixels before padding; image_ids and original_sizes (height, width on disk) stay on the host.
    padded: whether any image is smaller than the batch, so that models can do without masks when none is.
    """

    images: Tensor
    sizes: Tensor
    targets: Targets
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    padded: bool = True

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors, always in this order."""
        targets = self.targets
        every = self.images, self.sizes, targets.labels, targets.boxes, targets.valid
        return every if targets.masks is None else (*every, targets.masks)

    def with_tensors(self, tensors: Iterable[Tensor]) -> Batch:
        """The same batch with others in the place of its `tensors`."""
        images, sizes, labels, boxes, valid, *masks = tensors
        targets = Targets(labels, boxes, valid, self.targets.counts, *masks)
        return replace(self, images=images, sizes=sizes, targets=targets)

    @property
    def form(self) -> Hashable:
        """What decides beside the shapes of its tensors which operations are computed."""
        return self.padded

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to `device`, without waiting when its memory is pinned."""
        return self.with_tensors(tensor.to(device, non_blocking=True) for tensor in self.tensors)

    def pin_memory(self) -> Batch:
        """Make page-locked copies, so that `to` can overlap with computation (called by the data loader)."""
        return self.with_tensors(tensor.pin_memory() for tensor in self.tensors)


def collate(samples: Sequence[Sample], padding: Padding = TO_LARGEST) -> Batch:
    """Pad images to one size, and their objects to one number.

    All of them have masks, or none. Raises ValueError when the images do not fit (see `Padding`).
    """
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    height, width = padding.size(*(max(side) for side in zip(*sizes, strict=True)))
    # Images are decoded and resized with channels last; keeping them so makes the copy a plain one, here and in the
    # convolutions.
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for padded, sample, (h, w) in zip(images, samples, sizes, strict=True):
        padded[:, :h, :w].copy_(sample.image)
    masks = [sample.masks for sample in samples if sample.masks is not None]
    targets = Targets.of_images(
        [sample.labels for sample in samples], [sample.boxes for sample in samples], padding.slots, masks or None
    )
    return Batch(
        images,
        torch.tensor(sizes, dtype=torch.int64),
        targets,
        tuple(sample.image_id for sample in samples),
        tuple(sample.original_size for sample in samples),
        # All batches of a canvas compute the same, whether their images fill it or not.
        padded=bool(padding.canvases) or any(size != (height, width) for size in sizes),
    )
