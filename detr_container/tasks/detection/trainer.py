"""Training, from a configuration to a finished run.

Nothing random has a state that must be saved: the pictures of a step and the dropout of a step follow from the seed
and the step alone. A checkpoint is therefore weights, optimiser and a number, and a resumed run is the uninterrupted
run, bit for bit where the arithmetic is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detr_container.base.files import JsonLines
from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import asking
from detr_container.config import settings as configuration
from detr_container.config.memory import for_step
from detr_container.config.settings import Experiment
from detr_container.datasets.batch import Batch
from detr_container.datasets.loader import StepBatches, batches, steps_per_epoch, training_loader
from detr_container.drawing.curves import plot_curves
from detr_container.engine import optimizer as optim
from detr_container.engine.randomness import seed_step
from detr_container.engine.resume import (
    FORMAT,
    check_head,
    check_tensors,
    data_changes,
    my_meters,
    newest_on_all,
    restore_optimiser,
)
from detr_container.engine.run import Run
from detr_container.engine.session import Session, StoppedError, session
from detr_container.models.criterion import diagnostics
from detr_container.models.detector import Detector
from detr_container.models.matcher import NonFiniteError, to_device

from .build import Data, build_criterion, build_detector, build_matcher, start_from
from .evaluate import autocast, evaluate_to
from .gallery import draw_validation
from .progress import Progress
from .scores import Scores
from .together import data_on_all, versions_on_all

_log = logging.getLogger(__name__)

METERS = ("loss", "class", "l1", "giou", "class_error", "cardinality_error", "grad_norm")


def train(experiment: Experiment, folder: Path, stop: StopRequest | None = None) -> int:
    """Train an experiment in a run folder, from its newest checkpoint if there is one.

    stop: who listens to signals already, if anybody. SIGUSR2 counts, too: it is what Slurm can be asked to send ahead
    of a time limit. Returns the exit status: 0 when finished (or at `train.max_steps`), 128 + the signal's number when
    interrupted. Raises ValueError for what the person can mend, FloatingPointError when something is not finite.
    """
    with nullcontext(stop) if stop is not None else StopRequest(usr2=True) as stop:
        try:
            with session(experiment.device, stop) as here:
                with asking("the annotation files", {}):
                    data = data_on_all(here, experiment)
                with here.alone_in(folder), asking("training", for_step(experiment)):
                    return Trainer(experiment, Run(folder), data, here, stop).run_to_end()
        except StoppedError as error:
            _log.warning("%s: nothing was begun", error)
            return stop.exit_code


class Trainer:
    """A run in progress on this process."""

    def __init__(self, experiment: Experiment, run: Run, data: Data, here: Session, stop: StopRequest) -> None:
        self.experiment, self.run, self.data, self.here, self.stop = experiment, run, data, here, stop
        self.settings = experiment.train
        self.epoch_steps = steps_per_epoch(len(data.train), self.settings.batch)
        self.total = self.settings.epochs * self.epoch_steps
        self.step = 0
        self.saved = -1
        self.checkpoints = run.checkpoints(self.settings.keep_checkpoints)
        self.versions = versions_on_all(here, data)
        found = newest_on_all(self.checkpoints, here)
        with here.together():
            changed = self._open(*found) if found else []
            # Before anything is built or written, since it raises where the batch cannot be divided.
            self.sampler = self._sampler()
            # Weights from elsewhere are read by the main process alone, and shared.
            self.model = build_detector(experiment, len(data.classes), weights=found is None and here.main)
            if found is None and experiment.init and here.main:
                self._say(str(start_from(self.model, experiment, data.classes, Path(experiment.init))))
            self.model.to(here.device)
            self.model.train()
            self.optimiser = optim.make_optimiser(self.model, self.settings)
            self.names = optim.parameter_names(self.model, self.optimiser)
            if found:
                check_tensors(*found, self.model, self.optimiser, self.names, bool(self.settings.ema_decay))
        here.share([*self.model.parameters(), *self.model.buffers()])
        decay = self.settings.ema_decay
        self.ema = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
        )
        self.matcher, self.criterion = build_matcher(experiment), build_criterion(experiment)
        self.meters = torch.zeros(len(METERS), device=here.device)
        self.bad = torch.zeros((), device=here.device)
        self.norms = torch.zeros(len(self.names), device=here.device)
        self.last_norm = torch.zeros((), device=here.device)
        self.last_images: list[int] = []
        with here.together():
            if found:
                self._restore(*found)
            if here.main:
                facts = {"step": self.step, "data": self.versions} | ({"changed": changed} if changed else {})
                run.describe(experiment, data.classes, facts)
                run.rewind(self.step)
        self.parallel = here.spread(self.model)
        if here.main:
            for line in changed:
                _log.warning("%s", line)
            pictures = f"{len(data.train)} training and {len(data.val)} validation pictures"
            place = f"{here.world} x {here.device.type}"
            self._say(f"{run.folder}: {pictures}, {self.total} steps of {self.settings.batch} on {place}")
            self._say(optim.parameter_counts(self.model))

    # -- the whole run ------------------------------------------------------------------------------------------

    def run_to_end(self) -> int:
        """Step, log, save and evaluate until the schedule or somebody says stop."""
        try:
            return self._run()
        except InterruptedError:
            if self.here.world == 1:  # Several are in the step, but for this one, and cannot save together.
                return self._interrupted()
            raise

    def _run(self) -> int:
        with Progress(self.run, self.here.main, self.step, self.total, self.epoch_steps, self.settings) as progress:
            supply, began, saved_at = self._batches(), self.step, time.monotonic()
            last = min(self.total, self.step + (self.settings.max_steps or self.total))
            while True:
                if self.step % self.epoch_steps == 0 and self.step:
                    self._save()
                    if not self._evaluate(progress):
                        return self._interrupted()
                    progress.resume()
                if self.step >= last:
                    break
                minutes = (time.monotonic() - saved_at) / 60
                # The first follows the second step, so that a run gets on however often it is killed, and no sooner,
                # since only that step shows whether what the first one has made can be gone on from.
                early = self.step == began + 1
                due = self.settings.checkpoint_minutes > 0 and (early or minutes >= self.settings.checkpoint_minutes)
                stop, save = self._step(next(supply), due)
                self.step += 1
                progress.advance(self.step)
                if self.step % self.settings.log_every == 0 or self.step % self.epoch_steps == 0:
                    self._log(progress)
                if stop:
                    return self._interrupted()
                if save:
                    self._save()
                    saved_at = time.monotonic()
            self._save()
        if self.step == began == self.total:
            self._say(f"finished: step {self.step} of {self.total}. A larger train.epochs would go on from here")
        elif self.step < self.total:
            self._say(f"stopped after {self.settings.max_steps} steps; the same command goes on from step {self.step}")
        return 0

    def _batches(self) -> Iterator[list[Batch]]:
        """The micro batches of each step, on this process."""
        data = self.experiment.data
        loader = training_loader(
            self.data.train,
            self.sampler,
            multiple=self.model.backbone.size_multiple,
            canvas=data.canvas,
            workers=data.workers,
            pin_memory=self.here.device.type == "cuda",
        )
        supply = batches(loader, self._ends)
        for _ in range(self.step, self.total):
            yield [next(supply) for _ in range(self.sampler.accumulation)]

    def _ends(self, short: bool) -> bool:
        """Whether to stop instead of waiting for a batch: at once; among others, who wait for us, if it cannot come."""
        return self.stop.requested is not None and (short or self.here.world == 1)

    def _sampler(self) -> StepBatches:
        return StepBatches(
            len(self.data.train),
            seed=self.experiment.seed,
            batch=self.settings.batch,
            micro_batch=self.settings.micro_batch,
            total_steps=self.total,
            start_step=self.step,
            rank=self.here.process.rank,
            world=self.here.world,
        )

    # -- one step -----------------------------------------------------------------------------------------------

    def _step(self, micro: list[Batch], due: bool) -> tuple[bool, bool]:
        """One optimiser step on the micro batches. Returns whether to stop and whether to save, agreed by all."""
        experiment, device = self.experiment, self.here.device
        queries = experiment.head.queries
        sums = [self.criterion.normalisers(batch.targets.counts, queries) for batch in micro]
        wishes = (float(self.stop.requested is not None), float(due and self.here.main))
        values = [*map(sum, zip(*sums, strict=True)), *wishes]
        shared = self.here.sum(to_device(values, device, torch.float32))
        norms = self.criterion.of_step(sums, shared[:2], self.here.world)
        signals = torch.cat((shared[2:], self.bad[None]))
        # Dropout draws from the step, not from what was drawn before, so a resumed run draws the same.
        seed_step(experiment.seed, self.step, self.here.process.rank, device)
        optim.set_learning_rates(self.optimiser, optim.lr_factor(self.step, self.epoch_steps, self.settings))
        told: list[float] = []
        for turn, host in enumerate(micro):
            batch = host.to(device)
            with self._no_sync(turn < len(micro) - 1):
                with autocast(experiment, device):
                    output = self.parallel(batch.images, batch.sizes, batch.padded)
                try:
                    matches = self.matcher(output, batch.targets, signals if turn == 0 else None)
                except NonFiniteError as error:
                    raise self._not_finite(error, batch) from error
                if turn == 0:
                    told = matches.signals
                    self._check_last_step(told[2])
                losses = self.criterion(output, batch.targets, matches, norms[turn])
                # DDP averages gradients over processes; the normalisers already count all of them.
                (losses.total * self.here.world).backward()
            extra = diagnostics(output, batch.targets, matches, experiment.loss.classification == "softmax")
            self._measure(losses.total.detach(), losses.terms, extra, len(micro))
        self.last_images = [image_id for host in micro for image_id in host.image_ids]
        self.last_norm, self.norms = optim.clipped_step(self.optimiser, self.settings.clip)
        self.bad = (~self.last_norm.isfinite()).float()
        self.meters[-1] += self.last_norm / self.here.world
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return told[0] > 0, told[1] > 0

    def _no_sync(self, waiting: bool) -> Any:
        if waiting and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def _measure(self, total: Tensor, terms: dict[str, Tensor], extra: dict[str, Tensor], turns: int) -> None:
        """Add one micro batch to the meters; losses sum over processes, diagnostics are averaged."""
        share = 1 / (turns * self.here.world)
        none = torch.zeros_like(total)
        rows = [total, *(terms[name][-1] for name in ("class", "l1", "giou"))]
        rows += [extra.get(name, none) * share for name in ("class_error", "cardinality_error")]
        self.meters[:-1] += torch.stack(rows)

    # -- what is not finite -------------------------------------------------------------------------------------

    def _not_finite(self, error: NonFiniteError, batch: Batch) -> FloatingPointError:
        return FloatingPointError(
            f"NaN or Inf in what decoder layer {error.layer} predicts for image {batch.image_ids[error.image]} "
            f"at step {self.step}; {self._circumstances()}"
        )

    def _check_last_step(self, bad: float) -> None:
        """Raise when the last step's gradient was not finite; its update was not made."""
        if not bad:
            return
        worst = (~self.norms.isfinite()).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"NaN or Inf in the gradient at step {self.step - 1}, first in parameter {self.names[worst[0]]} "
            f"({len(worst)} of {len(self.names)} parameters), on images {', '.join(map(str, self.last_images))}; "
            f"the update was not made; {self._circumstances()}"
        )

    def _circumstances(self) -> str:
        kept = self.checkpoints.paths()
        return optim.circumstances(self.model, self.optimiser, float(self.last_norm), kept[0] if kept else None)

    # -- what is kept -------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint of this step, unless it is there already."""
        if self.saved == self.step:
            return
        self._check_last_step(float(self.bad))
        meters = self.here.gather(self.meters.tolist())
        with self.here.together():
            if self.here.main:
                self.checkpoints.save(self._state(meters), self.step)
        self.saved = self.step

    def _state(self, meters: list[list[float]]) -> dict[str, Any]:
        """What a checkpoint holds. meters: of every process."""
        moments = self.optimiser.state_dict()["state"]
        state = {
            "format": FORMAT,
            "experiment": configuration.to_dict(self.experiment),
            "classes": [[category.id, category.name] for category in self.data.classes],
            "step": self.step,
            "steps_per_epoch": self.epoch_steps,
            "model": self.model.state_dict(),
            "optimizer": moments,
            "trained": [self.names[index] for index in moments],
            "meters": meters,
            "data": {split: version["sha256"] for split, version in self.versions.items()},
        }
        if self.ema is not None:
            state |= {"ema": self.ema.module.state_dict(), "ema_updates": int(self.ema.n_averaged)}
        return state

    def _open(self, path: Path, state: dict[str, Any]) -> list[str]:
        """Check a checkpoint's settings and set this run to its step. Returns what has changed of the data."""
        changed = self.run.check_resumable(self.experiment, path, state, self.epoch_steps)
        check_head(path, state, len(METERS), self.data.classes)
        self.step = self.saved = state["step"]
        for name, (old, new) in changed.items():
            self._say(f"changed since this run was started: {name} from {old!r} to {new!r}")
        return data_changes(state, self.run.folder, self.versions)

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        """Take over a checked state."""
        self.model.load_state_dict(state["model"])
        restore_optimiser(self.optimiser, state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(state["ema_updates"])
        mine = my_meters(state["meters"], self.here.process.rank, self.here.world)
        if mine is not None:
            self.meters.copy_(torch.tensor(mine))
        self._say(f"resuming from {path}: step {self.step} of {self.total}")

    # -- what is told -------------------------------------------------------------------------------------------

    def _log(self, progress: Progress) -> None:
        """One line of metrics: means over the steps since the last."""
        before, every = self.step - 1, self.settings.log_every
        since = self.step - max(before // self.epoch_steps * self.epoch_steps, before // every * every)
        values = self.here.sum(self.meters).div(since).tolist()
        self.meters.zero_()
        named = dict(zip(METERS, values, strict=True))
        if self.experiment.loss.classification != "softmax":
            del named["cardinality_error"]
        losses = {name: named.pop(name) for name in ("class", "l1", "giou")}
        rates = {f"lr_{group['name']}": group["lr"] for group in self.optimiser.param_groups}
        progress.log({**named, "losses": losses, "lr": rates.get("lr_head", 0.0), **rates}, self.here.peak_memory())

    def _evaluate(self, progress: Progress) -> bool:
        """Evaluate after an epoch where it is due and not done yet. Returns False when somebody said stop."""
        epoch, every = self.step // self.epoch_steps, self.settings.eval_every
        due = every and (epoch % every == 0 or self.step == self.total)
        done = False
        with self.here.together():
            if self.here.main:
                done = any(row["epoch"] == epoch for row in self.run.evaluations())
        done = self.here.of_main(done)
        if not due or done:
            return True
        model: nn.Module = self.model if self.ema is None else self.ema.module
        assert isinstance(model, Detector)
        # Batch statistics are each process's own; those of the main process are what the checkpoint has.
        self.here.share([*model.buffers()])
        folder, data, tell = self.run.folder / "detections" / f"epoch-{epoch:03d}", self.data, self._tell(progress)
        try:
            scores = evaluate_to(
                folder, model, data.val, data.classes, self.experiment, self.here, after_batch=tell, ends=self._ends
            )
        except InterruptedError:
            return False
        with self.here.together():
            if scores is not None:
                self._keep(scores, folder, epoch, progress)
        return True

    def _keep(self, scores: Scores, folder: Path, epoch: int, progress: Progress) -> None:
        """Write and show an evaluation."""
        figures = {name: value for name, value in scores.to_dict().items() if name != "per_class"}
        progress.evaluated({"step": self.step, "epoch": epoch, **figures}, scores)
        with JsonLines(self.run.evaluations_path) as lines:
            lines.append({"step": self.step, "epoch": epoch, **figures})
        plot_curves(self.run.metrics(), self.run.evaluations(), self.run.folder / "curves.png")
        data, target = self.data, self.run.folder / "predictions.png"
        draw_validation(data.val, folder / "detections.json", data.classes, target)

    def _tell(self, progress: Progress) -> Any:
        def after_batch(done: int, total: int) -> None:
            progress.evaluating(done, total)
            if self.here.any(self.stop.requested is not None):
                raise InterruptedError

        return after_batch

    def _interrupted(self) -> int:
        self._save()
        self._say(
            f"interrupted ({self.stop.requested or 'another process'}): saved at step {self.step} of {self.total}. "
            "The same command goes on from here"
        )
        return self.stop.exit_code or 143

    def _say(self, text: str) -> None:
        if self.here.main:
            _log.info("%s", text)
