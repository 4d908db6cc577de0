"""timm's own loader on an experiment's image folders and transforms, as its training script makes it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from torchvision.transforms import RandomCrop

from detr_container.config.classification import FoldersConfig
from detr_container.datasets.views import MARGIN, SMALL, keep_no_bits


@dataclass(frozen=True)
class Handed:
    """What is counted of a batch."""

    image_ids: Sequence[int]


def timm_batches(folder: Path, data: FoldersConfig, batch: int, workers: int) -> Generator[Handed, None, None]:
    """Without end, batches as timm's loader has them before it normalises and erases them: uint8, as ours.

    folder: of the training split. Raises ValueError when there are fewer images than a batch has.
    """
    dataset = ImageDataset(str(folder))
    if len(dataset) < batch:
        raise ValueError(f"train.micro_batch={batch}: {folder} has {len(dataset)} images, too few for a batch")
    fetching = create_loader(
        dataset,
        data.size,
        batch,
        is_training=True,
        scale=data.area,
        ratio=data.aspect,
        hflip=data.flip,
        color_jitter=data.color_jitter,
        auto_augment=data.auto_augment or None,
        interpolation="bicubic",
        num_workers=workers,
        device=torch.device("cpu"),
    )
    transforms = dataset.transform.transforms
    if data.size <= SMALL:
        transforms[0] = RandomCrop(data.size, padding=MARGIN)
    # Without this it ends at one image in six hundred, where Pillow is new.
    keep_no_bits(transforms)
    while True:
        for images, _ in fetching.loader:
            yield Handed(range(len(images)))
