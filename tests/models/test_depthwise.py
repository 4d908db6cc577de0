"""Depthwise convolutions without cuDNN: every way gives the numbers of float64, and which one is taken is said."""

import logging
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from depthwise_errors import Case, geometry, largest_errors
from torch import Tensor, nn

from detr_container.models.layers.depthwise import Depthwise, use_depthwise
from detr_container.models.layers.gpu import depthwise as module
from detr_container.models.layers.gpu import depthwise_kernels
from detr_container.models.layers.gpu.depthwise import Geometry, depthwise, refusal

# Two units in the last place of the largest value: the interpreter rounds bfloat16 towards zero.
BOUNDS = {"float32": 1e-6, "bfloat16": 2**-7}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is for a GPU runs on a CPU, too."""
    monkeypatch.setattr(Depthwise, "devices", ("cpu", "cuda"))


@pytest.mark.slow
def test_the_kernels_in_the_interpreter(repository: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, repository / "tests" / "depthwise_errors.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first == "refused None"
    assert len(rows) == 15
    for row in rows:
        *errors, kind = row.split()[:5]
        # Gradients of weights and bias are sums in float32.
        bounds = (BOUNDS[kind], BOUNDS[kind], BOUNDS["float32"], BOUNDS["float32"])
        assert all(float(error) < bound for error, bound in zip(errors, bounds, strict=True)), row


def test_the_kernels_read_eight_channels_at_once_and_do_not_spill() -> None:
    """Compiled for an H100, which needs none."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from detr_container.models.layers.gpu.depthwise_kernels import _correlate, _correlate_with_gradient

    same = {"ALIGN": 16, "K": 5, "COLUMNS": 8, "CHANNELS": 64}
    kernels = (
        (_correlate, same | {"FLIP": False, "BIAS": True, "RESIDUAL": True, "ROWS": 8}, 8),
        (_correlate_with_gradient, same | {"TAPS": 8, "ROWS": 2}, 4),
    )
    for kernel, constants, warps in kernels:
        types = dict.fromkeys(("x", "taps", "bias", "y", "gradient"), "*bf16") | {"sums": "*fp32"}
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
        aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if name in types}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert "ld.global.v4.b32" in compiled.asm["ptx"]
        assert "ld.global.b16" not in compiled.asm["ptx"]
        assert ".local" not in compiled.asm["ptx"]


