"""Training steps of the published code in float64: CONTAINER-LIGHT's loss and gradients, and three steps with AdamW.

The published average starts from the model's first weights; ours takes those after the first step as they are, unless
it has seen weights before. Here it has.
"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from golden import pattern, published
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor

from detr_container.config.classification import ClassificationTrainConfig
from detr_container.engine.ema import Ema
from detr_container.engine.optimizer import clipped_step, make_optimizer, set_rates
from detr_container.models.backbones.container import SIZES, Container, Size
from detr_container.models.classifier import BackboneClassifier
from detr_container.models.weights.layouts import from_container, to_container
from detr_container.tasks.classification.groups import parameter_groups
from detr_container.tasks.classification.mixing import targets

TINY = Size((8, 16, 24, 32), (1, 1, 1, 1), (2, 2, 2, 2), SIZES["container_light"].affinities, head=8)


def filled(size: Size, classes: int) -> BackboneClassifier:
    """In float64 and training mode, with the weights that the reference outputs were made with."""
    model = BackboneClassifier(Container(size), classes).double()
    model.load_state_dict(from_container(pattern.fill(to_container(model.state_dict()))))
    return model.train()


def images(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(pattern.uniform(name, shape))


def names(stored: Tensor) -> list[str]:
    return [str(name) for name in stored]


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(published.FOLDER / f"{name}.npz") as stored:
        return dict(stored)


def gradients(model: BackboneClassifier) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return to_container({name: gradient for name, gradient in found.items() if gradient is not None})


def firsts(golden: Mapping[str, np.ndarray], prefix: str, ours: Mapping[str, Tensor], tolerance: float) -> None:
    """Of the tensors whose first values are stored."""
    stored = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    assert stored
    for name, value in stored.items():
        first = ours[name].detach().flatten()[: len(value)].numpy()
        np.testing.assert_allclose(first, value, rtol=tolerance, atol=tolerance, err_msg=name)


def test_loss_and_gradients_of_container_light() -> None:
    golden, model = arrays("container_light_train"), filled(SIZES["container_light"], 1000)
    wanted = targets(torch.tensor([0, 3]), 1000, torch.tensor([0.3]), 0.1)
    logits = model(images("deit/container_light", 2, 3, 224, 224))
    loss = SoftTargetCrossEntropy()(logits, wanted.double())
    loss.backward()
    np.testing.assert_allclose(logits.detach()[:, ::20].numpy(), golden["logits"], rtol=1e-10, atol=1e-10)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-12)
    ours = gradients(model)
    order = names(golden["names"])
    assert set(order) == ours.keys()
    norms = np.array([ours[name].norm().item() for name in order])
    largest = golden["grad_norm"].max()
    np.testing.assert_allclose(norms, golden["grad_norm"], rtol=1e-9, atol=1e-12 * largest)
    sums = np.array([ours[name].sum().item() for name in order])
    # Of values that cancel: biases before a BatchNorm have no gradient but what rounding leaves.
    np.testing.assert_allclose(sums, golden["grad_sum"], rtol=1e-8, atol=1e-10 * largest)
    firsts(golden, "grad/first/", ours, 1e-10)
    state = to_container(model.state_dict())
    for name in (each for each in golden if ".running_" in each):
        np.testing.assert_allclose(state[name].numpy(), golden[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_three_steps_with_averaged_weights() -> None:
    golden, model = arrays("deit_step_container"), filled(TINY, 7)
    wanted = targets(torch.arange(4) * 3 % 7, 7, torch.tensor([0.3]), 0.1).double()
    np.testing.assert_allclose(wanted.numpy(), golden["targets"], atol=1e-7)
    train = ClassificationTrainConfig(lr=1e-3, lr_batch=0)
    optimizer = make_optimizer(parameter_groups(model, train), train)
    ema = Ema(model, 0.9)
    ema.updates = 1
    order = names(golden["names"])
    for step in range(3):
        set_rates(optimizer, 1.0)
        loss = SoftTargetCrossEntropy()(model(images(f"deit/tiny{step}", 4, 3, 64, 64)), wanted)
        loss.backward()
        norms = {name: gradient.norm().item() for name, gradient in gradients(model).items()}
        assert loss.item() == pytest.approx(golden["loss"][step], rel=1e-10)
        ours = np.array([norms[name] for name in order])
        np.testing.assert_allclose(ours, golden["grad_norm"][step], rtol=1e-8, atol=1e-12)
        clipped_step(optimizer, 0.0)
        ema.average()
    for kind, weights in (("model", model), ("ema", ema.module)):
        state = {name: value for name, value in to_container(weights.state_dict()).items() if value.is_floating_point()}
        order = names(golden[f"{kind}/names"])
        assert set(order) == state.keys()
        norms64 = np.array([state[name].norm().item() for name in order])
        np.testing.assert_allclose(norms64, golden[f"{kind}/norm"], rtol=1e-10)
        sums = np.array([state[name].sum().item() for name in order])
        np.testing.assert_allclose(sums, golden[f"{kind}/sum"], rtol=1e-9, atol=1e-9)
    firsts(golden, "model/first/", to_container(model.state_dict()), 1e-10)
