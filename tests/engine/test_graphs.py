"""A step that is recorded and replayed is the step: on a CPU by `tape.Tape`, on a GPU by CUDA graphs."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import one_thread
from tape import Tape
from torch import Tensor, nn

from detr_container.base.processes import ProcessInfo
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, DetectionTrainConfig, HeadConfig
from detr_container.config.experiments import FOCAL
from detr_container.datasets.batch import Batch, Sample, collate
from detr_container.datasets.padding import Padding
from detr_container.engine import graphs
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper
from detr_container.tasks.detection.task import DetectionTask

HEAD = HeadConfig(queries=7, width=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=48, dropout=0.1)
TINY = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=1)
EXPERIMENTS = {
    "detr": DetectionExperiment(head=HEAD, backbone=BackboneConfig(name="resnet18", weights="none", frozen_stages=2)),
    "smca": DetectionExperiment(
        head=replace(HEAD, kind="smca"), loss=FOCAL, backbone=replace(TINY, norm="batch", drop_path=0.2)
    ),
    "activation checkpointing": DetectionExperiment(
        head=HEAD,
        backbone=replace(TINY, norm="batch"),
        train=DetectionTrainConfig(checkpoint_activations="backbone"),
    ),
}
SHAPES = ((64, 96), (96, 64), (64, 64))
STEPS = 6


def micro_batches(step: int, count: int) -> list[Batch]:
    """Micro batches of two images of one of three shapes, with 0 to 4 objects each."""
    batches = []
    for place in range(count):
        generator = torch.Generator().manual_seed(100 * step + place)
        height, width = SHAPES[(step + place) % len(SHAPES)]
        samples = []
        for image in range(2):
            objects = int(torch.randint(5, (), generator=generator))
            size = (height - 16 * image, width - 8)
            samples.append(
                Sample(
                    torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator),
                    torch.rand(objects, 4, generator=generator) * 0.3 + 0.2,
                    torch.randint(3, (objects,), generator=generator),
                    10 * step + image,
                    size,
                )
            )
        batches.append(replace(collate(samples, Padding(32, slots=6)), padded=True))
    return batches


def stepper(
    experiment: DetectionExperiment,
    device: str,
    recorder: graphs.Recorder | None,
    kind: type[DetectionTask] = DetectionTask,
    **changed: Any,
) -> Stepper:
    """Ready to step, from random weights that are the same each time."""
    # Rates that float32 holds exactly, since on a device they are of that type.
    rates = {"lr": 2.0**-10, "lr_backbone": 2.0**-12}
    experiment = replace(experiment, train=replace(experiment.train, ema_decay=0.9, **rates, **changed))
    task = kind(experiment, None, 3)
    model = task.build(weights=False).to(device).train()
    steps = Stepper(task, model, experiment.train, 3, Session(ProcessInfo(), torch.device(device)), recorder)
    steps.begin()
    return steps


def train(steps: Stepper, numbers: Sequence[int], accumulation: int = 2) -> list[Tensor]:
    """The meters after each step; the learning rate is another each time."""
    rows = []
    for number in numbers:
        micro = micro_batches(number, accumulation)
        pinned = [batch.pin_memory() for batch in micro] if steps.session.device.type == "cuda" else micro
        steps.take(pinned, number, 2.0**-number)
        rows.append(steps.meters.clone())
    return rows


def state(steps: Stepper) -> dict[str, Tensor]:
    """Weights, buffers, averages and moments."""
    assert steps.ema is not None
    moments = steps.optimizer.state_dict()["state"]
    return {
        **steps.model.state_dict(),
        **{f"ema.{name}": value for name, value in steps.ema.module.state_dict().items()},
        **{f"moment.{index}.{name}": value for index, entry in moments.items() for name, value in entry.items()},
    }


@pytest.mark.parametrize("accumulation", [1, 8])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_replayed_steps_are_the_steps(name: str, accumulation: int) -> None:
    tape = Tape()
    with one_thread():
        eager, replayed = (stepper(EXPERIMENTS[name], "cpu", recorder) for recorder in (None, tape))
        assert eager.eager_because == "no GPU"
        rows = [train(each, range(STEPS), accumulation) for each in (eager, replayed)]
    for number, (mine, theirs) in enumerate(zip(*rows, strict=True)):
        assert torch.equal(mine, theirs), f"step {number}: {mine.tolist()} and {theirs.tolist()}"
    for key, value in state(eager).items():
        assert torch.equal(value, state(replayed)[key]), key
    # Two for each shape, and the optimizer's.
    assert tape.recorded == 2 * len(SHAPES) + 1
    assert tape.replays == 2 * (STEPS * accumulation - len(SHAPES)) + STEPS - 1
    assert eager.ema is not None
    assert replayed.ema is not None
    assert eager.ema.updates == replayed.ema.updates == STEPS
    assert bool(replayed.model.state_dict() and rows[0][-1][0] > 0)


class Reading(DetectionTask):
    """A task whose loss needs a value on the host."""

    def loss(self, output: Any, answer: Any, batch: Any, divisors: Tensor, share: float) -> tuple[Tensor, Tensor]:
        assert float(divisors[0]) > 0
        return super().loss(output, answer, batch, divisors, share)


class Bare:
    """A batch that does not say which tensors it has."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.image_ids = batch, batch.image_ids

    def to(self, device: torch.device) -> Batch:
        return self.batch.to(device)


