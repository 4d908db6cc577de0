"""What all processes of a run act upon together: a wish to stop, a checkpoint that is due, a gradient that is wrong.

The flags are summed with what a step sums anyway, and read a step later, when their copy to the host has long arrived:
nobody waits for them, and every process reads the same after the same step.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from detr_container.models.device import Fetched


class Flags(NamedTuple):
    """Of all processes. bad: the gradient of the step before the one that sent this was not finite."""

    stop: bool = False
    save: bool = False
    bad: bool = False


class Control:
    """The flags on their way from one step to the next."""

    def __init__(self) -> None:
        self._sent: Fetched | None = None

    def exchange(self, summed: Tensor) -> Flags:
        """Send the flags of this step, and read those of the step before; none were set before the first.

        summed: [3] stop, save and bad on the device, each the number of processes that have it.
        """
        before = self.pending()
        self._sent = Fetched(summed.clone())
        return before

    def pending(self) -> Flags:
        """The flags that were sent last; waits for them when they are still on their way."""
        if self._sent is None:
            return Flags()
        return Flags(*(value > 0 for value in self._sent.wait().tolist()))
