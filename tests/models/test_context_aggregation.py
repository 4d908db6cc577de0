"""Every aggregation is (alpha A(X) + beta A') V with the affinities of two positions written down one by one."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detr_container.models.layers.context_aggregation import (
    CONTAINER,
    CONTAINER_LIGHT,
    CONTAINER_PAM,
    DEPTHWISE,
    MH_DW,
    MH_MLP,
    SELF_ATTENTION,
    Affinities,
    ContextAggregation,
)
from detr_container.models.layers.depthwise import Depthwise, HeadDepthwise

KINDS = {
    "self-attention": SELF_ATTENTION,
    "depthwise": DEPTHWISE,
    "MH-DW": MH_DW,
    "MH-MLP": MH_MLP,
    "CONTAINER-PAM": CONTAINER_PAM,
    "CONTAINER": CONTAINER,
    "CONTAINER-LIGHT": CONTAINER_LIGHT,
    # Others that the settings make.
    "attention and MH-DW, learned": Affinities(dynamic=True, static="head", weighing="learned"),
    "PAM, learned": Affinities(dynamic=True, static="dense", weighing="learned"),
    "PAM, gated": Affinities(dynamic=True, static="dense", weighing="gate"),
    "attention and convolution, summed": Affinities(dynamic=True, static="channel"),
}
CHANNELS, HEADS, WINDOW = 6, 2, 5
# Square, not square, smaller than the window, a single position.
GRIDS = [(4, 4), (3, 6), (6, 2), (1, 1)]


def made(affinities: Affinities, grid: tuple[int, int], leading: int = 0) -> ContextAggregation:
    """An aggregation in float64, no number of which is 0 or 1."""
    torch.manual_seed(0)
    module = ContextAggregation(CHANNELS, affinities, HEADS, WINDOW, grid, leading).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def weighing(module: ContextAggregation, head: int) -> tuple[Tensor, Tensor]:
    """Alpha and beta of a head."""
    one = torch.ones((), dtype=torch.float64)
    if module.affinities.weighing == "gate":
        gate = 1 / (1 + torch.exp(-module.mix[0]))
        return gate, 1 - gate
    return (module.alpha[head], module.beta[head]) if module.affinities.weighing == "learned" else (one, one)


def dynamic_affinity(query: Tensor, key: Tensor) -> Tensor:
    """[N, N] of one head; query, key: [N, C / M]."""
    rows = []
    for position in query:
        exponents = [torch.exp((position * other).sum() / math.sqrt(len(position))) for other in key]
        total = sum(exponents)
        rows.append(torch.stack([each / total for each in exponents]))
    return torch.stack(rows)


def window_affinity(window: Tensor, grid: tuple[int, int]) -> Tensor:
    """[N, N] of a window: entry (i, j) is the window's number at the offset j - i, 0 outside it."""
    reach, zero = WINDOW // 2, torch.zeros((), dtype=torch.float64)
    places = list(product(range(grid[0]), range(grid[1])))
    rows = []
    for row, column in places:
        offsets = [(other - row + reach, beside - column + reach) for other, beside in places]
        inside = [0 <= down < WINDOW and 0 <= across < WINDOW for down, across in offsets]
        rows.append(torch.stack([window[at] if hit else zero for at, hit in zip(offsets, inside, strict=True)]))
    return torch.stack(rows)


def naive(module: ContextAggregation, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, N, expansion * C] to [B, N, C], channel by channel."""
    kind, each = module.affinities, CHANNELS // HEADS
    kernel = (module.static if kind.both else module).kernel if kind.static != "none" else None
    *attending, value = tokens.chunk(module.expansion, dim=2)
    places = range(CHANNELS if kind.static == "channel" else HEADS)
    statics = [static_affinity(module, kernel, place, grid) for place in places] if kernel is not None else []
    images = []
    for image in range(len(tokens)):
        parts = [part[image].unflatten(1, (HEADS, each)).unbind(1) for part in attending]
        dynamics = [dynamic_affinity(*of_head) for of_head in zip(*parts, strict=True)]
        columns = []
        for channel in range(CHANNELS):
            head = channel // each
            alpha, beta = weighing(module, head)
            affinity, bias = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64), torch.zeros(1)
            if dynamics:
                affinity = affinity + alpha * dynamics[head]
            if statics:
                static, own_bias = statics[channel if kind.static == "channel" else head]
                affinity, bias = affinity + beta * static, beta * own_bias
            columns.append(affinity @ value[image, :, channel] + bias)
        images.append(torch.stack(columns, dim=1))
    return torch.stack(images)


def static_affinity(
    module: ContextAggregation, kernel: nn.Module, place: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """[N, N] of a channel or a head, and its bias."""
    if module.affinities.static == "dense":
        return kernel.affinity[0, place], torch.zeros(1, dtype=torch.float64)
    return window_affinity(kernel.weight[place, 0], grid), kernel.bias[place]


def same(ours: Tensor, theirs: Tensor, module: ContextAggregation, x: Tensor) -> None:
    """Values, and the gradients of the input and of every parameter, under weights that are all different."""
    torch.manual_seed(1)
    weights = torch.randn_like(ours)
    inputs = {"x": x, **dict(module.named_parameters())}
    found, expected = (torch.autograd.grad((y * weights).sum(), list(inputs.values())) for y in (ours, theirs))
    assert (ours - theirs).abs().max() <= 1e-10
    for name, a, b in zip(inputs, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10, name
        assert a.abs().max() > 0, name


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_values_and_gradients_are_those_of_affinities_written_down(name: str, grid: tuple[int, int]) -> None:
    module = made(KINDS[name], grid)
    x = torch.randn(2, module.expansion * CHANNELS, *grid, dtype=torch.float64, requires_grad=True)
    theirs = naive(module, x.flatten(2).transpose(1, 2), grid).transpose(1, 2).unflatten(2, grid)
    same(module(x), theirs, module, x)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.static == "channel" or kind == MH_DW])
def test_in_the_way_of_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Depthwise, "devices", ("cpu",))
    module = made(KINDS[name], (3, 4))
    x = torch.randn(2, module.expansion * CHANNELS, 3, 4, dtype=torch.float64, requires_grad=True)
    theirs = naive(module, x.flatten(2).transpose(1, 2), (3, 4)).transpose(1, 2).unflatten(2, (3, 4))
    same(module(x.contiguous(memory_format=torch.channels_last)), theirs, module, x)


@pytest.mark.parametrize("leading", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.static in ("none", "dense")])
def test_tokens_before_those_of_the_map(name: str, leading: int) -> None:
    module, grid = made(KINDS[name], (2, 3), leading), (2, 3)
    x = torch.randn(2, leading + 6, module.expansion * CHANNELS, dtype=torch.float64, requires_grad=True)
    same(module.of_tokens(x, grid), naive(module, x, grid), module, x)


def test_as_many_heads_as_channels_are_a_depthwise_convolution() -> None:
    depthwise, heads = Depthwise(8, 3), HeadDepthwise(8, 3, heads=8)
    heads.load_state_dict(depthwise.state_dict())
    x = torch.randn(2, 8, 5, 6)
    assert torch.equal(heads(x), depthwise(x))


def test_a_window_for_each_head_costs_no_more_than_one_for_each_channel() -> None:
    x, flops = torch.randn(2, 8, 9, 7), []
    for module in (Depthwise(8, 5), HeadDepthwise(8, 5, heads=2)):
        with FlopCounterMode(display=False) as counter:
            module(x).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


def test_a_window_is_drawn_as_the_framework_draws_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    framework, ours = nn.Conv2d(4096, 4096, 5, groups=4096), HeadDepthwise(4096, 5, heads=4096)
    for name in ("weight", "bias"):
        a, b = (dict(module.named_parameters())[name] for module in (ours, framework))
        assert a.shape == b.shape
        assert a.abs().max() <= 0.2
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.05)


def test_alpha_and_beta_start_as_the_released_gate_does() -> None:
    torch.manual_seed(0)
    learned, gated = ContextAggregation(8, CONTAINER, heads=2), ContextAggregation(8, CONTAINER_LIGHT, heads=2)
    gated.static.load_state_dict(learned.static.state_dict())
    x = torch.randn(2, 24, 5, 4)
    torch.testing.assert_close(learned(x), gated(x))


def test_names_of_parameters_are_those_of_older_checkpoints() -> None:
    names = {
        kind: [name for name, _ in ContextAggregation(4, kind).named_parameters()]
        for kind in KINDS.values()
        if kind.static == "channel"
    }
    assert names[DEPTHWISE] == ["kernel.weight", "kernel.bias"]
    assert names[CONTAINER_LIGHT] == ["mix", "static.kernel.weight", "static.kernel.bias"]
    assert names[CONTAINER] == ["alpha", "beta", "static.kernel.weight", "static.kernel.bias"]


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="10 channels do not divide by 4 heads"):
        ContextAggregation(10, SELF_ATTENTION, 4)
    with pytest.raises(ValueError, match="10 channels do not divide by 4 heads"):
        HeadDepthwise(10, 3, 4)
    with pytest.raises(ValueError, match="needs an affinity"):
        Affinities()
    with pytest.raises(ValueError, match="weighing='learned' weighs two affinities"):
        Affinities(static="head", weighing="learned")
    with pytest.raises(ValueError, match="maps of one size in positions, not of 0 x 0"):
        ContextAggregation(8, MH_MLP, 2)
