"""Matching and losses of packed objects, pair by pair: what the padded ones must equal.

The objects of a batch lie one after the other, N in all, and matches are lists of M pairs, so that every shape depends
on how many there are. D decoder layers, B images, Q queries, T slots of padded objects.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from detr_container.datasets.batch import Targets
from detr_container.models.criterion import Criterion
from detr_container.models.detector import Output
from detr_container.models.matcher import Matcher


@dataclass
class Packed:
    """labels: [N]; boxes: [N, 4]; starts: [B + 1] an image's first row, and then their number."""

    labels: Tensor
    boxes: Tensor
    starts: list[int]


@dataclass
class Pairs:
    """[M] each, ordered by layer, image and query; target: row of `Packed`."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


def pack(targets: Targets) -> Packed:
    """The objects without what pads them."""
    starts = [0, *accumulate(targets.counts)]
    return Packed(targets.labels[targets.valid], targets.boxes[targets.valid], starts)


def pairs_of(matches: Tensor, targets: Targets) -> Pairs:
    """[D, B, T] queries of the slots as pairs."""
    starts, rows = pack(targets).starts, list[tuple[int, ...]]()
    for layer, image in ((layer, image) for layer in range(len(matches)) for image in range(matches.shape[1])):
        queries = matches[layer, image].tolist()
        rows += sorted((layer, image, query, starts[image] + slot) for slot, query in enumerate(queries) if query >= 0)
    return Pairs(*torch.tensor(rows, dtype=torch.int64).view(-1, 4).unbind(1))


@torch.no_grad()
def match(matcher: Matcher, output: Output, packed: Packed) -> Pairs:
    """The assignments of least cost, image by image."""
    rows: list[tuple[int, ...]] = []
    for layer, (logits, boxes) in enumerate(zip(output.logits, output.boxes, strict=True)):
        for image in range(logits.shape[0]):
            own = slice(packed.starts[image], packed.starts[image + 1])
            price = matcher._class_cost(logits[image])[:, packed.labels[own]]
            l1 = torch.cdist(boxes[image], packed.boxes[own], p=1)
            costs = matcher.cost_class * price + matcher.cost_l1 * l1
            costs -= matcher.cost_giou * generalized_box_iou(_corners(boxes[image]), _corners(packed.boxes[own]))
            for query, target in zip(*linear_sum_assignment(costs), strict=True):
                rows.append((layer, image, int(query), own.start + int(target)))
    return Pairs(*torch.tensor(rows, dtype=torch.int64).view(-1, 4).unbind(1))


def losses(criterion: Criterion, output: Output, packed: Packed, pairs: Pairs, norms: Tensor) -> dict[str, Tensor]:
    """[D] of each term; norms: [2] what class and box losses are divided by."""
    class_norm, box_norm = norms.clamp(min=1 if criterion.classification == "focal" else 1e-6)
    boxes, aims = output.boxes[pairs.layer, pairs.image, pairs.query], packed.boxes[pairs.target]
    overlap = generalized_box_iou(_corners(boxes), _corners(aims)).diagonal()
    each = {"l1": (boxes - aims).abs().sum(dim=-1), "giou": 1 - overlap}
    zeros = output.logits.new_zeros(len(output.logits))
    terms = {name: zeros.index_add(0, pairs.layer, loss) / box_norm.clamp(min=1) for name, loss in each.items()}
    return {"class": class_sum(criterion, output.logits, packed, pairs) / class_norm, **terms}


def class_sum(criterion: Criterion, logits: Tensor, packed: Packed, pairs: Pairs) -> Tensor:
    """[D] classification loss summed over images and queries."""
    at, labels = (pairs.layer, pairs.image, pairs.query), packed.labels[pairs.target]
    if criterion.classification == "focal":
        one_hot = torch.zeros_like(logits)
        one_hot[(*at, labels)] = 1.0
        return sigmoid_focal_loss(logits, one_hot, criterion.alpha, criterion.gamma).sum(dim=(1, 2, 3))
    index = torch.full(logits.shape[:-1], logits.shape[-1] - 1)
    index[at] = labels
    loss = F.cross_entropy(logits.flatten(0, 2), index.flatten(), reduction="none").view_as(index)
    loss = torch.where(index == logits.shape[-1] - 1, criterion.no_object_weight * loss, loss)
    return loss.sum(dim=(1, 2))


def diagnostics(output: Output, packed: Packed, pairs: Pairs) -> dict[str, float]:
    """Of the last layer, with a softmax."""
    top, last = output.logits[-1].argmax(dim=-1), pairs.layer == len(output.logits) - 1
    right = (top[pairs.image, pairs.query] == packed.labels[pairs.target])[last].sum()
    predicted = (top != output.logits.shape[-1] - 1).sum(dim=1)
    missed = (predicted - torch.tensor(packed.starts).diff()).abs().float().mean()
    return {"class_error": float(100 - 100 * right / last.sum().clamp(min=1)), "cardinality_error": float(missed)}


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
