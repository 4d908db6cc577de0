"""The largest batch that a detector's schedule can draw, synthetic batches, and a data set of few images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detr_container.base.files import write_json
from detr_container.config.detection import DataConfig, DetectionExperiment
from detr_container.datasets.annotations import Annotations, load_json, read_annotations, without_segmentation
from detr_container.datasets.batch import Batch, Targets
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.masks import SIDE
from detr_container.datasets.padding import up
from detr_container.datasets.sizes import SHIFT, reach
from detr_container.datasets.transforms import Size

from .build import evaluation_augmentation, training_augmentation

IMAGES = 100
"""Over how many validation images FLOPs are averaged: DETR's convention (Carion et al. 2020, table 1)."""


@dataclass(frozen=True)
class LargestBatch:
    """The largest micro batch: its padded height and width in pixels, and how many objects each of its images has.

    padded: whether its images can be smaller than itself, so that the model needs masks; slots: see `Padding`.
    """

    height: int
    width: int
    objects: tuple[int, ...]
    padded: bool
    slots: int = 0


def largest_batch(
    annotations: Annotations, data: DataConfig, micro_batch: int, multiple: int = 1, canvases: Sequence[Size] = ()
) -> LargestBatch:
    """The micro batch with most pixels that training on these images can draw; it may be a rare one.

    multiple: what the model pads to, in pixels; canvases: what batches are padded to, if to some of a few sizes. Raises
    ValueError when an image can come out larger than the canvas.
    """
    if canvases:
        height, width = max(canvases, key=lambda size: size[0] * size[1])
        return LargestBatch(height, width, fullest(annotations, micro_batch), True)
    sizes, counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    most = reach(sizes, training_augmentation(data), multiple)
    tall, wide, joint = (each.repeat(counts.clip(max=2)) for each in most)
    if max(tall.max(), wide.max()) > data.canvas > 0:
        raise ValueError(
            f"images can come out {tall.max()} pixels high and {wide.max()} wide, which does not fit "
            f"data.canvas={data.canvas}: raise data.canvas, or lower data.max_size or data.scales"
        )
    area, height = divmod(int(joint.max()), SHIFT)
    shapes = [(height, area // height)]
    if micro_batch > 1:
        # Height and width of a batch can come from two images.
        highest, widest = np.argsort(-tall)[:2].tolist(), np.argsort(-wide)[:2].tolist()
        shapes += [(int(tall[i]), int(wide[j])) for i in highest for j in widest if i != j]
    if data.canvas:
        shapes = [(data.canvas, data.canvas)]
    padded = [(up(height, multiple), up(width, multiple)) for height, width in shapes]
    shape = max(padded, key=lambda size: size[0] * size[1])
    alike = len(set(data.scales)) == 1 and (data.resize == "square" or (data.augment != "detr" and len(sizes) == 1))
    loose = micro_batch > 1 or multiple > 1 or data.canvas > 0
    masked = loose and not (alike and shape == (tall.max(), wide.max()))
    return LargestBatch(*shape, fullest(annotations, micro_batch), masked)


def fullest(annotations: Annotations, images: int) -> tuple[int, ...]:
    """How many objects the images with most of them have, counted as in training."""
    image = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.starts))
    single = ~annotations.crowd & np.all(annotations.boxes[:, 2:] > 0, axis=1)
    counts = np.bincount(image[single], minlength=max(images, len(annotations.image_ids)))
    return tuple(np.sort(counts)[::-1][:images].tolist())


def few_images(dataset: DetectionDataset, count: int, path: Path) -> DetectionDataset:
    """So many images of a data set, those that make its largest batch in front; `path` gets their annotation file."""
    every = range(len(dataset))
    sizes = [dataset.plan((0, index)).size for index in every]
    highest, widest = (max(every, key=lambda index: sizes[index][side]) for side in (0, 1))
    chosen = dataset.annotations.image_ids[list(dict.fromkeys([highest, widest, *every]))[:count]].tolist()
    # Images are read in the order of their ids.
    renamed = {image_id: place for place, image_id in enumerate(chosen)}
    masks = dataset.annotations.segmentations is not None
    content = load_json(dataset.annotations.path, None if masks else without_segmentation)
    content["images"] = [{**image, "id": renamed[image["id"]]} for image in content["images"] if image["id"] in renamed]
    content["annotations"] = [
        {**record, "image_id": renamed[record["image_id"]]}
        for record in content["annotations"]
        if record["image_id"] in renamed
    ]
    write_json(path, content)
    annotations = read_annotations(path, dataset.annotations.image_dir, segmentations=masks)
    return DetectionDataset(annotations, dataset.augmentation, dataset.seed, dataset.apply_orientation, dataset.masks)


def synthetic_batch(largest: LargestBatch, classes: int, seed: int = 0, masks: bool = False) -> Batch:
    """A micro batch of random pixels and objects; masks: each of which fills its box."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = len(largest.objects), largest.height, largest.width
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[height, width]] * count)
    sizes[0] -= int(largest.padded)
    objects = sum(largest.objects)
    boxes = torch.rand(objects, 4, generator=generator) * 0.4 + 0.1
    labels = torch.randint(0, classes, (objects,), generator=generator)
    full = [torch.ones(many, SIDE, SIDE, dtype=torch.bool) for many in largest.objects] if masks else None
    targets = Targets.of_images(labels.split(largest.objects), boxes.split(largest.objects), largest.slots, full)
    shapes = tuple((height, width) for _ in range(count))
    return Batch(pixels.permute(0, 3, 1, 2), sizes, targets, tuple(range(count)), shapes, largest.padded)


def validation_sizes(experiment: DetectionExperiment, annotations: Annotations, images: int = IMAGES) -> list[Size]:
    """What the model is given of the first validation images, in the order of their ids: (height, width) in pixels.

    annotations: those of the validation split, of which only the images' sizes are used; no image is opened.
    """
    config = experiment.data
    if config.canvas:
        return [(config.canvas, config.canvas)] * min(images, len(annotations.sizes))
    augmentation = evaluation_augmentation(config)
    # Nothing is random in an evaluation, but a plan is drawn all the same.
    rng = random.Random(0)
    return [augmentation.draw(rng, (height, width)).size for height, width in annotations.sizes[:images].tolist()]
