"""Triton kernels of depthwise convolutions on maps with channels last, stride 1, an odd K x K window and zeros around.

They are compiled for a window, the types and the alignment of the channels, not for a size of map, batch or channels:
sizes are arguments that Triton is kept from specialising on. Sums are float32, whatever the tensors are, and in the
same order at every run. Importing this needs Triton.
"""

from __future__ import annotations

from math import gcd, isqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1024
"""About so many share the sums of the window's gradient: a few for each multiprocessor of a large GPU."""


@triton.jit(do_not_specialize=["height", "width", "units", "x_units"])
def _correlate(
    x: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    units: tl.tensor,
    x_units: tl.tensor,
    ALIGN: tl.constexpr,
    K: tl.constexpr,
    FLIP: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """A tile of ROWS x COLUMNS positions: near ones share most of what they read, which comes from memory once."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    tile = tl.program_id(0)
    place = tl.arange(0, ROWS * COLUMNS)
    row = tile // across % down * ROWS + place // COLUMNS
    column = tile % across * COLUMNS + place % COLUMNS
    # As products with a constant, so that Triton knows how these are aligned and reads many channels at once.
    channels, pixel = units * ALIGN, x_units * ALIGN
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    image = (tile // (across * down)).to(tl.int64) * height * width
    x += image * pixel
    y += image * channels
    total = tl.zeros((ROWS * COLUMNS, CHANNELS), tl.float32)
    # The outer loop stays one: unrolled, all taps would be read ahead, into more registers than there are.
    for i in range(K):
        for j in tl.static_range(K):
            r, c = row + (i - K // 2), column + (j - K // 2)
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            value = tl.load(
                x + (r * width + c)[:, None] * pixel + channel[None, :],
                mask=inside[:, None] & there[None, :],
                other=0.0,
            ).to(tl.float32)
            tap = K * K - 1 - (i * K + j) if FLIP else i * K + j
            total += value * tl.load(taps + tap * channels + channel, mask=there, other=0.0).to(tl.float32)[None, :]
    inside = (row < height) & (column < width)
    if RESIDUAL:
        at = x + (row * width + column)[:, None] * pixel + channel[None, :]
        total += tl.load(at, mask=inside[:, None] & there[None, :], other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)[None, :]
    at = y + (row * width + column)[:, None] * channels + channel[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=inside[:, None] & there[None, :])


@triton.jit(do_not_specialize=["images", "height", "width", "units", "x_units"])
def _correlate_with_gradient(
    x: tl.tensor,
    gradient: tl.tensor,
    sums: tl.tensor,
    images: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    units: tl.tensor,
    x_units: tl.tensor,
    ALIGN: tl.constexpr,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Row `program_id(0)` of the window, over every `num_programs(2)`-th tile; the tap after the last sums the bias."""
    i, part = tl.program_id(0), tl.program_id(2)
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    place = tl.arange(0, ROWS * COLUMNS)
    channels, pixel = units * ALIGN, x_units * ALIGN
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    tap = tl.arange(0, TAPS)
    total = tl.zeros((TAPS, ROWS * COLUMNS, CHANNELS), tl.float32)
    for tile in range(part, images * across * down, tl.num_programs(2)):
        row = tile // across % down * ROWS + place // COLUMNS
        column = tile % across * COLUMNS + place % COLUMNS
        image = (tile // (across * down)).to(tl.int64) * height * width
        inside = (row < height) & (column < width)
        at = gradient + image * channels + (row * width + column)[:, None] * channels + channel[None, :]
        slope = tl.load(at, mask=inside[:, None] & there[None, :], other=0.0).to(tl.float32)
        r = row + (i - K // 2)
        c = column[None, :] + (tap - K // 2)[:, None]
        seen = ((r >= 0) & (r < height))[None, :] & (c >= 0) & (c < width) & (tap < K)[:, None]
        value = tl.load(
            x + image * pixel + (r * width + c)[:, :, None] * pixel + channel[None, None, :],
            mask=seen[:, :, None] & there[None, None, :],
            other=0.0,
        ).to(tl.float32)
        value = tl.where((tap == K)[:, None, None], 1.0, value)
        total += value * slope[None, :, :]
    sums += part.to(tl.int64) * channels * (K * K + 1)
    window = channel[None, :] * (K * K) + i * K + tap[:, None]
    at = tl.where((tap == K)[:, None], channels * (K * K) + channel[None, :], window)
    wanted = (tap < K)[:, None] | ((tap == K)[:, None] & (i == 0))
    tl.store(sums + at, tl.sum(total, axis=1), mask=wanted & there[None, :])


def correlate(x: Tensor, taps: Tensor, bias: Tensor | None, flip: bool = False, residual: bool = False) -> Tensor:
    """[B, h, w, C] to the same: of each channel its products with the K x K window, plus its bias, plus x (`residual`).

    taps: [K * K, C]; flip: with the window turned by half a turn, which makes it the gradient of what goes without.
    """
    x, pixel = _even(x)
    images, height, width, channels = x.shape
    y = x.new_empty(x.shape)
    align, block, rows, columns = gcd(channels, pixel, 16), _block(channels), 8, 8
    grid = (images * triton.cdiv(height, rows) * triton.cdiv(width, columns), triton.cdiv(channels, block))
    with torch.cuda.device_of(x):
        _correlate[grid](
            x,
            taps,
            taps if bias is None else bias,
            y,
            height,
            width,
            channels // align,
            pixel // align,
            ALIGN=align,
            K=isqrt(len(taps)),
            FLIP=flip,
            BIAS=bias is not None,
            RESIDUAL=residual,
            ROWS=rows,
            COLUMNS=columns,
            CHANNELS=block,
            num_warps=8,
        )
    return y


def parameter_gradients(x: Tensor, gradient: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of the windows [C, K * K] and of the bias [C], in float32; x, gradient: [B, h, w, C]."""
    x, pixel = _even(x)
    gradient = gradient.contiguous()
    images, height, width, channels = x.shape
    align, block, rows, columns = gcd(channels, pixel, 16), _block(channels), 2, 8
    blocks = triton.cdiv(channels, block)
    tiles = images * triton.cdiv(height, rows) * triton.cdiv(width, columns)
    parts = min(tiles, triton.cdiv(PROGRAMS, k * blocks))
    sums = torch.empty(parts, channels * (k * k + 1), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _correlate_with_gradient[(k, blocks, parts)](
            x,
            gradient,
            sums,
            images,
            height,
            width,
            channels // align,
            pixel // align,
            ALIGN=align,
            K=k,
            TAPS=triton.next_power_of_2(k + 1),
            ROWS=rows,
            COLUMNS=columns,
            CHANNELS=block,
            num_warps=4,
        )
    windows, bias = sums.sum(0).split([channels * k * k, channels])
    return windows.view(channels, k * k), bias


def _block(channels: int) -> int:
    """Channels that a program computes together."""
    return min(64, triton.next_power_of_2(channels))


def _even(x: Tensor) -> tuple[Tensor, int]:
    """A map whose pixels lie at even distances, channels side by side, and that distance; a copy if they do not."""
    _, height, width, channels = x.shape
    pixel = x.stride(2)
    if not x.is_contiguous() and x.stride() == (height * width * pixel, width * pixel, pixel, 1) and pixel > channels:
        return x, pixel
    return x.contiguous(), channels
