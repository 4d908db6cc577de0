"""What a model costs, found without running it: parameters, and FLOPs by one counter for every backbone and head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_container.config.settings import Experiment
from detr_container.engine.trials import trials_of

Size = tuple[int, int]
Inputs = Callable[[nn.Module, Size], tuple[Any, ...]]
_CANNOT_PRETEND = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights: all, those of the backbone, the others, and those that training changes.

    A model that is whole as it came, without a backbone apart (a classifier of timm), counts as one.
    """

    total: int
    backbone: int
    head: int
    trained: int


@dataclass(frozen=True)
class Gflops:
    """Billions of floating-point operations of a forward pass on one image; a multiply-add counts as two.

    head: everything but the backbone.
    """

    total: float
    backbone: float
    head: float


@dataclass(frozen=True)
class Costs:
    """What a model costs. gflops: the mean over images; strides: input pixels to a position of what its head reads."""

    parameters: Parameters
    gflops: Gflops
    strides: tuple[int, ...]


def costs(experiment: Experiment, classes: int, sizes: Sequence[Size]) -> Costs:
    """What the model of an experiment costs on images of these sizes, (height, width) in pixels after resizing.

    Each image counts once and by itself, padded to what the backbone wants a multiple of; sizes that come out the
    same are worked out once. Takes about a second per size and next to no memory beyond the weights'.
    Raises ValueError without sizes, and for a model that cannot be built.
    """
    if not sizes:
        raise ValueError("no image sizes are given, but FLOPs depend on them: name one (height, width) or more")
    trials = trials_of(experiment)
    task = trials.bare(classes)
    model = task.build(weights=False)
    multiple = task.size_multiple(model)
    total = backbone = 0.0
    for size, images in Counter(padded_size(size, multiple) for size in sizes).items():
        each = count_flops(model, size, trials.inputs)
        total += each.total * images / len(sizes)
        backbone += each.backbone * images / len(sizes)
    return Costs(count_parameters(model), Gflops(total, backbone, total - backbone), task.strides(model))


def count_parameters(model: nn.Module) -> Parameters:
    """Numbers of a model's weights; each counts once, wherever it is used."""
    total = sum(parameter.numel() for parameter in model.parameters())
    backbone = sum(parameter.numel() for parameter in model.get_submodule(backbone_of(model)).parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Parameters(total, backbone, total - backbone, trained)


def backbone_of(model: nn.Module) -> str:
    """The name of the submodule that counts as the backbone; empty, which is the model itself, where none is apart."""
    inside = getattr(model, "backbone", None)
    return next((name for name, module in model.named_modules() if module is inside), "")


def count_flops(model: nn.Module, size: Size, inputs: Inputs) -> Gflops:
    """FLOPs of a forward pass in evaluation mode on one image of `size`, padded already; inputs: see `Trials.inputs`.

    See `operations`.
    """
    counter = operations(model, size, inputs)
    backbone, total = _of_module(model, backbone_of(model), counter.get_flop_counts()), counter.get_total_flops()
    return Gflops(total / 1e9, backbone / 1e9, (total - backbone) / 1e9)


def operations(model: nn.Module, size: Size, inputs: Inputs) -> FlopCounterMode:
    """What a forward pass in evaluation mode computes, by module and operation.

    Nothing is computed, but shapes are followed through the very operations that would be; only a model that reads
    values on its way is really run.
    """
    training = model.training
    try:
        model.eval()
        try:
            return _forward(model, inputs, size, pretend=True)
        except _CANNOT_PRETEND:
            return _forward(model, inputs, size, pretend=False)
    finally:
        model.train(training)


def padded_size(size: Size, multiple: int) -> Size:
    """The size that an image is padded to, in pixels."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def _forward(model: nn.Module, inputs: Inputs, size: Size, pretend: bool) -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    with ExitStack() as stack:
        if pretend:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # The counter does not know a CPU's fused attention; written out, attention counts the same everywhere.
        for mode in (torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH)):
            stack.enter_context(mode)
        model(*inputs(model, size))
    return counter


def _of_module(model: nn.Module, path: str, counts: dict[str, dict[Any, int]]) -> int:
    """FLOPs of a submodule; of one that is not called itself, those of its parts."""
    found = counts.get(".".join(filter(None, (type(model).__name__, path))))
    if found is not None:
        return sum(found.values())
    parts = (name for name, _ in model.get_submodule(path).named_children())
    return sum(_of_module(model, ".".join(filter(None, (path, part))), counts) for part in parts)
