"""From a detector's output to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import cxcywh_to_xyxy
from .detector import Output
from .device import to_device

LIMIT = 100
"""Detections of one class in one image that count in COCO's metrics, the surest first."""


@dataclass(frozen=True)
class Ranked:
    """What queries have found, best first; of one image without the B.

    scores: [B, n] in [0, 1]; labels and queries: [B, n] int64; boxes: [B, n, 4] xyxy in pixels of each image.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor

    def image(self, index: int) -> Ranked:
        """One image's."""
        return Ranked(self.scores[index], self.labels[index], self.boxes[index], self.queries[index])


def postprocess(output: Output, sizes: Sequence[tuple[int, int]] | None, classification: str) -> Ranked:
    """A detection of every query of every image from the last decoder layer, without threshold or suppression.

    sizes: (height, width) in pixels to scale the boxes to; None leaves them in [0, 1]. Softmax: each query's best class
    but no-object, as DETR. Focal: the Q best of all query-class pairs, as SMCA-DETR.
    """
    logits, boxes = output.logits[-1], cxcywh_to_xyxy(output.boxes[-1])
    queries, classes = logits.shape[1:]
    if classification == "softmax":
        scores, labels = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        labels = labels.gather(-1, order)
    else:
        scores, best = logits.sigmoid().flatten(1).topk(queries, dim=-1)
        order, labels = best // classes, best % classes
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    if sizes is None:
        return Ranked(scores, labels, boxes, order)
    scale = to_device([(w, h, w, h) for h, w in sizes], boxes.device, boxes.dtype)
    return Ranked(scores, labels, boxes * scale[:, None], order)


def counted(labels: Tensor, limit: int = LIMIT) -> Tensor:
    """Which detections [B, n], best first, are among the first `limit` of their image with their label [B, n]."""
    order = labels.argsort(dim=-1, stable=True)
    grouped = labels.gather(-1, order)
    place = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)
    within = place - torch.searchsorted(grouped, grouped)
    return torch.zeros_like(labels).scatter(-1, order, within) < limit
