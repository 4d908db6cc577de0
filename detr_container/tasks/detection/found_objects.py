"""What models have found in an image with its attention maps, and which of their detections are one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .predict import Prediction, as_records, query_maps
from .trained import Trained

SAME = 0.5
"""The least IoU of two boxes of one class that are taken for the same object."""


@dataclass(frozen=True)
class Model:
    """A trained model under the name that it bears on sheets and in JSON."""

    label: str
    trained: Trained

    def __str__(self) -> str:
        settings = self.trained.experiment
        return f"{settings.head.kind} on {settings.backbone.label}, step {self.trained.step}"

    @property
    def stride(self) -> int:
        """Pixels of the resized image to a position of the encoder, and of attention maps: of the finest level."""
        return self.trained.model.strides[0]


@dataclass(frozen=True)
class Found:
    """One detection of one model: its record, its box [4] xyxy in the file's pixels, its attention maps."""

    record: dict[str, Any]
    box: Tensor
    attention_maps: Tensor
    """[m, h, w] over positions; see `query_maps`."""


Object = list[Found | None]
"""The detections of one object, one per model in their order, None where a model has not found it."""


def found_by(model: Model, prediction: Prediction, threshold: float) -> list[Found]:
    """What a model has found in one image at or above a score, best first, with its attention maps."""
    rows = as_records(prediction, model.trained, threshold)["detections"]
    boxes, queries = prediction.found.boxes.float().cpu(), prediction.found.queries.tolist()
    height, width = prediction.image.shape[1:]
    found = []
    for record, box, query in zip(rows, boxes, queries, strict=False):
        attention_maps = query_maps(prediction, query)
        x1, y1, x2, y2 = (box.clamp(min=0).minimum(torch.tensor([width, height] * 2))).tolist()
        shares = {
            "query": query,
            "attention_in_box": within_box(attention_maps[0], box, prediction),
            "image_in_box": max(0.0, x2 - x1) * max(0.0, y2 - y1) / (width * height),
        }
        found.append(Found(record | shares, box, attention_maps))
    return found


def within_box(heat: Tensor, box: Tensor, prediction: Prediction) -> float:
    """The share in [0, 1] of an attention map's mass within a box.

    A position's mass is spread evenly over its part of the image.
    heat: [h, w] over the padded canvas's positions; box: [4] xyxy in the file's pixels.
    """
    low, high = box[:2].flip(0).tolist(), box[2:].flip(0).tolist()
    shares = []
    for axis, length in enumerate(heat.shape):
        pixels, true = prediction.size[axis], prediction.image.shape[1 + axis]
        edges = torch.linspace(0, prediction.canvas[axis], length + 1, dtype=torch.float64).clamp(max=pixels)
        start, end = low[axis] * pixels / true, high[axis] * pixels / true
        inside = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
        # A position that is all padding has no width, and no attention either.
        shares.append(inside.clamp(min=0) / edges.diff().clamp(min=1e-9))
    weights = heat.double()
    return float((shares[0] @ weights @ shares[1]) / weights.sum())


def match_across(found: Sequence[Sequence[Found]]) -> list[Object]:
    """Tell which detections of several models are the same object; surest first.

    Model by model, detections are assigned to the objects so far (to the box of the first model that found each) such
    that the sum of IoUs is largest (Kuhn 1955); pairs need one class and an IoU of `SAME`. The rest are new objects.
    """
    from scipy.optimize import linear_sum_assignment

    objects: list[Object] = []
    for place, detections in enumerate(found):
        free = set(range(len(detections)))
        if objects and detections:
            first = [finder(thing)[1] for thing in objects]
            overlap = ious(first, detections)
            named = [[_class(one) == _class(other) for other in detections] for one in first]
            allowed = np.array(named) & (overlap >= SAME)
            for line, column in zip(*linear_sum_assignment(np.where(allowed, overlap, 0), maximize=True), strict=True):
                if allowed[line, column]:
                    objects[line][place] = detections[column]
                    free.remove(column)
        for index in sorted(free):
            objects.append([detections[index] if model == place else None for model in range(len(found))])
    return sorted(objects, key=lambda thing: -max(one.record["score"] for one in thing if one))


def finder(thing: Object) -> tuple[int, Found]:
    """The first model that has found an object, and its detection."""
    return next((place, one) for place, one in enumerate(thing) if one)


def _class(one: Found) -> str:
    return str(one.record["category"]).casefold()


def ious(ours: Sequence[Found], theirs: Sequence[Found]) -> np.ndarray:
    """[n, m]; boxes without area overlap nothing."""
    from torchvision.ops import box_iou

    overlap = box_iou(torch.stack([one.box for one in ours]), torch.stack([one.box for one in theirs]))
    return overlap.nan_to_num().numpy()
