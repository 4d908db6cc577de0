"""DETR's set loss (Carion et al. 2020, section 3.1), focal as in SMCA-DETR on request, for all layers at once.

Every normaliser is a function of the number of objects alone, so that it can be summed over gradient accumulation and
over processes before the first forward pass: N small steps then give exactly one large step. `normalise="process"` is
what the published code does instead: see `Criterion.of_step`.
Everything is computed by shapes alone: boxes are gathered for the slots of objects, labels scattered to queries, and
what belongs to no object is masked, so that no gradient has to sort or to count.
Shapes: D decoder layers, B images, Q queries, K logits, T slots for the objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_container.datasets.batch import Targets

from .boxes import cxcywh_to_xyxy, generalized_iou
from .detector import Output
from .device import to_device


@dataclass
class Losses:
    """total: the weighted sum, a scalar; terms: unweighted, [D] per name, detached; the last row is the last layer."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """Classification, L1 and GIoU losses of matched predictions."""

    classification: str = "softmax"
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0
    normalise: str = "global"

    def normalisers(self, counts: Sequence[int], queries: int) -> tuple[float, float]:
        """What the class loss and the box losses of images with so many objects are divided by, before any minimum.

        Sum the pairs over everything that one optimizer step sees. Softmax: the total weight of all targets; focal:
        the number of objects, as for boxes.
        """
        objects = float(sum(counts))
        if self.classification == "focal":
            return objects, objects
        matched = sum(min(count, queries) for count in counts)
        return matched + self.no_object_weight * (queries * len(counts) - matched), objects

    def of_step(self, mine: Sequence[tuple[float, float]], whole: Tensor, world: int) -> Tensor:
        """[T, 2] normalisers of this process's T micro batches, with which the losses of all processes add up.

        mine: `normalisers` of each micro batch; whole: [2] float32, their sum over micro batches and processes.
        "global": `whole` for each. "process": those of the mean over all micro batches of the loss that the published
        code has on one process for each. There the softmax loss is divided by the weight of the process's own targets,
        the others by the mean number of objects of a process, but no fewer than one.
        """
        if self.normalise == "global":
            return whole.expand(len(mine), 2)
        parts = len(mine) * world
        boxes = whole[1].clamp(min=parts).expand(len(mine))
        if self.classification == "focal":
            return torch.stack((boxes, boxes), dim=1)
        own = [max(weight, 1e-6) * parts for weight, _ in mine]
        return torch.stack((to_device(own, whole.device, whole.dtype), boxes), dim=1)

    @property
    def weights(self) -> dict[str, float]:
        """Of each term in the total."""
        return {"class": self.class_weight, "l1": self.l1_weight, "giou": self.giou_weight}

    def __call__(self, output: Output, targets: Targets, matches: Tensor, normalisers: Tensor | None = None) -> Losses:
        """The losses of one batch; see `of_layers`."""
        losses = self.of_layers(output, targets, matches, normalisers)
        total = (
            self.class_weight * losses["class"] + self.l1_weight * losses["l1"] + self.giou_weight * losses["giou"]
        ).sum()
        return Losses(total, {name: loss.detach() for name, loss in losses.items()})

    def of_layers(
        self, output: Output, targets: Targets, matches: Tensor, normalisers: Tensor | None = None
    ) -> dict[str, Tensor]:
        """[D] the unweighted losses of each decoder layer, by name.

        matches: [D, B, T] the query of each object, -1 in slots without one, as the matcher gives them. normalisers:
        [2] float32 on the device, as `normalisers` gives them for the whole step; default: this batch's.
        """
        logits, queries = output.logits, output.logits.shape[2]
        if normalisers is None:
            normalisers = to_device(self.normalisers(targets.counts, queries), logits.device, logits.dtype)
        class_norm, box_norm = normalisers.clamp(min=1 if self.classification == "focal" else 1e-6).unbind()
        box_norm = box_norm.clamp(min=1)
        unmatched = matches < 0
        boxes = output.boxes.gather(2, matches.clamp(min=0)[..., None].expand(*matches.shape, 4))
        # A slot without a match is given the box it should have, so that not even a NaN comes out of its gradient.
        boxes = torch.where(unmatched[..., None], targets.boxes, boxes)
        l1 = (boxes - targets.boxes).abs().sum(dim=(1, 2, 3)) / box_norm
        overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes))
        giou = (1 - overlap).masked_fill(unmatched, 0).sum(dim=(1, 2)) / box_norm
        classes = self._class_sum(logits, targets.labels, matches) / class_norm
        return {"class": classes, "l1": l1, "giou": giou}

    def _class_sum(self, logits: Tensor, labels: Tensor, matches: Tensor) -> Tensor:
        """[D] classification loss summed over images and queries; labels: [B, T]."""
        layers, images, queries, width = logits.shape
        no_object = width - int(self.classification == "softmax")
        index = torch.full((layers, images, queries + 1), no_object, device=logits.device)
        # Slots without a match write to one more query, which is cut off.
        index.scatter_(2, matches.masked_fill(matches < 0, queries), labels.expand_as(matches))
        index = index[:, :, :queries]
        if self.classification == "focal":
            hit = index[..., None] == torch.arange(no_object, device=logits.device)
            return self._focal(logits, hit).sum(dim=(1, 2, 3))
        loss = F.cross_entropy(logits.flatten(0, 2), index.flatten(), reduction="none").view_as(index)
        return torch.where(index == no_object, self.no_object_weight * loss, loss).sum(dim=(1, 2))

    def _focal(self, logits: Tensor, hit: Tensor) -> Tensor:
        """Focal loss of each logit (Lin et al. 2017, equation 5); hit: [D, B, Q, K] where it should be high."""
        wrong = logits * torch.ones_like(logits).masked_fill_(hit, -1)
        weight = torch.full_like(logits, self.alpha - 1).masked_fill_(hit, -self.alpha)
        return weight * wrong.sigmoid() ** self.gamma * F.logsigmoid(-wrong)


@torch.no_grad()
def diagnostics(output: Output, targets: Targets, matches: Tensor, softmax: bool) -> dict[str, Tensor]:
    """What DETR logs beside its losses, of the last layer: scalars without gradient.

    class_error: per cent of matched predictions whose top class is wrong (100 without objects); cardinality_error:
    mean absolute difference between the numbers of predicted and true objects (softmax only).
    """
    top, query = output.logits[-1].argmax(dim=-1), matches[-1]
    matched = query >= 0
    right = (top.gather(1, query.clamp(min=0)) == targets.labels) & matched
    result = {"class_error": 100 - 100 * right.sum() / matched.sum().clamp(min=1)}
    if softmax:
        predicted = (top != output.logits.shape[-1] - 1).sum(dim=1)
        result["cardinality_error"] = (predicted - targets.valid.sum(dim=1)).abs().float().mean()
    return result
