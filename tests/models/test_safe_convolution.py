import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.models.backbones.resnet import DEPTHS, NARROW
from detr_container.models.layers.cpu.safe_convolution import subsample_first, unsafe

STEPS = """
import torch
from detr_container.engine.backbones import build_backbone
from detr_container.config.backbones import BackboneConfig
for name in ("mobileone_s0", "fastvit_t8", "repvgg_a0"):
    config = BackboneConfig(name=f"timm/{name}", weights="none", frozen_stages=0, stride=4)
    backbone = build_backbone(config).to(memory_format=torch.channels_last).train()
    for shape in ((96, 128), (64, 64), (224, 224), (32, 160), (96, 128)):
        images = torch.randn(2, 3, *shape).contiguous(memory_format=torch.channels_last)
        backbone(images)[-1].square().mean().backward()
    print(name)
"""


def test_models_with_such_a_convolution_take_steps(repository: Path) -> None:
    """In a process of its own: what goes wrong here ends it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout.split()) == (0, ["mobileone_s0", "fastvit_t8", "repvgg_a0"]), done.stderr


NAMES = (*DEPTHS, *NARROW, "container_light", "timm/mobileone_s0", "timm/fastvit_t8", "timm/repvgg_a0")


@pytest.mark.parametrize("name", NAMES)
def test_no_backbone_has_an_unsafe_convolution(name: str) -> None:
    backbone = build_backbone(BackboneConfig(name=name, weights="none", frozen_stages=0))
    assert [part for part, module in backbone.named_modules() if unsafe(module)] == []


@pytest.mark.parametrize("channels", [2, 3, 15])
@pytest.mark.parametrize("stride", [2, (2, 1), 3])
def test_values_and_gradients_are_those_of_the_strided_convolution(
    channels: int, stride: int | tuple[int, int]
) -> None:
    plain = nn.Conv2d(channels, 24, 1, stride).double()
    other = nn.Sequential(copy.deepcopy(plain)).to(memory_format=torch.channels_last)
    assert unsafe(other[0])
    subsample_first(other)
    assert not unsafe(other[0])
    x = torch.randn(2, channels, 31, 48, dtype=torch.float64, requires_grad=True)
    y = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    a, b = plain(x), other(y)
    torch.testing.assert_close(a, b)
    weights = torch.randn_like(a)
    ours = torch.autograd.grad((b * weights).sum(), [y, other[0].weight])
    theirs = torch.autograd.grad((a * weights).sum(), [x, plain.weight])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)
    # A copy, such as averaged weights have, goes the same way.
    torch.testing.assert_close(copy.deepcopy(other)(y), a)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3, 2), nn.Conv2d(64, 8, 1, 2), nn.Conv2d(3, 8, 1), nn.Linear(3, 3)])
def test_other_layers_are_left_as_they_are(layer: nn.Module) -> None:
    assert not unsafe(layer)
