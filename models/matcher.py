"""Hungarian matching of predictions and objects (Carion et al. 2020, section 3.1), all decoder layers at once.

What is computed on the device depends on shapes alone; only `assign`, on the host, looks at values.
Shapes: D decoder layers, B images, Q queries, K logits, T slots for the objects of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detr_container.datasets.batch import Targets

from .boxes import cxcywh_to_xyxy, generalized_iou
from .detector import Output
from .device import Fetched, sent


class NonFiniteOutputError(RuntimeError):
    """A prediction is NaN or infinite. layer: decoder layer from 0; image: its place in the batch."""

    def __init__(self, layer: int, image: int) -> None:
        super().__init__(f"decoder layer {layer} predicts NaN or Inf for image {image} of the batch")
        self.layer, self.image = layer, image


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
    def question(self, output: Output, targets: Targets) -> Tensor:
        """[D, B, Q * T + 1] all that `assign` must know: costs, and a number that is finite if the predictions are."""
        # An image without objects has no costs, so what it predicts is tested by itself.
        probe = output.logits.sum(dim=(2, 3)) + output.boxes.sum(dim=(2, 3))
        return torch.cat((self.costs(output, targets).flatten(2), probe[..., None]), dim=-1)

    def assign(self, asked: Tensor, targets: Targets) -> Tensor:
        """[D, B, T] on the host: the query of each object, -1 in slots without one.

        An image with more objects than queries has as many matches as queries. asked: `question`, on the host; of
        targets only the numbers of objects and slots are read. Raises NonFiniteOutputError.
        """
        from scipy.optimize import linear_sum_assignment

        layers, images = asked.shape[:2]
        bad = (~asked[..., -1].isfinite()).flatten().nonzero()
        if len(bad):
            raise NonFiniteOutputError(*divmod(int(bad[0]), images))
        slots = targets.valid.shape[1]
        matches = np.full((layers, images, slots), -1)
        if slots:
            table = asked[..., :-1].unflatten(-1, (-1, slots)).numpy()
            for layer, image in np.ndindex(layers, images):
                rows, columns = linear_sum_assignment(table[layer, image, :, : targets.counts[image]])
                matches[layer, image, columns] = rows
        return torch.from_numpy(matches)

    def __call__(self, output: Output, targets: Targets) -> Tensor:
        """Both in one, which waits for the device: [D, B, T] matches on the device."""
        return sent(self.assign(Fetched(self.question(output, targets)).wait(), targets), output.logits.device)

    @torch.no_grad()
    def on_device(self, output: Output, targets: Targets) -> tuple[Tensor, Tensor]:
        """[D, B, T] matches as `assign` gives them, without waiting for the device; needs Triton.

        Also a scalar to multiply the loss by: 1, or NaN if a prediction is NaN or infinite, so that its gradient is.
        """
        from .layers.gpu.assignment_kernel import assign

        probe = output.logits.sum() + output.boxes.sum()
        return assign(self.costs(output, targets), targets.valid), 1 + 0 * probe

    @torch.no_grad()
    def costs(self, output: Output, targets: Targets) -> Tensor:
        """[D, B, Q, T] cost of every prediction against the slots of its own image."""
        columns = targets.labels[None, :, None].expand(*output.logits.shape[:3], -1)
        price = self._class_cost(output.logits).gather(-1, columns)
        l1 = (output.boxes[..., None, :] - targets.boxes[None, :, None]).abs().sum(dim=-1)
        ours, theirs = cxcywh_to_xyxy(output.boxes), cxcywh_to_xyxy(targets.boxes)
        overlap = generalized_iou(ours[..., None, :], theirs[None, :, None])
        return self.cost_l1 * l1 + self.cost_class * price - self.cost_giou * overlap

    def _class_cost(self, logits: Tensor) -> Tensor:
        """[..., K]: minus the probability (softmax), or what focal loss would gain (Lin et al. 2017)."""
        if self.classification == "softmax":
            return -logits.softmax(dim=-1)
        p = logits.sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative
