"""Eight optimiser steps of the published training loops, from the same weights and pictures.

The loss of a detector jumps where the matching changes, and AdamW's first steps move every weight by the learning rate
however small its gradient, so rounding grows from step to step. In float32 the published DETR program itself strays
from its own stored trajectory on another processor: by 4e-4 of the loss at the third step, 5e-3 at the fourth and 1e-2
at the seventh, and by up to 17 % of the gradient's norm. So there are two tests:

- ResNet-50 in float32 against the stored float32 trajectories: tightly while they are the same on every machine, then
  as far as the published program strays;
- ResNet-18, 2 + 3 layers of 256 hidden units and 20 queries in float64 against `trajectory64_*`, which the published
  programs (commits as in golden/README.md) gave in float64 with `--dropout 0 --num_queries 20 --backbone resnet18
  --enc_layers 2 --dec_layers 3 --dim_feedforward 256`: all eight steps, to 1e-6.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from golden import published
from torch import Tensor

from detr_container.build import build_criterion, build_matcher
from detr_container.config import Experiment
from detr_container.models.detector import Detector
from detr_container.models.layouts import to_published
from detr_container.models.smca import PRIOR_BIAS
from detr_container.optim import clipped_step, lr_factor, make_optimiser, set_learning_rates

FROZEN = "backbone.0.body.layer1.0.conv1.weight"


def trained(model: Detector, experiment: Experiment, steps: int) -> tuple[list[float], list[float]]:
    """The losses and gradient norms of a number of steps on the two pictures, as the training loop takes them."""
    model.train()
    if experiment.head.kind == "smca":
        torch.nn.init.constant_(model.class_embed.bias, PRIOR_BIAS)
    matcher, criterion = build_matcher(experiment), build_criterion(experiment)
    optimiser = make_optimiser(model, experiment.train)
    dtype = model.query_embed.weight.dtype
    targets, (images, sizes) = published.targets(), published.pictures()
    targets.boxes, losses, norms = targets.boxes.to(dtype), [], []
    for step in range(steps):
        set_learning_rates(optimiser, lr_factor(step, 1000, experiment.train))
        output = model(images.to(dtype), sizes)
        total = criterion(output, targets, matcher(output, targets)).total
        total.backward()
        norm, _ = clipped_step(optimiser, experiment.train.clip)
        losses.append(total.item())
        norms.append(norm.item())
    return losses, norms


def probes(golden: dict[str, Tensor], model: Detector) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, our values and the stored ones of every tensor that was looked at after the last step."""
    state = to_published(model.state_dict())
    for key, expected in golden.items():
        if key.startswith("probe/"):
            name = key.removeprefix("probe/").replace("/", ".")
            yield name, state[name].flatten()[: len(expected)], expected


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is float32 by default, or because a model asks for float32, is float64."""
    plain = Tensor.float
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor if tensor.is_floating_point() else plain(tensor))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kind", ["detr", "smca"])
def test_eight_steps_in_float64(kind: str) -> None:
    name = f"trajectory64_{kind}_r18"
    golden = published.arrays(name)
    base = published.experiment(f"{kind}_r50")
    head = replace(base.head, queries=20, encoder_layers=2, decoder_layers=3, feedforward=256, dropout=0.0)
    experiment = replace(base, head=head, backbone=replace(base.backbone, name="resnet18"))
    model = published.detector(name, experiment).double()
    losses, norms = trained(model, experiment, steps=8)
    assert losses == pytest.approx(golden["loss"].tolist(), rel=1e-6)
    assert norms == pytest.approx(golden["grad_norm"].tolist(), rel=1e-5)
    seen = list(probes(golden, model))
    assert len(seen) == (6 if kind == "detr" else 8)
    start, gone = published.weights(name), {}
    for key, ours, expected in seen:
        gone[key] = (expected - start[key].flatten()[: len(expected)]).abs().max().item()
        # To 1e-3 of the distance that the weights have gone, not of their size.
        torch.testing.assert_close(ours, expected, rtol=0, atol=max(1e-3 * gone[key], 1e-12))
    assert gone.pop(FROZEN) == 0
    # One of them feeds a hidden unit that is never active, and only decays.
    assert sum(distance > 1e-5 for distance in gone.values()) >= len(gone) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr_r50", "smca_r50"])
def test_eight_steps_of_the_published_models(name: str) -> None:
    golden = published.arrays(f"trajectory_{name}")
    base = published.experiment(name)
    experiment = replace(base, head=replace(base.head, dropout=0.0))
    model = published.detector(name, experiment)
    losses, norms = trained(model, experiment, steps=len(golden["loss"]))
    assert losses[:2] == pytest.approx(golden["loss"][:2].tolist(), rel=1e-4)
    assert norms[0] == pytest.approx(golden["grad_norm"][0].item(), rel=1e-4)
    assert losses == pytest.approx(golden["loss"].tolist(), rel=0.1)
    seen = list(probes(golden, model))
    assert len(seen) == 6
    for key, ours, expected in seen:
        error = (ours - expected).norm() / expected.norm()
        # Up to 4e-3 here: after eight steps AdamW has moved any weight by 8e-4 at most.
        assert error < 1e-2, f"{key}: {error:.2g}"


def test_the_optimiser_has_the_published_settings() -> None:
    settings = published.experiment("detr_r50").train
    assert (settings.lr, settings.lr_backbone, settings.weight_decay, settings.clip) == (1e-4, 1e-5, 1e-4, 0.1)
    assert [lr_factor(step, 10, settings) for step in (0, 399, 400, 499)] == [1.0, 1.0, 0.1, 0.1]
