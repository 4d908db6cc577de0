"""The average of weights: the plain formula's numbers, bit for bit, whatever modules do with their tensors."""

from copy import deepcopy

import torch
from timm.utils import ModelEma
from torch import Tensor, nn

from detr_container.engine.ema import Ema
from detr_container.models.layers.frozen_norm import FrozenNorm


class Centred(nn.Module):
    """Puts another tensor in its buffer's place at every call, as teachers' centres do."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(dim=0)
        return x - self.centre


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    return nn.Sequential(linear, nn.BatchNorm1d(4), Centred(), linear, FrozenNorm(4))


def stepped(model: nn.Sequential) -> None:
    model[:4](torch.randn(5, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_plain_formula_also_after_loading() -> None:
    model = model_of()
    ema, expected = Ema(model, 0.9), dict[str, Tensor]()
    for step in range(6):
        stepped(model)
        if step == 3:
            # A resumed run: both are loaded, which makes a frozen norm replace its folded tensors.
            state = deepcopy(ema.module.state_dict())
            ema = Ema(model, 0.9)
            ema.load(state, step)
            model.load_state_dict(deepcopy(model.state_dict()))
        ema.average()
        ema.updates += 1
        for name, value in model.state_dict().items():
            if step == 0:
                expected[name] = value.clone()
            elif value.is_floating_point():
                expected[name] = torch.lerp(expected[name], value, 1 - 0.9)
            else:
                expected[name].copy_(expected[name] * 0.9 + value * (1 - 0.9))
        found = ema.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert ema.updates == 6
    assert not torch.equal(model.state_dict()["2.centre"], ema.module.state_dict()["2.centre"])


def test_it_differs_from_timms_by_what_the_first_step_changed() -> None:
    """By decay ** n of it after n steps, since timm's starts from the weights before that step."""
    decay, steps = 0.9, 5
    model = nn.Linear(4, 3).double()
    ema, theirs, weights = Ema(model, decay), ModelEma(model, decay), [deepcopy(model.state_dict())]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.average()
        ema.updates += 1
        theirs.update(model)
        weights.append(deepcopy(model.state_dict()))
    for name, average in theirs.ema.state_dict().items():
        change = weights[1][name] - weights[0][name]
        torch.testing.assert_close(ema.module.state_dict()[name] - average, decay**steps * change)
