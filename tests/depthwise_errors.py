"""How far depthwise convolutions and their gradients are from those in float64.

As a program, of small maps on the CPU in Triton's interpreter, for which TRITON_INTERPRET=1 must be set.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detr_container.models.layers.gpu.depthwise import Geometry, depthwise, refusal


class Case(NamedTuple):
    """[B, h, w, C], the window's side, the map's type, whether x is added, and whether the map is a part of a wider."""

    shape: tuple[int, int, int, int]
    k: int
    kind: torch.dtype
    residual: bool = False
    part: bool = False


def geometry(k: int) -> Geometry:
    return Geometry((1, 1), (k // 2, k // 2), (1, 1))


def largest_errors(case: Case, device: str) -> list[float]:
    """Of the output and of the gradients of map, weights and bias, as shares of the largest value of each."""
    torch.manual_seed(0)
    *_, channels = case.shape
    wide = torch.randn(*case.shape[:3], 3 * channels if case.part else channels, device=device).to(case.kind)
    x = wide[..., -channels:].permute(0, 3, 1, 2).requires_grad_()
    weight = torch.randn(channels, 1, case.k, case.k, device=device, requires_grad=True)
    bias = torch.randn(channels, device=device, requires_grad=True)
    y = depthwise(x, weight, bias, geometry(case.k), case.residual)
    assert y.dtype == case.kind
    assert y.is_contiguous(memory_format=torch.channels_last)
    slope = torch.randn_like(y)
    ours = (y, *torch.autograd.grad(y, (x, weight, bias), slope))
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    expected = F.conv2d(*exact, padding=case.k // 2, groups=channels) + (exact[0] if case.residual else 0)
    theirs = (expected, *torch.autograd.grad(expected, exact, slope.double()))
    return [share(one, two) for one, two in zip(ours, theirs, strict=True)]


def share(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    with torch.no_grad():
        return float((ours - exact).abs().max() / exact.abs().max())


def small() -> Iterator[Case]:
    """Odd sides, single pixels, single rows, one channel more or fewer than a program takes, every window."""
    shapes: Sequence[tuple[int, int, int, int]] = ((2, 9, 11, 20), (1, 1, 1, 65), (3, 1, 5, 1), (1, 9, 3, 16))
    for place, (k, shape) in enumerate(product((3, 5, 7), shapes)):
        yield Case(shape, k, (torch.float32, torch.bfloat16)[(place + k // 2) % 2], residual=place % 3 > 0)
    yield Case((2, 5, 9, 24), 3, torch.float32, residual=True, part=True)
    yield Case((2, 5, 9, 24), 3, torch.bfloat16, residual=True, part=True)
    yield Case((2, 5, 9, 24), 5, torch.bfloat16, part=True)


if __name__ == "__main__":
    sys.stdout.write(f"refused {refusal('cpu')}\n")
    for case in small():
        words = (*largest_errors(case, "cpu"), str(case.kind).removeprefix("torch."), case.shape, case.k)
        sys.stdout.write(" ".join(map(str, words)) + "\n")
