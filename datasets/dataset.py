"""Annotated images as samples: read, decode, transform. Every random choice follows from (seed, epoch, index)."""

from __future__ import annotations

import functools
import hashlib
import random
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .annotations import Annotations
from .batch import Sample, collate
from .handover import Join
from .images import read_image
from .masks import SIDE, rasters
from .padding import Padding
from .transforms import Augmentation, Plan, apply_boxes, apply_image, clamp_boxes, has_area, normalise_boxes
from .workers import PRELOADED

Key = tuple[int, int]
"""(epoch, index): which image, and which of its random appearances."""


def random_of(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers of one appearance of one image, the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


class DetectionDataset(Dataset[Sample]):
    """The images of one annotation file, each with its objects; indexed by (epoch, index).

    Crowd regions are left out, boxes are cut at the image's edges, and those without area are dropped; images
    without objects are kept (the published code does all of this in training and evaluation).
    apply_orientation: images are turned as their orientation tags say before anything else; sizes and boxes are of the
    turned ones. masks: samples have their objects' masks, too; the annotations were read with their segmentations.
    An item's randomness is a function of `seed` and its key alone, so any process, worker or resumed run gets the
    same image for the same key.
    Raises ValueError for masks that were not read.
    """

    preloaded = PRELOADED

    def __init__(
        self,
        annotations: Annotations,
        augmentation: Augmentation,
        seed: int = 0,
        apply_orientation: bool = False,
        masks: bool = False,
    ) -> None:
        if masks and annotations.segmentations is None:
            raise ValueError(f"{annotations.path} was read without segmentations: read it with segmentations=True")
        self.annotations = annotations
        self.augmentation = augmentation
        self.seed = seed
        self.apply_orientation = apply_orientation
        self.masks = masks

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def joining(self, padding: Padding) -> Join:
        """How samples become a batch."""
        return functools.partial(collate, padding=padding)

    def largest_bytes(self, batch: int, padding: Padding) -> int:
        """Of a batch. Only one with an image of an extreme shape, whose rounding passes the longest side, is larger."""
        augmentation = self.augmentation
        longest = max(augmentation.scales) if augmentation.resize == "square" else augmentation.max_size
        objects = 100 * 1024
        if self.masks:
            single = np.append(0, np.cumsum(~self.annotations.crowd))
            most = int(np.diff(single[self.annotations.starts]).max(initial=0))
            objects += max(padding.slots, most) * SIDE**2
        return batch * (3 * padding.largest(longest) + objects)

    def plan(self, key: Key) -> Plan:
        """What will be done to an image; its `size` is the true size of the sample. Reads no file."""
        height, width = (int(side) for side in self.annotations.sizes[key[1]])
        return self.augmentation.draw(random_of(self.seed, *key), (height, width))

    def objects(self, index: int) -> tuple[Tensor, Tensor]:
        """The objects of an image: boxes [n, 4] float32 xyxy in pixels of the file, and labels [n] int64."""
        boxes, rows = self._boxes(index)
        return boxes, torch.from_numpy(self.annotations.labels[rows].astype(np.int64))

    def _boxes(self, index: int) -> tuple[Tensor, NDArray[np.int64]]:
        """The boxes of an image's objects, as `objects`, and their rows in the annotations, [n]."""
        of = self.annotations
        rows = np.arange(of.starts[index], of.starts[index + 1])
        rows = rows[~of.crowd[rows]]
        boxes = torch.from_numpy(of.boxes[rows].astype(np.float32))
        boxes[:, 2:] += boxes[:, :2]
        boxes = clamp_boxes(boxes, (int(of.sizes[index, 0]), int(of.sizes[index, 1])))
        kept = has_area(boxes)
        return boxes[kept], rows[kept.numpy()]

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index).

        Raises ValueError, which names the file and the image, when the file is missing, cannot be decoded, or has
        another size than the annotation file says.
        """
        index = key[1]
        image = self._read(index)
        size = (image.shape[1], image.shape[2])
        plan, of = self.plan(key), self.annotations
        boxes, rows = self._boxes(index)
        boxes, kept = apply_boxes(plan, size, boxes)
        rows = rows[kept.numpy()]
        masks = None
        if self.masks and of.segmentations is not None:
            masks = rasters(of.segmentations, rows, plan, size, boxes.double().numpy())
        return Sample(
            apply_image(plan, image),
            normalise_boxes(boxes, plan.size),
            torch.from_numpy(of.labels[rows].astype(np.int64)),
            int(of.image_ids[index]),
            size,
            masks,
        )

    def _read(self, index: int) -> Tensor:
        path = self.annotations.image_dir / self.annotations.file_names[index]
        try:
            with warnings.catch_warnings():
                # Pillow's hint at a very large image is no news to its owner, and would come once per worker.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = read_image(path, self.apply_orientation)
        except FileNotFoundError:
            raise self._refusal(path, index, "the file does not exist") from None
        except (OSError, ValueError) as error:
            raise self._refusal(path, index, f"the file cannot be read: {error}") from error
        height, width = (int(side) for side in self.annotations.sizes[index])
        if tuple(image.shape[1:]) != (height, width):
            found = f"{image.shape[2]} x {image.shape[1]}"
            problem = f"the file has {found} pixels (width x height), its annotation says {width} x {height}"
            raise self._refusal(path, index, problem)
        return image

    def _refusal(self, path: Path, index: int, problem: str) -> ValueError:
        image_id = int(self.annotations.image_ids[index])
        return ValueError(
            f"{path}: {problem} (image id {image_id} of {self.annotations.path}); repair the file or "
            "remove its record. `detr-container data check` lists every such image before training starts"
        )
