"""A small data set of noise, steps over it, and whether two passes gave the same batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.batch import Batch
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.loader import StepBatches
from detr_container.datasets.transforms import Augmentation

IMAGES = 11


def make_dataset(folder: Path, masks: bool = False) -> DetectionDataset:
    """Eleven noisy images of different sizes with 0 to 3 objects each, which are triangles where `masks` are read."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        height, width = 40 + 3 * number, 70 - 2 * number
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for _ in range(number % 4):
            left, top = (int(value) for value in generator.integers(0, 30, 2))
            record = {"id": len(annotations), "image_id": number, "category_id": 1, "iscrowd": 0, "area": 80}
            corners = [left, top, left + 8, top + len(annotations) % 10, left + 3, top + 10]
            annotations.append(record | {"bbox": [left, top, 8, 10], "segmentation": [corners]})
    path = folder / "instances.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(content))
    augmentation = Augmentation((32, 48), 80, crop_resize=(40, 50), crop_range=(20, 40), augment="detr")
    read = read_annotations(path, folder, segmentations=masks)
    return DetectionDataset(read, augmentation, seed=3, masks=masks)


def steps_of(start: int, total: int, **others: Any) -> StepBatches:
    settings = {"length": IMAGES, "seed": 5, "batch": 4, "micro_batch": 2} | others
    return StepBatches(start_step=start, total_steps=total, **settings)


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.image_ids == b.image_ids
        assert a.targets.counts == b.targets.counts
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.sizes, b.sizes)
        assert torch.equal(a.targets.boxes, b.targets.boxes)
        assert torch.equal(a.targets.labels, b.targets.labels)
        assert torch.equal(a.targets.valid, b.targets.valid)
        assert len(a.tensors) == len(b.tensors)
        if a.targets.masks is not None and b.targets.masks is not None:
            assert torch.equal(a.targets.masks, b.targets.masks)
