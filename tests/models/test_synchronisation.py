"""A training step waits for the device at most once a micro batch: for the matching costs, where the host matches."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from reads import READS, Reads
from torch import Tensor

from detr_container.base.processes import ProcessInfo
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig, LossConfig
from detr_container.config.experiments import FOCAL
from detr_container.datasets.batch import Batch, Targets
from detr_container.engine.control import Control, Flags
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper
from detr_container.tasks.detection.task import DetectionTask

HEAD = HeadConfig(queries=7, width=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=48, dropout=0.1)
TINY = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=0)
EXPERIMENTS = {
    "detr": DetectionExperiment(head=HEAD, backbone=BackboneConfig(name="resnet18", weights="none")),
    "process": DetectionExperiment(
        head=HEAD, loss=LossConfig(normalise="process"), backbone=BackboneConfig(name="resnet18", weights="none")
    ),
    "smca": DetectionExperiment(
        head=replace(HEAD, kind="smca"), loss=FOCAL, backbone=replace(TINY, norm="batch", drop_path=0.1)
    ),
}
BOXES = torch.tensor([[0.5, 0.5, 0.3, 0.4]] * 3)
TARGETS = Targets.of_images(torch.tensor([0, 2, 1]).split((2, 0, 1)), BOXES.split((2, 0, 1)))


def test_the_counter_sees_what_reads() -> None:
    x = torch.randn(4)
    with Reads() as reads:
        x.sum().item()
        (x > 0).nonzero()
        x[x > 0]
        bool(x.sum() > 0)
        with reads.pause():
            x.tolist()
    assert reads.found["_local_scalar_dense"] == 2
    assert sum(reads.found.values()) == 4


def padded_batch() -> Batch:
    sizes = torch.tensor([(64, 96), (50, 70), (64, 32)])
    images = torch.randint(256, (3, 3, 64, 96), dtype=torch.uint8)
    return Batch(images, sizes, TARGETS, (1, 2, 3), ((64, 96),) * 3, True)


def training_step(experiment: DetectionExperiment, device: str) -> Callable[[], Flags]:
    """The step that `train` takes."""
    task = DetectionTask(experiment, None, 3)
    model = task.build(weights=False).to(device).train()
    session = Session(ProcessInfo(), torch.device(device))
    stepper = Stepper(task, model, replace(experiment.train, ema_decay=0.9), 0, session)
    stepper.begin()
    batch = padded_batch()
    batch = batch.pin_memory() if device == "cuda" else batch
    numbers = itertools.count()
    return lambda: stepper.take([batch, batch], next(numbers), 0.5)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_but_the_assignment_reads_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = training_step(EXPERIMENTS[name], "cpu")
    reads, asked, solve, read = Reads(), list[torch.Size](), DetectionTask.answer, Control.pending

    def answer(task: DetectionTask, costs: Tensor, batch: Batch) -> Tensor:
        # On the host, after the one transfer.
        asked.append(costs.shape)
        with reads.pause():
            return solve(task, costs, batch)

    def pending(control: Control) -> Flags:
        # On a CPU the flags are there at once; on a GPU they came while the step before was computed.
        with reads.pause():
            return read(control)

    monkeypatch.setattr(DetectionTask, "answer", answer)
    monkeypatch.setattr(Control, "pending", pending)
    step()
    with reads:
        step()
    assert asked == [(2, 3, 7 * 2 + 1)] * 4
    assert reads.found == Counter()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_gradient_reads_values(name: str) -> None:
    """By the profiler: some gradients, such as that of a product, take another way while a dispatch mode looks."""
    task = DetectionTask(EXPERIMENTS[name], None, 3)
    model, batch = task.build(weights=False).train(), padded_batch()
    output = task.forward(model, batch)
    matches = task.answer(task.question(output, batch), batch)
    total, _ = task.loss(output, matches, batch, torch.tensor([3.0, 3.0]), 1.0)
    product = torch.rand(5, 2, requires_grad=True).prod(dim=-1).sum()
    found = [Counter(event.name for event in profiled(loss.backward)) for loss in (product, total)]
    assert found[0]["aten::_local_scalar_dense"] == 1
    assert found[1]["aten::mul"] > 20
    assert [event for event in found[1] if event.removeprefix("aten::") in READS or "sort" in event] == []


def profiled(call: Callable[[], object]) -> Sequence[Any]:
    """The operations of a call."""
    with torch.autograd.profiler.profile() as profile:
        call()
    return profile.function_events


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("matching", "graphs", "precision"),
    [("device", "auto", "bf16"), ("host", "auto", "fp32"), ("device", "off", "fp32"), ("host", "off", "bf16")],
)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_wait_a_micro_batch(
    name: str, matching: Any, graphs: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever waits is an error, but for an event: one for the flags, and where the host matches one a micro batch."""
    experiment = EXPERIMENTS[name]
    train = replace(experiment.train, precision=precision, matching=matching, graphs=graphs)
    step = training_step(replace(experiment, train=train), "cuda")
    waits, wait = list[torch.cuda.Event](), torch.cuda.Event.synchronize

    def counted(event: torch.cuda.Event) -> None:
        waits.append(event)
        wait(event)

    monkeypatch.setattr(torch.cuda.Event, "synchronize", counted)
    # Graphs of a batch are recorded in the first step, of the update in the second. The flags that the third reads are
    # sent by the second, and have arrived.
    step()
    step()
    torch.cuda.synchronize()
    waits.clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == (1 if matching == "device" else 3)
