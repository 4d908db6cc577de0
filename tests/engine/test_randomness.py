"""What a step draws: the same for the same seed, step and rank, and something else for any other."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import Tensor
from torchvision.ops import StochasticDepth

from detr_container.engine.randomness import mixed, seed_step
from detr_container.models.layers.dropout import Dropout, DroppedReLU

DEVICES = [torch.device("cpu"), *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]
LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": Dropout(0.5),
    "dropped ReLU": DroppedReLU(0.5),
    "torch's dropout": torch.nn.Dropout(0.5),
    "torchvision's stochastic depth": StochasticDepth(0.5, "row"),
    "timm's drop-path": DropPath(0.5),
}
# Seeds, steps and ranks of which torch.manual_seed would see the same 32 bits when they are shifted together.
PLACES = [
    *((seed, 0, 0) for seed in (0, 1, 7, 2**20, 2**32, 2**32 + 1, 2**63, 2**64)),
    *((0, step, 0) for step in (1, 2, 3, 2**14, 2**18, 2**18 + 1, 2**32, 2**40)),
    *((0, 0, rank) for rank in (1, 2, 3, 2**14)),
    *((0, 2**18, 1), (7, 2**18, 0), (1, 1, 1)),
]


def drawn(layer: Callable[[Tensor], Tensor], place: tuple[int, int, int], device: torch.device) -> bytes:
    seed_step(*place, device)
    return layer(torch.ones(512, 2, device=device)).cpu().numpy().tobytes()


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_other_seeds_steps_and_ranks_draw_otherwise(name: str, device: torch.device) -> None:
    first = {place: drawn(LAYERS[name], place, device) for place in PLACES}
    assert first == {place: drawn(LAYERS[name], place, device) for place in reversed(PLACES)}
    same = [pair for pair in combinations(PLACES, 2) if first[pair[0]] == first[pair[1]]]
    assert not same


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_what_is_drawn_is_unrelated(device: torch.device) -> None:
    """Neighbouring seeds, steps and ranks agree in half of their bits, to four standard deviations."""
    count = 20_000
    bits = []
    for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**18, 0), (7, 0, 0)]:
        seed_step(*place, device)
        bits.append(torch.rand(count, device=device) < 0.5)
    for left, right in combinations(bits, 2):
        assert abs((left == right).float().mean().item() - 0.5) < 4 * 0.5 / count**0.5


def test_the_whole_state_of_the_generator_is_filled() -> None:
    """The words that torch draws are those of NumPy's twister with the same state, over three rounds of it."""
    seed_step(3, 4, 5, torch.device("cpu"))
    twister = np.random.MT19937(mixed(3, 4, 5))
    state = twister.state
    state["state"]["pos"] = 624
    twister.state = state
    expected = torch.from_numpy(twister.random_raw(2000).astype(np.int64))
    assert torch.equal(torch.empty(2000, dtype=torch.int32).random_().long(), expected % 2**31)
    # Nothing is left of a normal number that was drawn before.
    torch.randn(1)
    seed_step(3, 4, 5, torch.device("cpu"))
    normal = torch.randn(5)
    seed_step(3, 4, 5, torch.device("cpu"))
    assert torch.equal(torch.randn(5), normal)
