"""How two runs compare: to the last bit, or within what a GPU drifts."""

import re
from typing import Any

import pytest
import torch

from detr_container.measure.probe import compare_resumed


def test_a_gpu_may_drift_a_little() -> None:
    generator = torch.Generator().manual_seed(0)
    before, way, noise = (torch.randn(1000, generator=generator) for _ in range(3))

    def state(weights: torch.Tensor, moment: torch.Tensor, step: int = 4) -> dict[str, Any]:
        return {"model": {"w": weights, "n": torch.tensor(3)}, "optimizer": {0: {"exp_avg": moment}}, "step": step}

    middle, whole = state(before, before, 2), state(before + 1e-3 * way, before + way)
    near = state(before + 1e-3 * (way + 0.1 * noise), before + way)
    assert re.search(r"the same but for (9\.\d|1\d) % of what", compare_resumed(whole, near, middle, exact=False))
    with pytest.raises(ValueError, match=r"1 of 4 values .* checkpoint\['model'\]\['w'\] differs by up to"):
        compare_resumed(whole, near, middle, exact=True)
    for far in (
        state(before + 1e-3 * (way + 0.5 * noise), before + way),
        state(before + 1e-3 * way, before + 0.5 * way),
        state(before + 1e-3 * way, before + way, step=3),
    ):
        with pytest.raises(ValueError, match="1 of 4 values"):
            compare_resumed(whole, far, middle, exact=False)
