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

    model: as a step calls it, spread over all processes where there are several.
    """

    task: Task
    model: nn.Module
    session: Session

    def derive(self, host: Any, divisors: Tensor, share: float, lap: Lap) -> Tensor:
        """Add a micro batch's gradient to the parameters'; returns its loss and then the task's meters, detached.

        host: the micro batch, on the host; divisors, share: see `Task.loss`; lap: called with "forward", "matching",
        "loss" and "backward". Waits for the device once where the task has a question. Raises NonFiniteError.
        """
        batch = host.to(self.session.device)
        output = self.task.forward(self.model, batch)
        lap("forward")
        asked = self.task.question(output, batch)
        answer = None if asked is None else sent(self.task.answer(Fetched(asked).wait(), host), self.session.device)
        lap("matching")
        total, meters = self.task.loss(output, answer, batch, divisors, share)
        lap("loss")
        # DDP averages gradients over processes; the divisors already count all of them.
        (total * self.session.world).backward()
        lap("backward")
        return torch.cat((total.detach()[None], meters))
