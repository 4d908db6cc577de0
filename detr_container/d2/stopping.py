"""The end of detectron2's loop before its time: saved, at the same step in all processes."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase

from .checkpoints import name_of


class StoppedTraining(BaseException):
    """The loop was left between two steps, and what it has done is saved.

    No Exception, each of which detectron2's loop logs as an error.
    """


class StopHook(HookBase):
    """Saves and leaves the loop once it is asked to, after whichever step that is.

    asked: whether to stop, the same answer in all processes, which call it together. The last step is not answered:
    what is left then is the final evaluation, which a start from the last checkpoint makes again if need be.
    """

    def __init__(self, checkpointer: Checkpointer, asked: Callable[[], bool]) -> None:
        self._checkpointer, self._asked = checkpointer, asked

    def after_step(self) -> None:
        """See `HookBase`. Raises StoppedTraining."""
        trainer = self.trainer
        if trainer.iter + 1 >= trainer.max_iter or not self._asked():
            return
        name = name_of(trainer.iter)
        if not self._checkpointer.get_checkpoint_file().endswith(f"{name}.pth"):
            self._checkpointer.save(name, iteration=trainer.iter)
        raise StoppedTraining
