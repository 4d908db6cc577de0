"""What a model costs, told without running it: parameters, and FLOPs by one counter for every backbone and head."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.annotations import Annotations
from detr_container.datasets.transforms import Size
from detr_container.models.detector import Detector
from detr_container.tasks.detection.build import build_detector, evaluation_augmentation

PICTURES = 100
"""Over how many validation pictures FLOPs are averaged: DETR's convention (Carion et al. 2020, table 1)."""
_CANNOT_PRETEND = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights: all, those of the backbone, the others, and those that training changes."""

    total: int
    backbone: int
    head: int
    trained: int


@dataclass(frozen=True)
class Gflops:
    """Billions of floating-point operations of a forward pass on one picture; a multiply-add counts as two.

    head: everything but the backbone.
    """

    total: float
    backbone: float
    head: float


@dataclass(frozen=True)
class Costs:
    """What a model costs. gflops: the mean over pictures; strides: input pixels to a cell of what its head reads."""

    parameters: Parameters
    gflops: Gflops
    strides: tuple[int, ...]


def costs(experiment: DetectionExperiment, classes: int, sizes: Sequence[Size]) -> Costs:
    """What the model of an experiment costs on pictures of these sizes, (height, width) in pixels after resizing.

    Each picture counts once and by itself, padded to what the backbone wants a multiple of; sizes that come out the
    same are worked out once. Takes about a second per size and next to no memory beyond the weights'.
    Raises ValueError without sizes, and for a model that cannot be built.
    """
    if not sizes:
        raise ValueError("no picture sizes are given, but FLOPs depend on them: name one (height, width) or more")
    model = build_detector(experiment, classes, weights=False)
    total = backbone = 0.0
    for size, pictures in Counter(padded_size(size, model) for size in sizes).items():
        each = count_flops(model, size)
        total += each.total * pictures / len(sizes)
        backbone += each.backbone * pictures / len(sizes)
    return Costs(count_parameters(model), Gflops(total, backbone, total - backbone), model.strides)


def count_parameters(model: Detector) -> Parameters:
    """Numbers of a model's weights; each counts once, wherever it is used."""
    total = sum(parameter.numel() for parameter in model.parameters())
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Parameters(total, backbone, total - backbone, trained)


def count_flops(model: Detector, size: Size) -> Gflops:
    """FLOPs of a forward pass in evaluation mode on one picture of `size`, padded to what the backbone wants.

    Nothing is computed, but shapes are followed through the very operations that would be; only a model that looks at
    values on its way is really run.
    """
    size = padded_size(size, model)
    training = model.training
    try:
        model.eval()
        try:
            return _forward(model, size, pretend=True)
        except _CANNOT_PRETEND:
            return _forward(model, size, pretend=False)
    finally:
        model.train(training)


def padded_size(size: Size, model: Detector) -> Size:
    """The size that a picture is padded to, in pixels."""
    multiple = model.backbone.size_multiple
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def _forward(model: Detector, size: Size, pretend: bool) -> Gflops:
    counter, device = FlopCounterMode(display=False), model.pixel_mean.device
    with ExitStack() as stack:
        if pretend:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # The counter does not know a CPU's fused attention; written out, attention counts the same everywhere.
        for mode in (torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH)):
            stack.enter_context(mode)
        model(torch.zeros(1, 3, *size, device=device), torch.tensor([size], device=device))
    backbone = sum(counter.get_flop_counts()[f"{type(model).__name__}.backbone"].values())
    total = counter.get_total_flops()
    return Gflops(total / 1e9, backbone / 1e9, (total - backbone) / 1e9)


def validation_sizes(experiment: DetectionExperiment, annotations: Annotations, pictures: int = PICTURES) -> list[Size]:
    """What the model is given of the first validation pictures, in the order of their ids: (height, width) in pixels.

    annotations: those of the validation split, of which only the pictures' sizes are used; no picture is opened.
    """
    config = experiment.data
    if config.canvas:
        return [(config.canvas, config.canvas)] * min(pictures, len(annotations.sizes))
    augmentation = evaluation_augmentation(config)
    # Nothing is random in an evaluation, but a plan is drawn all the same.
    rng = random.Random(0)
    return [augmentation.draw(rng, (height, width)).size for height, width in annotations.sizes[:pictures].tolist()]
