"""From a detector's output to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import cxcywh_to_xyxy
from .detector import Output


@dataclass
class Detections:
    """Of one picture: scores [n] in [0, 1], labels [n] int64, boxes [n, 4] xyxy in its pixels, queries [n] int64."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor


def postprocess(output: Output, sizes: Sequence[tuple[int, int]], classification: str) -> list[Detections]:
    """Detections of every picture from the last decoder layer, without threshold or suppression, best first.

    sizes: (height, width) in pixels to scale the boxes to. Softmax: each query's best class but no-object, as DETR.
    Focal: the Q best of all query-class pairs, as SMCA-DETR.
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
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype, device=boxes.device)
    return [Detections(*row) for row in zip(scores, labels, boxes * scale[:, None], order, strict=True)]