@pytest.mark.parametrize(
    ("k", "shape", "residual"),
    [
        (3, geometry(3), True),
        (3, geometry(3), False),
        # A map of another size cannot be added.
        (5, Geometry((2, 2), (2, 2), (1, 1)), False),
        (3, Geometry((2, 1), (1, 0), (1, 2)), False),
        (4, Geometry((1, 1), (0, 0), (1, 1)), False),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_without_the_kernels(k: int, shape: Geometry, biased: bool, residual: bool) -> None:
    """In float64, which they do not take."""
    x = torch.randn(2, 12, 10, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 1, k, k, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True) if biased else None
    inputs = [each for each in (x, weight, bias) if each is not None]
    expected = F.conv2d(x, weight, bias, *shape, groups=12) + (x if residual else 0)
    ours = depthwise(x, weight, bias, shape, residual)
    torch.testing.assert_close(ours, expected)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    slope = torch.randn_like(expected)
    for one, two in zip(
        torch.autograd.grad(ours, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True
    ):
        torch.testing.assert_close(one, two)
    assert torch.backends.cudnn.enabled


def test_why_the_kernels_are_not_used_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    refusal.cache_clear()
    x, weight = torch.randn(1, 4, 5, 6), torch.randn(4, 1, 3, 3)
    with caplog.at_level(logging.WARNING):
        results = [depthwise(x, weight, None, geometry(3)) for _ in range(2)]
    refusal.cache_clear()
    assert [record.name for record in caplog.records] == [module.__name__]
    assert "use PyTorch's kernels on cpu, which are slower: import of triton" in caplog.text
    torch.testing.assert_close(results[1], F.conv2d(x, weight, padding=1, groups=4))


def test_kernels_that_give_wrong_values_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def correlate(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
        windows = taps.t().reshape(-1, 1, 3, 3)
        return F.conv2d(x.permute(0, 3, 1, 2), windows, bias, padding=1, groups=len(windows)).permute(0, 2, 3, 1)

    def parameter_gradients(x: Tensor, gradient: Tensor, k: int) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        _, height, width, _ = x.shape
        parts = [padded[:, i : i + height, j : j + width] for i in range(k) for j in range(k)]
        return torch.stack([(part * gradient).sum((0, 1, 2)) for part in parts], dim=1), gradient.sum((0, 1, 2))

    monkeypatch.setattr(depthwise_kernels, "correlate", correlate)
    monkeypatch.setattr(depthwise_kernels, "parameter_gradients", parameter_gradients)
    refusal.cache_clear()
    assert refusal("cpu") is None
    for name, wrong in (
        ("correlate", lambda x, taps, bias: correlate(x, taps, bias).roll(1, 1)),
        ("parameter_gradients", lambda x, gradient, k: parameter_gradients(x.flip(2), gradient, k)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(depthwise_kernels, name, wrong)
            refusal.cache_clear()
            assert refusal("cpu") == "Triton's kernels give wrong values there"
    refusal.cache_clear()
    assert caplog.text.count("give wrong values there") == 2


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_autocast_takes_weights_of_either_type(kind: torch.dtype) -> None:
    layer = Depthwise(8, 3)
    weights = {name: value.detach().to(kind).requires_grad_() for name, value in layer.named_parameters()}
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.func.functional_call(layer, weights, (x, True))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    gradients = [weights[name].grad for name in ("weight", "bias")]
    assert [gradient is not None and gradient.dtype for gradient in gradients] == [kind, kind]
    with torch.no_grad():
        expected = x + F.conv2d(x, layer.weight, layer.bias, padding=1, groups=8)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)


def models() -> tuple[nn.Module, nn.Module]:
    plain = timm.create_model("test_efficientnet", pretrained=False).eval()
    ours = use_depthwise(deepcopy(plain))
    assert sum(isinstance(each, Depthwise) for each in ours.modules()) > 1
    assert not any(isinstance(each, Depthwise) for each in plain.modules())
    return plain, ours


def test_converted_models_compute_the_same_on_a_cpu() -> None:
    plain, ours = models()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 40, 56).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))


@pytest.mark.usefixtures("on_cpu")
def test_converted_models_compute_the_same_in_a_gpus_way() -> None:
    plain, ours = (model.double() for model in models())
    x = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    gradients = [torch.autograd.grad(model(x).square().mean(), list(model.parameters())) for model in (ours, plain)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_other_convolutions_stay_as_they_are() -> None:
    class Special(nn.Conv2d):
        pass

    others = (
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(1, 1, 3, groups=1),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"),
        Special(8, 8, 3, groups=8),
    )
    use_depthwise(nn.Sequential(*others))
    assert not any(isinstance(each, Depthwise) for each in others)


REAL = [
    Case((2, 200, 334, 64), 3, torch.bfloat16, residual=True),
    Case((2, 200, 334, 64), 5, torch.float32),
    Case((2, 100, 167, 128), 5, torch.bfloat16),
    Case((2, 50, 84, 320), 3, torch.float32, residual=True),
    Case((16, 25, 42, 512), 5, torch.bfloat16, part=True),
    Case((2, 50, 84, 384), 7, torch.float16),
    Case((1, 1, 1, 20), 7, torch.float32),
]
# In float32, a sum over 2 x 200 x 334 positions; in half precision the rounding of the output.
REAL_BOUNDS = {torch.float32: 5e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_real_sizes_on_a_device(case: Case, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("cuda") is None
    bounds = [REAL_BOUNDS[case.kind]] * 2 + [REAL_BOUNDS[torch.float32]] * 2
    if not fused:
        monkeypatch.setattr(module, "refusal", lambda device: f"{device} is to do without")
        # PyTorch rounds weights and their gradients to the map's type.
        bounds = [4 * REAL_BOUNDS[case.kind]] * 4
    for error, bound in zip(largest_errors(case, "cuda"), bounds, strict=True):
        assert error <= bound


def compiled() -> int:
    """How many variants of the kernels there are in this process."""
    from detr_container.models.layers.gpu import depthwise_kernels as kernels

    found = (kernels._correlate, kernels._correlate_with_gradient)
    return sum(len(caches[0]) for kernel in found for caches in kernel.device_caches.values())


def step(*shape: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    options: dict[str, Any] = {"device": "cuda", "generator": generator, "requires_grad": True}
    x = torch.randn(*shape, **options)
    weight, bias = torch.randn(shape[1], 1, 5, 5, **options), torch.randn(shape[1], **options)
    depthwise(x, weight, bias, geometry(5), residual=True).square().sum().backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.gpu
def test_new_shapes_are_not_compiled_for() -> None:
    step(2, 64, 20, 36)
    before = compiled()
    assert before > 0
    for shape in ((1, 64, 1, 1), (16, 128, 16, 32), (3, 320, 25, 42), (2, 512, 1, 17), (1, 64, 200, 334)):
        step(*shape)
        assert compiled() == before


@pytest.mark.gpu
def test_gradients_are_the_same_bit_for_bit() -> None:
    first = step(2, 64, 100, 167)
    assert all(torch.equal(step(2, 64, 100, 167), first) for _ in range(3))
