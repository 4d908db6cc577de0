"""Dropout on a CPU, whose random bits are our own."""

import math

import pytest
import torch

from detr_container.models.layers.cpu.dropout import LEVELS
from detr_container.models.layers.dropout import Dropout, DroppedReLU, dropout


@pytest.mark.parametrize("p", [0.1, 0.4, 0.9])
def test_as_many_are_dropped_as_asked_and_the_others_scaled(p: float) -> None:
    count = 400_000
    out = dropout(torch.ones(count), p)
    kept = out[out != 0]
    # Four standard deviations of a binomial count.
    assert abs((1 - len(kept) / count) - p) < 4 * math.sqrt(p * (1 - p) / count)
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2 / LEVELS / (1 - p), atol=0)


def test_neighbours_that_share_random_bits_are_independent() -> None:
    kept = (dropout(torch.ones(4, 100_000).t().contiguous(), 0.5) != 0).float()
    correlations = torch.corrcoef(kept.t()) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0,), (2, 3, 4)])
def test_any_shape_and_the_gradient_of_what_was_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    out = dropout(x, 0.3)
    out.sum().backward()
    assert out.shape == x.shape
    assert x.grad is not None
    torch.testing.assert_close(out, x * x.grad)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.3), out)


def test_nothing_is_dropped_in_evaluation() -> None:
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert not torch.equal(Dropout(0.5)(x), x)


def test_dropout_of_a_relu_is_that_of_its_parts() -> None:
    x = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 50, dtype=torch.float64)
    found = []
    for activation in (DroppedReLU(0.3), lambda x: dropout(torch.relu(x), 0.3)):
        torch.manual_seed(3)
        out = activation(x)
        found.append((out, *torch.autograd.grad(out, x, upstream)))
    torch.testing.assert_close(found[0], found[1])
    assert 0 < int((found[0][0] == 0).sum()) < x.numel()
    assert torch.equal(DroppedReLU(0.3).eval()(x), torch.relu(x))
