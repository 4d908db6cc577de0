"""DETR's optimizer for detectron2's loops, neither of which clips the gradient of a whole model.

`SimpleTrainer` and `AMPTrainer` call `optimizer.step()`, the latter once its scaler has divided the gradients by its
scale; so that is where they are clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.optim import AdamW

from detr_container.config.detection import DetectionTrainConfig
from detr_container.tasks.detection import groups

from .meta_archs import QueryMetaArch

FULL_MODEL = "full_model"
"""What `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` is; detectron2's own types clip each tensor by itself."""


class _Built(Protocol):
    """A model of ours, of whichever meta-architecture."""

    detector: Any


class ClippedAdamW(AdamW):
    """AdamW, which clips the gradient of all of its parameters together to an L2 norm of `clip` before a step.

    clip: 0 turns clipping off. A step raises FloatingPointError, and changes nothing, where the norm is not finite.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, weight_decay: float = 1e-4, clip: float = 0.1, **others: Any
    ) -> None:
        # The fused kernel would have AMP's scaler leave the gradients scaled, for the kernel to divide, and they would
        # be clipped by a norm that is thousands of times too large.
        if others.get("fused"):
            raise ValueError("fused=True: a fused step takes gradients that are still scaled (AMP); leave it out")
        super().__init__(params, lr=lr, weight_decay=weight_decay, **others)
        self.clip = clip

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip and step; returns what the closure gave."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.clip:
            parameters = [p for group in self.param_groups for p in group["params"]]
            norm: Tensor = nn.utils.clip_grad_norm_(parameters, self.clip)
            if not bool(norm.isfinite()):
                raise FloatingPointError(
                    f"the norm of the gradient is {float(norm)}, and no step was made: the last checkpoint is good. A "
                    "lower learning rate usually helps"
                )
        super().step()
        return loss


def parameter_groups(model: nn.Module, lr: float = 1e-4, lr_backbone: float = 1e-5) -> list[dict[str, Any]]:
    """Two groups, the backbone at a rate of its own, of a DETR or SMCA-DETR; weight decay acts on all, as published.

    Raises ValueError when the backbone is to be trained and has nothing to train.
    """
    detector = cast(_Built, model).detector
    made = groups.parameter_groups(detector, DetectionTrainConfig(lr=lr, lr_backbone=lr_backbone))
    return [
        {"params": group["params"], "name": group["name"], "lr": group["base_lr"]} for group in made if group["params"]
    ]


def build(cfg: CfgNode, model: nn.Module) -> ClippedAdamW:
    """The optimizer of a DETR or SMCA-DETR from yacs settings. Raises ValueError for another way to clip."""
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and (clipping.CLIP_TYPE != FULL_MODEL or clipping.NORM_TYPE != 2.0):
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={clipping.CLIP_TYPE}, NORM_TYPE={clipping.NORM_TYPE}: DETR's gradient is "
            f"clipped as a whole; set CLIP_TYPE to {FULL_MODEL} and NORM_TYPE to 2.0, or ENABLED to False"
        )
    return ClippedAdamW(
        parameter_groups(model, cfg.SOLVER.BASE_LR, cfg.MODEL.DETR_CONTAINER.LR_BACKBONE),
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        clip=clipping.CLIP_VALUE if clipping.ENABLED else 0.0,
    )


def is_ours(model: nn.Module) -> bool:
    """Whether it is a DETR or SMCA-DETR of ours."""
    return isinstance(model, QueryMetaArch)
