"""Products of matrices in place of convolutions, and frozen norms that cost nothing: the numbers stay the same."""

from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from golden import pattern
from torch import Tensor, nn

from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.layers.depthwise import Depthwise
from detr_container.models.layers.frozen_norm import FrozenNorm, freeze_norms
from detr_container.models.layers.pointwise import PatchEmbed, Pointwise

LAYERS = (Depthwise, PatchEmbed, Pointwise)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU goes a GPU's way."""
    for layer in LAYERS:
        monkeypatch.setattr(layer, "devices", ("cpu", "cuda"))


def gradients(maps: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(each.shape, dtype=torch.float64, generator=generator).to(each) for each in maps]
    return torch.autograd.grad(maps, inputs, slopes)


def frozen_norm(channels: int) -> FrozenNorm:
    norm = FrozenNorm(channels)
    norm.load_state_dict(pattern.fill(norm.state_dict()))
    return norm


@pytest.mark.parametrize("devices", [("cuda",), ("cpu",)])
def test_a_folded_norm_and_its_gradients_are_those_of_the_norm(
    devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pointwise, "devices", devices)
    norm, layer = frozen_norm(12).double(), Pointwise(12, 20).double()
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64, requires_grad=True)
    ours, plain = layer(x, norm), F.conv2d(norm(x), layer.weight, layer.bias)
    torch.testing.assert_close(ours, plain)
    inputs = (x, layer.weight, layer.bias)
    for one, two in zip(gradients([ours], inputs), gradients([plain], inputs), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_norm_is_folded_into_weights_of_either_type_under_autocast(kind: torch.dtype) -> None:
    norm, layer, x = frozen_norm(12), Pointwise(12, 20), torch.randn(2, 12, 5, 7)
    weights = {name: value.detach().to(kind).requires_grad_() for name, value in layer.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.func.functional_call(layer, weights, (x, norm))
    assert ours.dtype == torch.bfloat16
    plain = F.conv2d(norm(x), layer.weight, layer.bias)
    torch.testing.assert_close(ours.float(), plain, rtol=0.02, atol=0.03 * float(plain.detach().abs().max()))
    inputs = (weights["weight"], weights["bias"])
    for one, two in zip(gradients([ours], inputs), gradients([plain], tuple(layer.parameters())), strict=True):
        assert one.dtype == kind
        torch.testing.assert_close(one.float(), two, rtol=0.02, atol=0.02 * float(two.abs().max()))


def test_a_trained_norm_is_not_folded() -> None:
    norm, layer, x = nn.BatchNorm2d(12), Pointwise(12, 20), torch.randn(2, 12, 5, 7)
    torch.testing.assert_close(layer(x, norm), F.conv2d(deepcopy(norm)(x), layer.weight, layer.bias))
    assert norm.num_batches_tracked == 1


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("size", [(16, 24), (19, 26)])
def test_patches_and_their_gradients_are_those_of_the_convolution(
    stride: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images whose sides are multiples of the patch's, and of others, whose margin is left out."""
    embed = PatchEmbed(3, 8, stride).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours = embed(x)
    monkeypatch.setattr(PatchEmbed, "devices", ())
    plain = embed(x)
    torch.testing.assert_close(ours, plain)
    inputs = (x, *embed.parameters())
    for one, two in zip(gradients([ours], inputs), gradients([plain], inputs), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_whole_backbone_in_a_gpus_way(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Container(SIZES["container_light_small"], frozen_norm=frozen).double().train()
    x = torch.randn(2, 3, 48, 80, dtype=torch.float64)
    parameters = list(backbone.parameters())
    plain = backbone(x)
    expected = gradients(plain, parameters)
    for layer in LAYERS:
        monkeypatch.setattr(layer, "devices", ("cpu",))
    ours = backbone(x)
    for one, two in zip((*ours, *gradients(ours, parameters)), (*plain, *expected), strict=True):
        torch.testing.assert_close(one, two)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in ours)


def autocast(device: str, half: bool) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=False)


@pytest.mark.gpu
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_the_whole_backbone_on_a_gpu(frozen: bool, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 in PyTorch's way, on the same device; in bfloat16 no further from it than twice that way."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    backbone = Container(SIZES["container_light"], frozen_norm=frozen).cuda().train()
    x = torch.randn(2, 3, 256, 320, device="cuda")

    def results(model: nn.Module, images: Tensor, half: bool) -> list[Tensor]:
        with autocast("cuda", half):
            maps = model(images)
        parameters = [each for name, each in model.named_parameters() if name.endswith(("weight", "bias"))]
        loss = torch.stack([each.float().square().mean() for each in maps]).sum()
        return [*maps, *torch.autograd.grad(loss, parameters)]

    ours = results(backbone, x, half)
    for layer in LAYERS:
        monkeypatch.setattr(layer, "devices", ())
    exact = results(deepcopy(backbone).double(), x.double(), False)
    plain = results(backbone, x, half)

    def distance(found: list[Tensor]) -> float:
        return max(float((one - two).norm() / two.norm()) for one, two in zip(found, exact, strict=True))

    assert distance(ours) <= (2 * distance(plain) if half else 1e-3)


@pytest.mark.gpu
def test_the_whole_backbone_in_a_graph() -> None:
    """Captured once, forward and backward; replayed with other images it gives what it gives without a graph."""
    backbone = freeze_norms(Container(SIZES["container_light"])).cuda().train()
    images = torch.randn(2, 3, 192, 256, device="cuda")
    parameters = [each for each in backbone.parameters() if each.requires_grad]

    def step(x: Tensor) -> tuple[Tensor, ...]:
        with autocast("cuda", True):
            loss = torch.stack([each.float().square().mean() for each in backbone(x)]).sum()
        return loss, *torch.autograd.grad(loss, parameters)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(images)
    torch.cuda.current_stream().wait_stream(side)
    graph, static = torch.cuda.CUDAGraph(), images.clone()
    with torch.cuda.graph(graph):
        captured = step(static)
    other = torch.randn_like(images)
    static.copy_(other)
    graph.replay()
    for one, two in zip(captured, step(other), strict=True):
        torch.testing.assert_close(one, two, rtol=0.02, atol=1e-3 * float(two.abs().max()))
