"""Hungarian matching of predictions and objects (Carion et al. 2020, section 3.1), all decoder layers at once.

Shapes: D decoder layers, B images, Q queries, K logits, N objects of the batch, T the most objects of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detr_container.datasets.batch import Targets

from .boxes import cxcywh_to_xyxy, generalized_iou
from .detector import Output
from .device import to_device


class NonFiniteOutputError(RuntimeError):
    """A prediction is NaN or infinite. layer: decoder layer from 0; image: its place in the batch."""

    def __init__(self, layer: int, image: int) -> None:
        super().__init__(f"decoder layer {layer} predicts NaN or Inf for image {image} of the batch")
        self.layer, self.image = layer, image


@dataclass
class Matches:
    """Matched pairs of all layers, packed: [M] int64 each, ordered by layer, then image, then query.

    layer, image, query: place of the prediction; target: row of the packed `Targets`.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


@dataclass(frozen=True)
class Matcher:
    """The cost of a pair, and the assignment with the least total cost of each image and layer."""

    classification: str = "softmax"
    cost_class: float = 1.0
    cost_l1: float = 5.0
    cost_giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, output: Output, targets: Targets) -> Matches:
        """Match; an image with more objects than queries has as many pairs as queries.

        What comes to the host comes in one transfer, the only one of a training step. Raises NonFiniteOutputError.
        """
        from scipy.optimize import linear_sum_assignment

        layers, images, queries = output.logits.shape[:3]
        costs = self.costs(output, targets)
        # An image without objects has no costs, so what it predicts is tested by itself.
        finite = output.logits.sum(dim=(2, 3)) + output.boxes.sum(dim=(2, 3))
        host = torch.cat((costs.flatten(), finite.flatten())).cpu()
        costs, finite = host.split([costs.numel(), finite.numel()])
        bad = (~finite.isfinite()).nonzero()
        if len(bad):
            raise NonFiniteOutputError(*divmod(int(bad[0]), images))
        table = costs.view(layers, images, queries, -1).numpy()
        starts = torch.tensor((0, *targets.counts)).cumsum(0).tolist()
        rows: list[tuple[int, int, int, int]] = []
        for layer in range(layers):
            for image, count in enumerate(targets.counts):
                matched = linear_sum_assignment(table[layer, image, :, :count])
                pairs = zip(*(side.tolist() for side in matched), strict=True)
                rows += [(layer, image, query, starts[image] + target) for query, target in pairs]
        layer_of, image_of, query, target = to_device(rows, output.logits.device).view(-1, 4).unbind(1)
        return Matches(layer_of, image_of, query, target)

    def costs(self, output: Output, targets: Targets) -> Tensor:
        """[D, B, Q, T] cost of every prediction against its own image's objects; surplus columns are unspecified."""
        slots = max(targets.counts, default=0)
        starts = torch.tensor((0, *targets.counts)).cumsum(0).tolist()
        rows = [
            start + min(slot, count - 1) if count else 0
            for start, count in zip(starts[:-1], targets.counts, strict=True)
            for slot in range(slots)
        ]
        row = to_device(rows, output.logits.device).view(len(targets.counts), slots)
        labels, boxes = targets.labels[row], targets.boxes[row]
        columns = labels[None, :, None].expand(*output.logits.shape[:3], -1)
        price = self._class_cost(output.logits).gather(-1, columns)
        l1 = (output.boxes[..., None, :] - boxes[None, :, None]).abs().sum(dim=-1)
        overlap = generalized_iou(cxcywh_to_xyxy(output.boxes)[..., None, :], cxcywh_to_xyxy(boxes)[None, :, None])
        return self.cost_l1 * l1 + self.cost_class * price - self.cost_giou * overlap

    def _class_cost(self, logits: Tensor) -> Tensor:
        """[..., K]: minus the probability (softmax), or what focal loss would gain (Lin et al. 2017)."""
        if self.classification == "softmax":
            return -logits.softmax(dim=-1)
        p = logits.sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative
