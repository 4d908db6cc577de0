"""Frozen norms whose scale and shift are made once: the numbers are torchvision's, bit for bit."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from golden import pattern
from timm.layers.norm_act import BatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from detr_container.models.backbones.resnet import ResNetBackbone
from detr_container.models.layers.frozen_norm import FrozenNorm, freeze_norms


def pair() -> tuple[FrozenNorm, FrozenBatchNorm2d]:
    ours, theirs = FrozenNorm(5, eps=0.01), FrozenBatchNorm2d(5, eps=0.01)
    state = pattern.fill(theirs.state_dict())
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    return ours, theirs


def assigned(norm: nn.Module) -> nn.Module:
    norm.load_state_dict({name: value + 1 for name, value in norm.state_dict().items()}, assign=True)
    return norm


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "loaded": lambda norm: norm,
    "wider": lambda norm: norm.double(),
    "narrower": lambda norm: norm.to(torch.bfloat16),
    "narrower and back": lambda norm: norm.to(torch.bfloat16).float(),
    "assigned": assigned,
    "copied": deepcopy,
    "within a model": lambda norm: nn.Sequential(norm).double()[0],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_numbers_and_the_state_are_torchvisions(change: str) -> None:
    ours, theirs = (CHANGES[change](norm) for norm in pair())
    x = torch.randn(2, 5, 3, 4, dtype=ours.state_dict()["weight"].dtype)
    assert torch.equal(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


class Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_folded_at_a_call(training: bool) -> None:
    """Not in a ResNet's convolutions either, whose kernels alone are scaled anew while they train."""
    backbone = ResNetBackbone("resnet18").train(training)
    with Operations() as seen:
        maps: list[Tensor] = backbone(torch.randn(1, 3, 64, 64))
        maps[-1].sum().backward()
    assert seen.names.count("convolution") == 20
    assert "rsqrt" not in seen.names
    with Operations() as seen:
        backbone.double()
    assert seen.names.count("rsqrt") == 20


def test_the_numbers_and_the_state_are_timms_where_a_norm_holds_an_activation() -> None:
    model = timm.create_model("test_efficientnet", pretrained=False)
    assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
    model.load_state_dict(pattern.fill(model.state_dict()))
    ours, theirs = freeze_norms(deepcopy(model)).eval(), freeze_batch_norm_2d(model).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(ours(x), theirs(x))
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
