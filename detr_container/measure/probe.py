"""A run of which single steps are taken and timed, and how two runs compare."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_container.base.interrupt import StopRequest
from detr_container.config.settings import Experiment
from detr_container.engine.run import Run
from detr_container.engine.same import differences
from detr_container.engine.session import Session
from detr_container.engine.task import Task
from detr_container.engine.trainer import Trainer

KEPT = ("model", "ema", "ema_updates", "optimizer", "step")
"""What of a checkpoint is compared."""
DRIFT = 0.25
"""How far a resumed run may be from the uninterrupted one on a GPU, whose sums have no fixed order: as a share of how
far the steps after the checkpoint moved it. AdamW turns a rounding error of a tiny gradient into a step of full length,
so a few per cent are usual; with an optimizer that starts anew, or with other images, it is more than half."""


class Probe(Trainer):
    """A run of which single steps are taken and timed; it logs nothing."""

    def __init__(
        self, task: Task, experiment: Experiment, folder: Path, session: Session, stop: StopRequest | None = None
    ) -> None:
        self.save_seconds: list[float] = []
        super().__init__(task, experiment, Run(folder), session, stop or StopRequest())

    def step_on(self, micro: list[Any]) -> float:
        """Take the first step's learning rate and dropout for a step on these batches. Returns the loss before it.

        Raises FloatingPointError when something is not finite.
        """
        meters = self.steps.meters.zero_()
        step = self.step
        self.take(micro)
        self.step = step
        self.check_gradients()
        return float(meters[0])

    def timed_steps(self) -> Generator[tuple[float, float], None, None]:
        """Steps on the run's own batches: seconds that each waited for data, and seconds that it took in all."""
        supply = self.micro_batches()
        while True:
            began = time.perf_counter()
            micro = next(supply)
            waited = time.perf_counter() - began
            self.take(micro)
            if self.session.device.type == "cuda":
                torch.cuda.synchronize()
            yield waited, time.perf_counter() - began

    def save(self) -> None:
        """As any run; how long it took is kept."""
        began = time.perf_counter()
        super().save()
        self.save_seconds.append(time.perf_counter() - began)

    def log(self, text: str) -> None:
        """Nothing."""


def compare_resumed(whole: dict[str, Any], parts: dict[str, Any], middle: dict[str, Any], exact: bool) -> str:
    """How a resumed run compares with the uninterrupted one; three checkpoints, the last from the interruption.

    Raises ValueError when they differ: at all if `exact`, else by more than DRIFT of what the last steps changed.
    """
    kept = [{key: state[key] for key in KEPT if key in state} for state in (whole, parts, middle)]
    wrong = list(differences(kept[0], kept[1], "checkpoint"))
    if not wrong:
        return "resumed after 2 of 4 steps, the run is the same bit for bit"
    a, b, before = (dict(_values(state)) for state in kept)
    apart, moved = defaultdict[str, float](float), defaultdict[str, float](float)
    for name in a:
        keys = name.split("/")
        group = keys[-1] if keys[0] == "optimizer" else keys[0]
        apart[group] += float((a[name] - b[name]).double().square().sum())
        moved[group] += float((a[name] - before[name]).double().square().sum())
    drift = max(math.sqrt(apart[group] / (moved[group] or math.ulp(0.0))) for group in apart)
    share = f"{100 * drift:.2g} % of what the last steps changed"
    if exact or not drift <= DRIFT:
        raise ValueError(
            f"resumed after 2 of 4 steps it is another run than uninterrupted: {len(wrong)} of {len(a)} values of "
            f"weights and optimizer differ, by {share}; {wrong[0]}. Something decides that no checkpoint holds: "
            "please report it with these settings. A run that is never interrupted does not suffer from it"
        )
    return f"resumed after 2 of 4 steps, the run is the same but for {share} ({100 * DRIFT:.0f} % allowed)"


def _values(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor and number of nested dicts, with the keys that lead to it."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _values(value, f"{name}/{key}" if name else str(key))
    else:
        yield name, torch.as_tensor(state)
