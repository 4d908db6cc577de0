"""One micro batch of a step: what the model makes of it, what the host says to that, its loss and the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detr_container.models.device import Fetched, sent

from .session import Session
from .task import Lap, Task


@dataclass(frozen=True)
class Eager:
    """Operation by operation, for any task and any shape.

    model: as a step calls it, spread over all processes where there are several. scale: of the gradient, since DDP
    averages over processes, and the divisors already count all of them.
    """

    task: Task
    model: nn.Module
    session: Session
    scale: float = 1.0

    def derive(self, host: Any, divisors: Tensor, share: float, lap: Lap) -> Tensor:
        """Add a micro batch's gradient to the parameters'; returns its loss and then the task's meters, detached.

        host: the micro batch, on the host; divisors, share: see `Task.loss`; lap: called with "forward", "matching",
        "loss" and "backward". Waits for the device once where the task has a question. Raises NonFiniteError.
        """
        return self.derive_and_answer(host, divisors, share, lap)[0]

    def derive_and_answer(self, host: Any, divisors: Tensor, share: float, lap: Lap) -> tuple[Tensor, Tensor | None]:
        """As `derive`; also what the host has said, on the device."""
        batch = host.to(self.session.device)
        output, asked = self.ask(batch)
        lap("forward")
        answer = self.answer(asked, host)
        lap("matching")
        total, sums = self.loss(output, answer, batch, divisors, share)
        lap("loss")
        total.backward()
        lap("backward")
        return sums, answer

    def ask(self, batch: Any) -> tuple[Any, Tensor | None]:
        """What the model makes of a batch on the device, and what the host must know of that."""
        output = self.task.forward(self.model, batch)
        return output, self.task.question(output, batch)

    def answer(self, asked: Tensor | None, host: Any) -> Tensor | None:
        """What the host says, on its way to the device; waits for the question."""
        return None if asked is None else sent(self.task.answer(Fetched(asked).wait(), host), self.session.device)

    def loss(
        self, output: Any, answer: Tensor | None, batch: Any, divisors: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """What backward starts from, and the loss and the meters, detached."""
        total, meters = self.task.loss(output, answer, batch, divisors, share)
        return total * self.scale, torch.cat((total.detach()[None], meters))
