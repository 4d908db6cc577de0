"""What classifiers cost: parameters and multiply-adds, as papers state them, beside what was published.

A multiply-add counts once here, as papers count, though many call it a FLOP; `costs` counts it as two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.classifiers import build_classifier

from .costs import operations

FAMILY = (
    "container",
    "container_light",
    "mh_dw",
    "self_attention",
    "container_pam",
    "mh_mlp",
    "timm/deit_small_patch16_224",
    "resnet50",
)
PUBLISHED = {
    "container": "22 M, 8.1 GFLOPs (paper)",
    "container_light": "20.6 M, 3.85 G (released network)",
    "container_pam": "24.84 M (DeiT-S and one parameter a block)",
    "timm/deit_small_patch16_224": "22.05 M, 4.60 G (DeiT)",
    "resnet50": "25.6 M, 4.09 G (torchvision)",
}
"""Of classifiers of 1000 classes at 224 pixels."""
CLASSES = 1000


@dataclass(frozen=True)
class ClassifierCosts:
    """Parameters with the classifier's layer, and billions of multiply-adds of one image.

    affinities: those of `multiply_adds` that are products with N x N affinities, or make them: Q K^T, A V and A' V.
    """

    name: str
    parameters: int
    multiply_adds: float
    affinities: float


def classifier_costs(name: str, pixels: int, classes: int = CLASSES) -> ClassifierCosts:
    """Of a backbone with a classifier, on a square image of so many pixels to a side. Nothing is computed.

    Raises ValueError for one that cannot be built, or not for this size.
    """
    config = BackboneConfig(name=name, weights="none", frozen_stages=0, norm="batch")
    with torch.random.fork_rng(devices=[]):
        model = build_classifier(config, classes, pixels, weights=False)
    image = torch.zeros(1, 3, pixels, pixels)
    counter = operations(model, (pixels, pixels), lambda model, size: (image,))
    by_kind = counter.get_flop_counts()["Global"]
    # Layers are convolutions and products of two matrices; of products of many there are only these.
    batched = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
    affinities = sum(count for kind, count in by_kind.items() if kind in batched)
    parameters = sum(each.numel() for each in model.parameters())
    return ClassifierCosts(name, parameters, counter.get_total_flops() / 2e9, affinities / 2e9)


def markdown_head(pixels: int) -> list[str]:
    """The head of the table, for images of so many pixels a side."""
    return [
        f"| classifier | parameters | multiply-adds at {pixels} | of these, with affinities | published (224) |",
        "| --- | --- | --- | --- | --- |",
    ]


def markdown_row(costs: ClassifierCosts) -> str:
    """A line of the table."""
    published = PUBLISHED.get(costs.name, "-")
    return (
        f"| `{costs.name}` | {costs.parameters / 1e6:.2f} M | {costs.multiply_adds:.2f} G | "
        f"{costs.affinities:.2f} G | {published} |"
    )
