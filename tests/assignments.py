"""Matching problems; run as a program, what the kernel makes of them in Triton's interpreter, on a CPU.

Usage, with TRITON_INTERPRET=1, which must be set before Triton is imported: assignments.py RESULT.pt
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from scenes import scene
from torch import Tensor

from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import FOCAL
from detr_container.datasets.batch import Batch
from detr_container.models.detector import Output
from detr_container.tasks.detection.task import DetectionTask


class Problem(NamedTuple):
    """costs: [D, B, Q, T]; counts: objects of each image."""

    costs: Tensor
    counts: tuple[int, ...]

    @property
    def valid(self) -> Tensor:
        """[B, T]."""
        return torch.arange(self.costs.shape[-1]) < torch.tensor(self.counts)[:, None]


def problem(
    counts: tuple[int, ...],
    queries: int,
    slots: int,
    layers: int = 1,
    change: Callable[[Tensor], Tensor] = lambda costs: costs,
) -> Problem:
    """Random costs, changed."""
    generator = torch.Generator().manual_seed(queries + slots)
    return Problem(change(torch.randn(layers, len(counts), queries, slots, generator=generator)), counts)


SOLVED = {
    "few": problem((12, 0, 5), 25, 12, layers=2),
    "as many objects as queries": problem((25, 24), 25, 25),
    "a power of two": problem((32, 7), 32, 16 + 16),
    "more objects than queries": problem((40, 20, 0, 21), 20, 40, layers=2),
    "100 queries": problem((100, 3), 100, 120),
    "300 queries": problem((120,), 300, 120),
    "no slots": problem((0, 0), 5, 0),
    "one of each": problem((1,), 1, 1),
    "slots without objects": problem((0, 0), 5, 7),
    "large": problem((20, 9), 25, 20, change=lambda costs: 1e6 * costs),
    "small": problem((20, 9), 25, 20, change=lambda costs: 1 + 1e-6 * costs),
    "steep": problem((20, 9), 25, 20, change=lambda costs: costs.exp() ** 8),
    "negative": problem((20, 9), 25, 20, change=lambda costs: -(costs.exp() ** 8)),
}
TIED = {
    "whole numbers": problem((20, 9), 25, 20, change=lambda costs: costs.round()),
    "all the same": problem((20, 30), 25, 30, change=torch.ones_like),
}


def broken(value: float) -> Problem:
    """The first of three images has it among the costs of its objects, the second beyond them, the last everywhere."""
    made = problem((10, 5, 7), 25, 16)
    made.costs[0, 0, 3, 4] = made.costs[0, 1, 3, 5] = made.costs[0, 2] = value
    return made


BROKEN = {str(value): broken(value) for value in (float("nan"), float("inf"), -float("inf"))}
EXPERIMENTS = {
    "softmax": DetectionExperiment(),
    "focal": replace(DetectionExperiment(), loss=FOCAL),
}


def losses(name: str, matching: str, device: str = "cpu", spoil: float = 0.0) -> tuple[Tensor, ...]:
    """What `DetectionTask.loss` returns, and its gradients with respect to logits and boxes.

    spoil: added to a box that is predicted for an image without objects.
    """
    experiment = EXPERIMENTS[name]
    train, head = replace(experiment.train, matching=matching), replace(experiment.head, queries=20)
    task = DetectionTask(replace(experiment, train=train, head=head), None, 3)
    task.prepare(torch.device(device))
    shown = scene((0, 30, 7), layers=3, queries=20, softmax=name == "softmax")
    shown.output.boxes[1, 0, 2, 3] += spoil
    host = Batch(torch.zeros(3, 3, 1, 1), torch.ones(3, 2), shown.targets, (1, 2, 3), ((1, 1),) * 3)
    batch = host.to(device)
    leaves = [tensor.to(device).requires_grad_() for tensor in (shown.output.logits, shown.output.boxes)]
    output = Output(leaves[0], leaves[1])
    asked = task.question(output, batch)
    answer = None if asked is None else task.answer(asked.cpu(), host).to(device)
    total, meters = task.loss(output, answer, batch, torch.tensor([30.0, 37.0], device=device), 0.5)
    return total.detach(), meters, *torch.autograd.grad(total, leaves)


def main() -> None:
    from detr_container.models.layers.gpu.assignment import refusal
    from detr_container.models.layers.gpu.assignment_kernel import assign

    problems = SOLVED | TIED | BROKEN
    found = {
        "matches": {name: assign(each.costs, each.valid) for name, each in problems.items()},
        "refusal": refusal(torch.device("cpu"), 25),
        "losses": {name: losses(name, "device") for name in EXPERIMENTS},
        "spoilt": losses("softmax", "device", spoil=float("nan")),
    }
    torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
