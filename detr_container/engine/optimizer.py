"""The optimizer, its learning rates as a function of the step, and the clipped step that never writes a NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from detr_container.config.settings import TrainConfig


class SkippingAdamW(AdamW):
    """Fused AdamW, which leaves everything as it is where `found_inf`, a scalar on the device, is 1.

    The kernel reads it under this name, which torch's own gradient scaler gives it and torch's class does not declare.
    """

    found_inf: Tensor | None = None


def make_optimizer(groups: Sequence[Mapping[str, Any]], config: TrainConfig) -> SkippingAdamW:
    """AdamW over a task's parameter groups, those without parameters left out; see `Task.parameter_groups`."""
    used = [dict(group) for group in groups if group["params"]]
    return SkippingAdamW(used, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def keep_rates_on(optimizer: AdamW, device: torch.device) -> None:
    """Keep learning rates in the device's memory, where a recorded step finds those of each step."""
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = torch.zeros((), device=device), True
    # The first step is taken without a recording, of which PyTorch would warn.
    optimizer._warned_capturable_if_run_uncaptured = True


def one_dimensional(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a bias or of a norm, which classifiers and self-supervision usually leave undecayed."""
    return parameter.ndim <= 1 or name.endswith(".bias")


def layered_groups(
    model: nn.Module,
    lr: float,
    layer_of: Callable[[str], int] = lambda name: 0,
    layer_decay: float = 1.0,
    undecayed: Callable[[str, nn.Parameter], bool] = one_dimensional,
) -> list[dict[str, Any]]:
    """What of a model trains, by layer and by whether weight decay acts on it; see `Task.parameter_groups`.

    layer_of: the layer of a parameter by its name, counted from the input. The rate of the last layer is `lr`, and that
    of each before it is `layer_decay` times that of the next (BEiT, Bao et al. 2021, and ELECTRA before it).
    """
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((layer_of(name), undecayed(name, parameter)), []).append(parameter)
    last = max((layer for layer, _ in found), default=0)
    return [
        {
            "params": parameters,
            "name": (f"layer{layer}" if last else "all") + ("_undecayed" if bare else ""),
            "base_lr": lr * layer_decay ** (last - layer),
            **({"weight_decay": 0.0, "decays": False} if bare else {}),
        }
        for (layer, bare), parameters in sorted(found.items(), key=lambda entry: entry[0])
    ]


def lr_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """What every base learning rate is multiplied by at `step`, from 0; a pure function, so resuming is exact."""
    total = config.epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "step":
        drops = (config.lr_drop, *([config.lr_drop_again] if config.lr_drop_again else []))
        return warmup * 0.1 ** sum(step >= drop * steps_per_epoch for drop in drops)
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def set_rates(optimizer: AdamW, factor: float, decay: float | None = None) -> None:
    """Give every group its base learning rate times `factor`, and those that decay at all the weight decay `decay`.

    The rate stands in the group as `rate`, whether or not the optimizer reads it from the device.
    """
    for group in optimizer.param_groups:
        group["rate"] = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["rate"])
        else:
            group["lr"] = group["rate"]
        if decay is not None and group.get("decays", True):
            group["weight_decay"] = decay


def clipped_step(
    optimizer: SkippingAdamW, clip: float, skip: Tensor | None = None, forget: Callable[[], object] | None = None
) -> tuple[Tensor, Tensor]:
    """Clip the gradient to an L2 norm of `clip` (0: no clipping), step, and forget the gradient.

    Nothing is read back to the host. Where the norm is not finite, the optimizer leaves the weights as they are, and
    where `skip`, a scalar on the device, is not 0. forget: how the gradient is forgotten; default: `zero_grad`.
    Returns the norm before clipping, a scalar, and that of every parameter's gradient, in the groups' order, 0 where it
    has none.
    """
    every = [p.grad for group in optimizer.param_groups for p in group["params"]]
    gradients = [gradient for gradient in every if gradient is not None]
    found = iter(torch._foreach_norm(gradients))
    norms = torch.stack([gradients[0].new_zeros(()) if gradient is None else next(found) for gradient in every])
    total = torch.linalg.vector_norm(norms)
    bad = ~total.isfinite()
    if clip:
        torch._foreach_mul_(gradients, torch.where(bad, 1.0, (clip / (total + 1e-6)).clamp(max=1.0)))
    optimizer.found_inf = bad.float() if skip is None else torch.maximum(bad.float(), skip)
    optimizer.step()
    (forget or optimizer.zero_grad)()
    return total, norms


def parameter_names(model: nn.Module, optimizer: AdamW) -> list[str]:
    """Names in the order of `clipped_step`'s norms."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def circumstances(model: nn.Module, optimizer: AdamW, norm: float, checkpoint: Path | None) -> str:
    """What to know when something is not finite. norm: of the last gradient; checkpoint: the last good one."""
    wrong = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    weights = f"first parameter that is not finite: {wrong[0]}" if wrong else "all parameters are finite"
    rates = ", ".join(f"{group['name']} {group['rate']:.3g}" for group in optimizer.param_groups)
    newest = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
    return (
        f"{weights}; learning rates: {rates}; last gradient norm {norm:.4g}; {newest}. "
        "A lower train.lr, train.clip, or train.precision=fp32 usually helps; "
        "the same command resumes from the checkpoint"
    )
