"""AdamW, as DETR's published code has it and as "Container" (Gao et al. 2021) has it for RetinaNet and Mask R-CNN."""

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from detr_container.d2.optimizers import ClippedAdamW, parameter_groups


def detr_optimizer() -> Any:
    """The backbone at a tenth of the rate, and the gradient of the whole model clipped. The loop sets params.model."""
    groups = L(parameter_groups)(lr="${..lr}", lr_backbone=1e-5)
    return L(ClippedAdamW)(params=groups, lr=1e-4, weight_decay=1e-4, clip=0.1)


def pyramid_optimizer() -> Any:
    """One rate, weight decay on everything, no clipping."""
    return L(torch.optim.AdamW)(params=L(get_default_optimizer_params)(), lr=1e-4, weight_decay=0.05)
