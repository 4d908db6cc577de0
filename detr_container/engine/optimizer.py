"""The optimiser, its learning rates as a function of the step, and the clipped step that never writes a NaN."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from detr_container.config.settings import TrainConfig
from detr_container.models.detector import Detector


def make_optimiser(model: Detector, config: TrainConfig) -> AdamW:
    """AdamW with one group for the backbone and one for the rest, weight decay on everything, as published.

    Learned positions train with the backbone, of which the published code makes them a part, and stand after it.
    Raises ValueError when the backbone is to be trained and has nothing to train.
    """
    backbone = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    slow = [*backbone, *(parameter for parameter in model.position.parameters() if parameter.requires_grad)]
    inside = set(map(id, slow))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    stages = len(model.backbone.stages())
    if not backbone and config.lr_backbone and model.backbone.frozen_stages < stages:
        raise ValueError(
            f"the backbone is to be trained (train.lr_backbone={config.lr_backbone}, {model.backbone.frozen_stages} of "
            f"{stages} stages frozen) but has no parameter to train: freeze all stages or set train.lr_backbone=0"
        )
    groups = [
        {"params": rest, "name": "head", "base_lr": config.lr},
        {"params": slow, "name": "backbone", "base_lr": config.lr_backbone},
    ]
    used = [group for group in groups if group["params"]]
    return AdamW(used, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def lr_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """What every base learning rate is multiplied by at `step`, from 0; a pure function, so resuming is exact."""
    total = config.epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "step":
        return warmup * (0.1 if step >= config.lr_drop * steps_per_epoch else 1.0)
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def set_learning_rates(optimiser: AdamW, factor: float) -> None:
    """Give every group its base learning rate times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def clipped_step(optimiser: AdamW, clip: float) -> tuple[Tensor, Tensor]:
    """Clip the gradient to an L2 norm of `clip` (0: no clipping), step, and forget the gradient.

    Nothing is read back to the host. Where the norm is not finite, the optimiser leaves the weights as they are.
    Returns the norm before clipping, a scalar, and the norm of every parameter's gradient, in the groups' order.
    """
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    total = torch.linalg.vector_norm(norms)
    bad = ~total.isfinite()
    if clip:
        torch._foreach_mul_(gradients, torch.where(bad, 1.0, (clip / (total + 1e-6)).clamp(max=1.0)))
    # Fused AdamW skips its update where this is 1, which is how torch's own gradient scaler uses it.
    optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return total, norms


def parameter_names(model: nn.Module, optimiser: AdamW) -> list[str]:
    """Names in the order of `clipped_step`'s norms."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimiser.param_groups for p in group["params"]]


def parameter_counts(model: Detector) -> str:
    """How many parameters are trained and frozen, stage by stage, in words."""
    rows = [
        f"{name} {trained:,} trained, {frozen:,} frozen" for name, trained, frozen in model.backbone.count_parameters()
    ]
    head = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    return f"parameters: head {head:,} trained; backbone: {'; '.join(rows)}"


def circumstances(model: nn.Module, optimiser: AdamW, norm: float, checkpoint: Path | None) -> str:
    """What to know when something is not finite. norm: of the last gradient; checkpoint: the last good one."""
    wrong = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    weights = f"first parameter that is not finite: {wrong[0]}" if wrong else "all parameters are finite"
    rates = ", ".join(f"{group['name']} {group['lr']:.3g}" for group in optimiser.param_groups)
    newest = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
    return (
        f"{weights}; learning rates: {rates}; last gradient norm {norm:.4g}; {newest}. "
        "A lower train.lr, train.clip, or train.precision=fp32 usually helps; "
        "the same command goes on from the checkpoint"
    )
