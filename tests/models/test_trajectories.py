"""Eight optimiser steps of the published training loop, from the published code's weights."""

from dataclasses import replace

import pytest
import torch
from golden import published

from detr_container.build import build_criterion, build_matcher
from detr_container.models.layouts import to_published
from detr_container.models.smca import PRIOR_BIAS
from detr_container.optim import clipped_step, lr_factor, make_optimiser, set_learning_rates

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["detr_r50", "smca_r50"])
def test_eight_training_steps(name: str) -> None:
    golden = published.arrays(f"trajectory_{name}")
    experiment = published.experiment(name)
    experiment = replace(experiment, head=replace(experiment.head, dropout=0.0))
    model = published.detector(name, experiment).train()
    if name == "smca_r50":
        torch.nn.init.constant_(model.class_embed.bias, PRIOR_BIAS)
    matcher, criterion = build_matcher(experiment), build_criterion(experiment)
    optimiser = make_optimiser(model, experiment.train)
    targets, losses, norms = published.targets(), [], []
    for step in range(len(golden["loss"])):
        set_learning_rates(optimiser, lr_factor(step, 1000, experiment.train))
        output = model(*published.pictures())
        total = criterion(output, targets, matcher(output, targets)).total
        total.backward()
        norm, _ = clipped_step(optimiser, experiment.train.clip)
        losses.append(total.item())
        norms.append(norm.item())
    assert losses == pytest.approx(golden["loss"].tolist(), rel=1e-3)
    assert norms == pytest.approx(golden["grad_norm"].tolist(), rel=1e-3)
    state = to_published(model.state_dict())
    probes = {key.removeprefix("probe/"): value for key, value in golden.items() if key.startswith("probe/")}
    assert len(probes) == 6
    for key, expected in probes.items():
        ours = state[key.replace("/", ".")].flatten()[:16]
        error = (ours - expected).norm() / expected.norm()
        assert error < 1e-3, f"{key}: {error:.2g}"
    # Frozen: the first layer of the backbone is what it was.
    frozen = "backbone.0.body.layer1.0.conv1.weight"
    assert torch.equal(state[frozen], published.weights(name)[frozen])


def test_the_optimiser_has_the_published_settings() -> None:
    settings = published.experiment("detr_r50").train
    assert (settings.lr, settings.lr_backbone, settings.weight_decay, settings.clip) == (1e-4, 1e-5, 1e-4, 0.1)
    assert [lr_factor(step, 10, settings) for step in (0, 399, 400, 499)] == [1.0, 1.0, 0.1, 0.1]
