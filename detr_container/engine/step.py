"""One optimizer step: the only place where a model is trained, whatever the task and whoever asks.

Shapes: T accumulation steps of this process, K normalisers of the task, P parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detr_container.config.settings import TrainConfig
from detr_container.models.activation_checkpointing import checkpoint_activations, draws
from detr_container.models.device import to_device

from . import optimizer as optim
from .control import Control, Flags
from .ema import Ema
from .graphs import CudaRecorder, FlatGradients, Graphed, Recorder, Replayed, why_eager
from .micro import Eager
from .precision import InPrecision
from .randomness import seed_step
from .session import Session
from .task import Lap, Task, no_lap


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number from 0, its images, and the norm of each parameter's gradient, [P]."""

    number: int
    image_ids: tuple[int, ...]
    norms: Tensor


class Stepper:
    """A model with its optimizer and what a step changes besides.

    meters: [2 + len(task.meters)] sums since they were last set to zero: the loss, the task's, the gradient's norm.
    prepared: how the task computes on this device, in words.
    checkpointed: parts whose activations are made again for the gradient.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        settings: TrainConfig,
        seed: int,
        session: Session,
        recorder: Recorder | None = None,
    ) -> None:
        """The model: on its device, the same on all processes. Raises ValueError when it has nothing to train.

        recorder: of the device's graphs, where `settings.graphs` shall not decide.
        """
        self.task, self.model, self.settings, self.seed, self.session = task, model, settings, seed, session
        self.optimizer = optim.make_optimizer(task.parameter_groups(model), settings)
        self.names = optim.parameter_names(model, self.optimizer)
        self.prepared = task.prepare(session.device)
        self.ema: Ema | None = None
        self.meters = torch.zeros(2 + len(task.meters), device=session.device)
        self.bad = torch.zeros((), device=session.device)
        self.last_norm = torch.zeros((), device=session.device)
        # As many as are taken until a flag is read.
        self.recent: deque[Taken] = deque(maxlen=3)
        which = settings.checkpoint_activations
        parts = [] if which == "none" else task.checkpointed(model, which)
        self.checkpointed = checkpoint_activations(parts)
        drawn_again = any(map(draws, self.checkpointed))
        self.eager_because = "" if recorder else why_eager(settings.graphs, session.device, task.why_eager, drawn_again)
        self._recorder = recorder
        self._norms = torch.zeros(())
        self._flat: FlatGradients | None = None
        self._control = Control()

    def begin(self) -> None:
        """Once the weights are those to start from: average and spread them."""
        if self.settings.ema_decay:
            self.ema = Ema(self.model, self.settings.ema_decay)
        # What is called; the weights are those of `model`, which is what is averaged and saved.
        compute = InPrecision(self.model, self.settings.precision, self.session.device)
        self._change: Callable[[], None] = self._changed
        if self.eager_because:
            self.parallel: nn.Module = self.session.spread(compute)
            self._micro: Eager | Graphed = Eager(self.task, self.parallel, self.session, self.session.world)
            return
        device = self.session.device
        recorder = self._recorder or CudaRecorder(device)
        # Without DDP, whose sums over processes start within backward: see `graphs`.
        self.parallel, self._flat = compute, FlatGradients([p for p in self.model.parameters() if p.requires_grad])
        self._micro = Graphed(Eager(self.task, self.parallel, self.session), recorder)
        if self.task.weight_decay(0.0) is None:
            optim.keep_rates_on(self.optimizer, device)
            self._change = Replayed(self._changed, recorder, "the optimizer")

    @property
    def graphs_fit(self) -> bool:
        """Whether memory sufficed for the graphs of all micro batches so far."""
        return not (isinstance(self._micro, Graphed) and self._micro.short_of_memory)

    @property
    def manner(self) -> str:
        """How steps run on a GPU, in words to follow its name; empty on a CPU, where there is one way."""
        if self.session.device.type != "cuda":
            return ""
        return f" without CUDA graphs ({self.eager_because})" if self.eager_because else " as CUDA graphs"

    def take(
        self,
        micro: list[Any],
        number: int,
        factor: float,
        decay: float | None = None,
        stop: bool = False,
        save: bool = False,
        lap: Lap = no_lap,
    ) -> Flags:
        """One step on the micro batches, on the host; number: of the step; factor, decay: see `set_rates`.

        Returns the flags that all processes have set in the step before this one. Raises NonFiniteError.
        """
        task, device, world = self.task, self.session.device, self.session.world
        mine = [task.normalisers(batch) for batch in micro]
        values = [*map(sum, zip(*mine, strict=True)), float(stop), float(save)]
        whole = self.session.sum(torch.cat((to_device(values, device, torch.float32), self.bad[None])))
        flags = self._control.exchange(whole[-3:])
        divisors = task.divisors(mine, whole[:-3], world)
        # Dropout draws from the step, not from what was drawn before, so a resumed run draws the same.
        seed_step(self.seed, number, self.session.process.rank, device)
        optim.set_rates(self.optimizer, factor, decay)
        share = 1 / (len(micro) * world)
        for place, host in enumerate(micro):
            with self._no_sync(place < len(micro) - 1):
                self.meters[:-1] += self._micro.derive(host, divisors[place], share, lap)
        if self._flat is not None:
            self.session.sum(self._flat.buffer)
        self._change()
        lap("update")
        # A replay writes over the norms of the step before.
        self.recent.append(Taken(number, tuple(i for host in micro for i in host.image_ids), self._norms.clone()))
        if self.ema is not None:
            self.ema.updates += 1
        task.after_step(self.model, number + 1)
        return flags

    def _changed(self) -> None:
        """Change the weights by the gradient, and what follows them."""
        forget = None if self._flat is None else self._flat.buffer.zero_
        # Once a gradient was not finite nothing changes any more, until the flag that says so is read.
        norm, self._norms = optim.clipped_step(self.optimizer, self.settings.clip, self.bad, forget)
        self.last_norm.copy_(torch.where(self.bad > 0, self.last_norm, norm))
        self.bad.copy_(torch.maximum(self.bad, (~norm.isfinite()).float()))
        self.meters[-1] += norm / self.session.world
        if self.ema is not None:
            self.ema.average()

    def _no_sync(self, waiting: bool) -> Any:
        if waiting and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def bad_gradient(self) -> str:
        """Where a gradient was not finite, in words; empty when all were. Waits for the device."""
        for taken in self.recent if bool(self.bad) else ():
            worst = (~taken.norms.isfinite()).nonzero().flatten().tolist()
            if worst:
                return (
                    f"NaN or Inf in the gradient at step {taken.number}, first in parameter {self.names[worst[0]]} "
                    f"({len(worst)} of {len(self.names)} parameters), on images "
                    f"{', '.join(map(str, taken.image_ids))}; the update was not made"
                )
        return ""
