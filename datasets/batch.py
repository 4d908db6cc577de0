"""What travels from the loader to the model: one batch of images and everything that is known about them.

Shapes: B images, H x W the padded size, N objects in the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sample:
    """One image as the data set gives it.

    image: [3, h, w] uint8; boxes: [n, 4] float32 (cx, cy, w, h in [0, 1]); labels: [n] int64, contiguous from 0;
    image_id: its id in the annotation file; original_size: (height, width) on disk, in pixels.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]


@dataclass
class Targets:
    """The objects of a batch, packed: image b owns the `counts[b]` rows that follow those of images 0 .. b-1.

    labels: [N] int64; boxes: [N, 4] float32 (cx, cy, w, h in [0, 1]); counts: one int per image, always on the host.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device | str) -> Targets:
        """Copy the objects to `device`."""
        return Targets(self.labels.to(device, non_blocking=True), self.boxes.to(device, non_blocking=True), self.counts)


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

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to `device`, without waiting when its memory is pinned."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.sizes.to(device, non_blocking=True),
            self.targets.to(device),
            self.image_ids,
            self.original_sizes,
            self.padded,
        )

    def pin_memory(self) -> Batch:
        """Make page-locked copies, so that `to` can overlap with computation (called by the data loader)."""
        targets = Targets(self.targets.labels.pin_memory(), self.targets.boxes.pin_memory(), self.targets.counts)
        return Batch(
            self.images.pin_memory(),
            self.sizes.pin_memory(),
            targets,
            self.image_ids,
            self.original_sizes,
            self.padded,
        )


def collate(samples: Sequence[Sample], multiple: int = 1, canvas: int = 0) -> Batch:
    """Pad images to one size and pack their objects.

    multiple: the padded height and width are multiples of this many pixels (a backbone's `size_multiple`).
    canvas: when not 0, pad to this square in pixels instead of to the largest image.
    Raises ValueError when an image is larger than the canvas.
    """
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    if canvas:
        if max(height, width) > canvas:
            raise ValueError(
                f"an image of {height} x {width} pixels does not fit data.canvas={canvas}: "
                "raise data.canvas, or lower data.max_size"
            )
        height = width = canvas
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    # Images are decoded and resized with channels last; keeping them so makes the copy a plain one, here and in the
    # convolutions.
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for padded, sample, (h, w) in zip(images, samples, sizes, strict=True):
        padded[:, :h, :w].copy_(sample.image)
    targets = Targets(
        torch.cat([sample.labels for sample in samples]),
        torch.cat([sample.boxes for sample in samples]),
        tuple(len(sample.labels) for sample in samples),
    )
    return Batch(
        images,
        torch.tensor(sizes, dtype=torch.int64),
        targets,
        tuple(sample.image_id for sample in samples),
        tuple(sample.original_size for sample in samples),
        padded=any(size != (height, width) for size in sizes),
    )
