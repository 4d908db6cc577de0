"""Random predictions and objects, for tests that recompute with naive loops."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from detr_container.datasets.batch import Targets
from detr_container.models.detector import Output


@dataclass(frozen=True)
class Scene:
    """What a detector of `classes` classes might predict for images with these objects."""

    output: Output
    targets: Targets
    classes: int


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    """[*shape, 4] cxcywh; sides from 0.02 to 0.5."""
    centre = torch.rand(*shape, 2, generator=generator)
    return torch.cat((centre, torch.rand(*shape, 2, generator=generator) * 0.48 + 0.02), dim=-1)


def scene(
    counts: tuple[int, ...], seed: int = 0, layers: int = 2, queries: int = 5, classes: int = 3, softmax: bool = True
) -> Scene:
    """A scene with these numbers of objects per image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, classes + int(softmax), generator=generator) * 2
    output = Output(logits, random_boxes(generator, layers, len(counts), queries))
    labels = torch.randint(classes, (sum(counts),), generator=generator)
    boxes = random_boxes(generator, sum(counts))
    return Scene(output, Targets.of_images(labels.split(counts), boxes.split(counts)), classes)


@st.composite
def scenes(draw: st.DrawFn, softmax: bool = True, most_objects: int = 6, most_queries: int = 4) -> Scene:
    """Any scene, among them images and batches without objects, and more objects than queries."""
    counts = draw(st.lists(st.integers(0, most_objects), min_size=1, max_size=3))
    return scene(
        tuple(counts),
        seed=draw(st.integers(0, 2**32 - 1)),
        layers=draw(st.integers(1, 3)),
        queries=draw(st.integers(1, most_queries)),
        classes=draw(st.integers(1, 4)),
        softmax=softmax,
    )


def sliced(whole: Scene, images: slice) -> Scene:
    """Some of the images of a scene, as a micro batch or another process would see them."""
    every = whole.targets
    targets = Targets(every.labels[images], every.boxes[images], every.valid[images], every.counts[images])
    return Scene(Output(whole.output.logits[:, images], whole.output.boxes[:, images]), targets, whole.classes)