class OfBare(DetectionTask):
    """A task of such batches."""

    def normalisers(self, batch: Any) -> tuple[float, float]:
        return super().normalisers(batch.batch)

    def answer(self, asked: Tensor, batch: Any) -> Tensor:
        return super().answer(asked, batch.batch)


def test_what_cannot_be_recorded_runs_without_and_says_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    with one_thread():
        eager = stepper(EXPERIMENTS["detr"], "cpu", None)
        reading, bare, many = (
            stepper(EXPERIMENTS["detr"], "cpu", Tape(), kind) for kind in (Reading, OfBare, DetectionTask)
        )
        rows = [train(eager, range(3)), train(reading, range(3)), list[Tensor]()]
        assert caplog.text.count("without CUDA graphs from here on: _local_scalar_dense reads values") == 1
        for number in range(3):
            bare.take([Bare(batch) for batch in micro_batches(number, 2)], number, 2.0**-number)
            rows[-1].append(bare.meters.clone())
        assert caplog.text.count("Bare does not say which tensors it has") == 1
        monkeypatch.setattr(graphs, "LIMIT", 2)
        rows.append(train(many, range(3)))
        assert caplog.text.count("2 shapes have one already") == 1
    for others in rows[1:]:
        for mine, theirs in zip(rows[0], others, strict=True):
            assert torch.equal(mine, theirs)


def test_gradients_lie_in_one_buffer_as_their_parameters_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), nn.Linear(7, 2))
    flat = graphs.FlatGradients([*model.parameters()])
    for number, parameter in enumerate(model.parameters(), start=1):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.data_ptr() % 64 == flat.buffer.data_ptr() % 64
        parameter.grad.fill_(number)
    assert flat.buffer.sum() == sum(n * p.numel() for n, p in enumerate(model.parameters(), start=1))
    flat.buffer.zero_()
    assert all(not bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 8])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_cuda_graphs_are_the_steps(name: str, precision: str, accumulation: int) -> None:
    """Bit for bit where the kernels are deterministic, as far as PyTorch has such; else to rounding."""
    experiment = replace(EXPERIMENTS[name], train=replace(EXPERIMENTS[name].train, precision=precision))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        recorded = stepper(experiment, "cuda", None)
        assert recorded.eager_because == ""
        eager, again = (stepper(experiment, "cuda", None, graphs="off") for _ in range(2))
        rows = [train(each, range(STEPS), accumulation) for each in (eager, again, recorded)]
    finally:
        torch.use_deterministic_algorithms(False)
    found, repeated, theirs = (state(each) for each in (eager, again, recorded))
    exact = all(torch.equal(found[key], repeated[key]) for key in found)
    for mine, other in zip(rows[0], rows[2], strict=True):
        if exact:
            assert torch.equal(mine, other)
        torch.testing.assert_close(mine, other, rtol=1e-3 if precision == "fp32" else 0.05, atol=1e-4)
    for key in found if exact else ():
        assert torch.equal(found[key], theirs[key]), key


@pytest.mark.gpu
def test_the_graphs_of_many_shapes_share_their_memory() -> None:
    steps = stepper(EXPERIMENTS["smca"], "cuda", None)
    used = []
    for number in range(2 * len(SHAPES)):
        train(steps, [number], 1)
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_reserved())
    # All shapes are known after the first round.
    assert used[-1] <= used[len(SHAPES) - 1] * 1.05
