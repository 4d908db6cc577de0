"""Training of any task, from its settings to a finished run.

Nothing random has a state that must be saved: the images of a step and the dropout of a step follow from the seed
and the step alone. A checkpoint is therefore weights, optimizer and a number, and a resumed run is the uninterrupted
run, bit for bit where the arithmetic is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detr_container.base.files import JsonLines
from detr_container.base.interrupt import StopRequest
from detr_container.config import settings as configuration
from detr_container.config.settings import Experiment
from detr_container.datasets.loader import StepBatches, steps_per_epoch
from detr_container.drawing.curves import Scores, plot_curves

from . import optimizer as optim
from .micro_batch import fit
from .precision import described
from .pretraining import check_unchanged, in_words, pretraining
from .progress import Progress
from .resume import FORMAT, check_head, check_tensors, data_changes, my_meters, newest_on_all, restore_optimizer
from .retention import superseded
from .run import Run
from .session import Session, StoppedError
from .step import Stepper
from .task import Evaluation, NonFiniteError, Task

_log = logging.getLogger(__name__)


class Trainer:
    """A run in progress on this process."""

    def __init__(self, task: Task, experiment: Experiment, run: Run, session: Session, stop: StopRequest) -> None:
        """Build the model and take over the newest checkpoint, if there is one. Nothing is written yet."""
        self.task, self.experiment, self.run, self.session, self.stop = task, experiment, run, session, stop
        self.settings = experiment.train
        self.epoch_steps = steps_per_epoch(task.training_images, self.settings.batch)
        self.total = self.settings.epochs * self.epoch_steps
        self.step, self.saved = 0, -1
        self.checkpoints = run.checkpoints(self.settings.keep_checkpoints)
        self.versions = self._versions()
        self.pretraining: dict[str, Any] = {}
        found = newest_on_all(self.checkpoints, session)
        with session.together():
            self.changed = self._open(*found) if found else []
        if not self.settings.micro_batch:
            self._fit(found[1].get("micro_batch") if found else 0)
        with session.together():
            # Before anything is built, since it raises where the batch cannot be divided.
            self.sampler = self._sampler()
            self.model = self._built(bool(found))
            self.steps = Stepper(self.task, self.model, self.settings, experiment.seed, session)
            if found:
                averaged = bool(self.settings.ema_decay)
                check_tensors(*found, self.model, self.steps.optimizer, self.steps.names, averaged)
        session.share([*self.model.parameters(), *self.model.buffers()])
        self.steps.begin()
        if found:
            with session.together():
                self._restore(*found)

    def run_to_end(self) -> int:
        """Step, log, save and evaluate until the schedule or somebody asks to stop."""
        self._describe()
        try:
            return self._run()
        except InterruptedError:
            if self.session.world == 1:  # Several are in the step, but for this one, and cannot save together.
                return self._interrupted()
            raise

    def _run(self) -> int:
        workers = self.experiment.loader_workers
        with Progress(
            self.run, self.session.main, self.step, self.total, self.epoch_steps, self.settings, workers
        ) as progress:
            supply, began, saved_at = self.micro_batches(), self.step, time.monotonic()
            last = min(self.total, self.step + (self.settings.max_steps or self.total))
            while True:
                if self.step % self.epoch_steps == 0 and self.step:
                    self.save()
                    if not self._evaluate(progress):
                        return self._interrupted()
                    progress.resume()
                if self.step >= last:
                    break
                minutes = (time.monotonic() - saved_at) / 60
                # The first is due at the first step and so follows the second, so that a run gets on however often it
                # is killed, and no sooner, since only that step shows whether what the first one has made is sound.
                early = self.step == began
                due = self.settings.checkpoint_minutes > 0 and (early or minutes >= self.settings.checkpoint_minutes)
                flags = self.take(progress.next_of(supply), save=due and self.session.main)
                progress.advance(self.step)
                if self.step % self.settings.log_every == 0 or self.step % self.epoch_steps == 0:
                    self._log_metrics(progress)
                if flags.stop:
                    return self._interrupted()
                if flags.save:
                    self.save()
                    saved_at = time.monotonic()
            self.save()
        if self.step == began == self.total:
            self.log(f"finished: step {self.step} of {self.total}. A larger train.epochs continues from here")
        elif self.step < self.total:
            self.log(f"stopped after {self.settings.max_steps} steps; the same command resumes from step {self.step}")
        return 0

    def take(self, micro: list[Any], save: bool = False) -> Any:
        """One step on these micro batches. Returns the flags of the step before.

        Raises FloatingPointError when something is not finite.
        """
        factor = self.task.lr_factor(self.step, self.epoch_steps, self.settings)
        decay = self.task.weight_decay(self.step / self.total)
        try:
            flags = self.steps.take(micro, self.step, factor, decay, self.stop.requested is not None, save)
        except NonFiniteError as error:
            raise FloatingPointError(f"{error} at step {self.step}; {self._circumstances()}") from error
        self.step += 1
        if flags.bad:
            self.check_gradients()
        return flags

    def check_gradients(self) -> None:
        """Raise FloatingPointError when a gradient was not finite; waits for the device."""
        if why := self.steps.bad_gradient():
            raise FloatingPointError(f"{why}; {self._circumstances()}")

    def _circumstances(self) -> str:
        kept, steps = self.checkpoints.paths(), self.steps
        return optim.circumstances(self.model, steps.optimizer, float(steps.last_norm), kept[0] if kept else None)

    def micro_batches(self) -> Iterator[list[Any]]:
        """The micro batches of each step, on this process."""
        pin_memory = self.session.device.type == "cuda"
        supply = self.task.batches(self.model, self.sampler, pin_memory, self._ends)
        for _ in range(self.step, self.total):
            yield [next(supply) for _ in range(self.sampler.accumulation)]

    def _ends(self, short: bool) -> bool:
        """Whether to stop instead of waiting for a batch: at once; among others, who wait for us, if it cannot come."""
        return self.stop.requested is not None and (short or self.session.world == 1)

    def _sampler(self) -> StepBatches:
        return self.task.sampler(
            self.experiment.seed,
            batch=self.settings.batch,
            micro_batch=self.settings.micro_batch,
            total_steps=self.total,
            start_step=self.step,
            rank=self.session.process.rank,
            world=self.session.world,
        )

    # -- before the first step ----------------------------------------------------------------------------------------

    def _fit(self, known: object) -> None:
        """Find what `train.micro_batch=0` stands for, the same on all processes. known: what it was before."""
        self.log("train.micro_batch=0: trying how many images of the largest size fit into a forward pass")
        with self.session.together():
            try:
                fitted = fit(self.task, self.experiment, self.session, self.stop, known=known)
            except InterruptedError as error:
                raise StoppedError(f"asked to stop by {error} while trying what fits into memory") from error
        least = min(self.session.gather((fitted.images, str(fitted))))
        self.settings = replace(self.settings, micro_batch=least[0])
        self.task = self.task.resolved(replace(self.experiment, train=self.settings))
        self.log(f"train.micro_batch=0 is {least[0]} here: {least[1]}")

    def _versions(self) -> dict[str, dict[str, Any]]:
        """Which data this is, once all processes have read the same files."""
        with self.session.together():
            versions = self.task.versions()
        self.session.agree(
            {f"the file {each['annotations']}": f"SHA-256 {each['sha256']}" for each in versions.values()}
        )
        return versions

    def _built(self, resuming: bool) -> nn.Module:
        """The model on its device. Weights from elsewhere are read by the main process alone, and shared later."""
        torch.manual_seed(self.experiment.seed)
        fresh = not resuming and self.session.main
        self.pretraining |= pretraining(self.experiment) if fresh else {}
        model = self.task.build(weights=fresh)
        if not resuming and self.experiment.init and self.session.main:
            self.log(self.task.start_from(model, Path(self.experiment.init)))
        if fresh:
            check_unchanged(self.pretraining)
        return model.to(self.session.device).train()

    def _describe(self) -> None:
        """Write what this run is, and log it."""
        arithmetic = described(self.settings.precision, self.session.device, self.experiment.in_float32)
        with self.session.together():
            settled, words = self.task.settled(self.model)
            if self.session.main:
                facts = {"step": self.step, "arithmetic": arithmetic, "data": self.versions, **settled}
                facts |= {"pretraining": self.pretraining} if self.pretraining else {}
                facts |= {"changed": self.changed} if self.changed else {}
                facts |= {} if self.experiment.train.micro_batch else {"micro_batch": self.settings.micro_batch}
                self.run.describe(self.experiment, self.task.files(), facts)
                self.run.rewind(self.step)
                self._discard()
        if self.session.main:
            for line in self.changed:
                _log.warning("%s", line)
            place = f"{self.session.world} x {self.session.device.type}{self.steps.manner}"
            self.log(
                f"{self.run.folder}: {self.task.describe()}, {self.total} steps of {self.settings.batch} on {place}"
            )
            for line in (*in_words(self.pretraining), self.task.parameter_counts(self.model), *words):
                self.log(line)
            self.log(f"train.precision={self.settings.precision}: {arithmetic}")
            if self.steps.prepared:
                self.log(self.steps.prepared)
            if self.settings.checkpoint_activations != "none":
                self.log(f"activations of {len(self.steps.checkpointed)} parts are computed again for the gradient")

    # -- what is kept -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there already."""
        if self.saved == self.step:
            return
        self.check_gradients()
        meters = self.session.gather(self.steps.meters.tolist())
        with self.session.together():
            if self.session.main:
                self.checkpoints.save(self._state(meters), self.step)
        self.saved = self.step

    def _state(self, meters: list[list[float]]) -> dict[str, Any]:
        """What a checkpoint holds. meters: of every process."""
        moments = self.steps.optimizer.state_dict()["state"]
        state = {
            "format": FORMAT,
            "experiment": configuration.to_dict(self.experiment),
            **self.task.state(),
            "step": self.step,
            "steps_per_epoch": self.epoch_steps,
            "model": self.model.state_dict(),
            "optimizer": moments,
            "trained": [self.steps.names[index] for index in moments],
            "meters": meters,
            "data": {split: version["sha256"] for split, version in self.versions.items()},
        }
        if self.pretraining:
            state["pretraining"] = self.pretraining
        if not self.experiment.train.micro_batch:
            state["micro_batch"] = self.settings.micro_batch
        if self.steps.ema is not None:
            state |= {"ema": self.steps.ema.module.state_dict(), "ema_updates": self.steps.ema.updates}
        return state

    def _open(self, path: Path, state: dict[str, Any]) -> list[str]:
        """Check a checkpoint's settings and set this run to its step. Returns what has changed of the data."""
        changed = self.run.check_resumable(self.experiment, path, state, self.epoch_steps)
        check_head(path, state, 2 + len(self.task.meters), self.task.state_faults)
        self.step = self.saved = state["step"]
        self.pretraining |= state.get("pretraining", {})
        for name, (old, new) in changed.items():
            self.log(f"changed since this run was started: {name} from {old!r} to {new!r}")
        return data_changes(state, self.run.folder, self.versions)

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        """Take over a checked state."""
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.steps.optimizer, state["optimizer"])
        if self.steps.ema is not None:
            self.steps.ema.load(state["ema"], state["ema_updates"])
        mine = my_meters(state["meters"], self.session.process.rank, self.session.world)
        if mine is not None:
            self.steps.meters.copy_(self.steps.meters.new_tensor(mine))
        self.log(f"resuming from {path}: step {self.step} of {self.total}")

    # -- what is logged -----------------------------------------------------------------------------------------------

    def _log_metrics(self, progress: Progress) -> None:
        """One line of metrics: means over the steps since the last."""
        before, every = self.step - 1, self.settings.log_every
        since = self.step - max(before // self.epoch_steps * self.epoch_steps, before // every * every)
        meters = self.steps.meters
        values = self.session.sum(meters).div(since).tolist()
        meters.zero_()
        names = ("loss", *self.task.meters, "grad_norm")
        row = self.task.logged(dict(zip(names, values, strict=True)))
        rates = {f"lr_{group['name']}": group["rate"] for group in self.steps.optimizer.param_groups}
        progress.log({**row, "lr": max(rates.values()), **rates}, self.session.peak_memory())

    def _evaluate(self, progress: Progress) -> bool:
        """Evaluate after an epoch where it is due and not done yet. Returns False when somebody asked to stop."""
        epoch, every = self.step // self.epoch_steps, self.settings.eval_every
        due = every and (epoch % every == 0 or self.step == self.total)
        done = False
        with self.session.together():
            if self.session.main:
                done = any(row["epoch"] == epoch for row in self.run.evaluations())
        done = self.session.of_main(done)
        if not due or done:
            return True
        model = self.model if self.steps.ema is None else self.steps.ema.module
        # Batch statistics are each process's own; those of the main process are what the checkpoint has.
        self.session.share([*model.buffers()])

        def on_batch(done: int, total: int) -> None:
            progress.evaluating(done, total)
            if self.session.any(self.stop.requested is not None):
                raise InterruptedError

        try:
            found = self.task.evaluate(model, self.run.folder, epoch, self.session, on_batch, self._ends)
        except InterruptedError:
            return False
        with self.session.together():
            if found is not None:
                self._keep(found, epoch, progress)
        return True

    def _keep(self, found: Evaluation, epoch: int, progress: Progress) -> None:
        """Write and show an evaluation."""
        row = {"step": self.step, "epoch": epoch, **found.metrics}
        progress.evaluated(row, found)
        with JsonLines(self.run.evaluations_path) as lines:
            lines.append(row)
        shown = self.experiment.metrics
        scores = Scores(self.experiment.metrics_title, {each.label: each.key for each in shown}, shown[0].scale)
        plot_curves(self.run.metrics(), self.run.evaluations(), scores, self.run.folder / "curves.png")
        self.task.draw(self.run.folder, epoch)
        self._discard()

    def _discard(self) -> None:
        """Remove what evaluations left that nothing needs any more; what an earlier try did not come to, as well."""
        finished = self.step == self.total
        for epoch in superseded(self.run.evaluations(), self.experiment.metrics[0].key, finished):
            self.task.discard(self.run.folder, epoch)

    def _interrupted(self) -> int:
        self.save()
        self.log(
            f"interrupted ({self.stop.requested or 'another process'}): saved at step {self.step} of {self.total}. "
            "The same command resumes from here"
        )
        return self.stop.exit_code or 143

    def log(self, text: str) -> None:
        """Print a message, on the main process."""
        if self.session.main:
            _log.info("%s", text)
