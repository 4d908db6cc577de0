"""A process of two that share batch statistics. Usage: sync_norm_ranks.py FOLDER RANK.

It takes its part of each case's batch through a small network and writes outputs, gradients and statistics.
"""

import json
import os
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr_container.engine.session import open_session
from detr_container.models.layers.sync_norm import share_norms

CASES = {"equal": (3, 3), "unequal": (1, 4), "timm": (2, 3)}
"""How many images each of two processes has."""


def network(case: str) -> nn.Module:
    """In float64, the same in every process."""
    torch.manual_seed(7)
    if case == "timm":
        return timm.create_model("resnet18", num_classes=3).double().train()
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, eps=0.1)]
    return nn.Sequential(*layers).double().train()


def images(case: str) -> Tensor:
    """Of both processes together; far from zero, where a difference of squares would lose digits."""
    side = 32 if case == "timm" else 5
    return torch.randn(sum(CASES[case]), 3, side, side, generator=torch.Generator().manual_seed(3)).double() + 100


def taken(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two forward passes and the gradient of their sum of cubes."""
    x.requires_grad_(True)
    outputs = [model(each) for each in (x, 2 * x)]
    total = sum((output.pow(3).sum() for output in outputs), torch.zeros(()))
    total.backward()
    assert x.grad is not None
    gradients = {f"grad/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    statistics = {name: value for name, value in model.state_dict().items() if "running" in name or "num_" in name}
    return {"out": torch.stack(outputs).detach(), "grad": x.grad, **gradients, **statistics}


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = json.loads((folder / "given.json").read_text())
    with open_session("cpu") as session:
        found = {}
        for case, counts in CASES.items():
            mine = images(case).split(counts)[rank].clone()
            parallel = session.spread(share_norms(network(case)))
            assert isinstance(parallel, DistributedDataParallel)
            found[case] = {name.replace("module.", ""): value for name, value in taken(parallel, mine).items()}
        torch.save(found, folder / f"found-{rank}.pt")


if __name__ == "__main__":
    main()
