"""A classifier's step that is recorded and replayed is the step, with all that is random; no value is read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from classifiers import debug
from reads import READS, Reads
from runs import one_thread
from tape import Tape
from torch import Tensor

from detr_container.base.processes import ProcessInfo
from detr_container.config.classification import ClassificationExperiment
from detr_container.datasets.labelled import LabelledBatch
from detr_container.engine.control import Control, Flags
from detr_container.engine.graphs import Recorder
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper
from detr_container.tasks.classification.task import ClassificationTask

STEPS = 5
EXPERIMENTS = {
    "all": debug(Path("nowhere"), backbone__drop_path=0.3),
    "timm": debug(Path("nowhere"), backbone__name="timm/test_vit", data__size=160, backbone__drop_path=0.0),
    "activation checkpointing": debug(
        Path("nowhere"), backbone__drop_path=0.0, train__checkpoint_activations="backbone"
    ),
}


def micro_batch(seed: int, side: int) -> LabelledBatch:
    """Noise of which a block is to be erased, to be mixed in one of both ways."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.tensor([[1, 2, 9, 7], [0, 0, 0, 0], [4, 0, 20, 30], [0, 0, 0, 0]])
    cut = seed % 2 == 0
    return LabelledBatch(
        torch.randint(256, (4, 3, side, side), dtype=torch.uint8, generator=generator),
        torch.randint(5, (4,), generator=generator),
        blocks.roll(seed, 0),
        torch.tensor([0.75 if cut else 0.2 + 0.1 * (seed % 3)]),
        torch.tensor([3, 5, 3 + side // 2, 5 + side // 2] if cut else [0, 0, 0, 0]),
        (4 * seed, 4 * seed + 1, 4 * seed + 2, 4 * seed + 3),
    )


def stepper(experiment: ClassificationExperiment, device: str, recorder: Recorder | None) -> Stepper:
    """Ready to step, from random weights that are the same each time; a rate that float32 holds exactly."""
    experiment = replace(experiment, train=replace(experiment.train, lr=2.0**-10))
    task = ClassificationTask(experiment, None, 5)
    model = task.build(weights=False).to(device).train()
    steps = Stepper(task, model, experiment.train, 3, Session(ProcessInfo(), torch.device(device)), recorder)
    steps.begin()
    return steps


def train(steps: Stepper, side: int, numbers: Sequence[int] = range(STEPS)) -> Iterator[Tensor]:
    """The meters after each step of two micro batches; the learning rate is another each time."""
    for number in numbers:
        micro = [micro_batch(2 * number + place, side) for place in range(2)]
        pinned = [batch.pin_memory() for batch in micro] if steps.session.device.type == "cuda" else micro
        steps.take(pinned, number, 2.0**-number)
        yield steps.meters.clone()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_replayed_steps_are_the_steps(name: str) -> None:
    experiment, tape = EXPERIMENTS[name], Tape()
    with one_thread():
        eager, replayed = (stepper(experiment, "cpu", recorder) for recorder in (None, tape))
        pairs = list(zip(*(train(each, experiment.data.size) for each in (eager, replayed)), strict=True))
    for number, (mine, theirs) in enumerate(pairs):
        assert torch.equal(mine, theirs), f"step {number}: {mine.tolist()} and {theirs.tolist()}"
    for key, value in eager.model.state_dict().items():
        assert torch.equal(value, replayed.model.state_dict()[key]), key
    # Two for the one shape that there is, and the optimizer's.
    assert tape.recorded == 3
    assert tape.replays == 2 * (2 * STEPS - 1) + STEPS - 1


def test_each_step_draws_other_noise() -> None:
    """The same images under the same weights have another loss in another step, and the same in the same."""
    experiment = debug(Path("nowhere"), backbone__drop_path=0.0)
    batch = micro_batch(1, 32)
    with one_thread():
        losses = []
        for recorder in (None, Tape()):
            steps = stepper(experiment, "cpu", recorder)
            for number in (0, 1, 2, 1):
                steps.meters.zero_()
                steps.take([batch], number, 0.0)
                losses.append(float(steps.meters[0]))
    assert losses[1] == losses[3]
    assert len({*losses[:3]}) == 3
    assert losses[:4] == losses[4:]


@pytest.mark.parametrize("name", ["all", "timm"])
def test_no_step_reads_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, reads, read = EXPERIMENTS[name], Reads(), Control.pending

    def pending(control: Control) -> Flags:
        # On a CPU the flags are there at once; on a GPU they came while the step before was computed.
        with reads.pause():
            return read(control)

    monkeypatch.setattr(Control, "pending", pending)
    with one_thread():
        steps = stepper(experiment, "cpu", None)
        list(train(steps, experiment.data.size, [0]))
        with reads:
            list(train(steps, experiment.data.size, [1]))
        task, batch = steps.task, micro_batch(1, experiment.data.size)
        total, _ = task.loss(task.forward(steps.model, batch), None, batch, torch.tensor([4.0]), 1.0)
        with torch.autograd.profiler.profile() as profile:
            total.backward()
    assert reads.found == Counter()
    names = Counter(event.name.removeprefix("aten::") for event in profile.function_events)
    assert names["mul"] > 0
    assert names.total() > 50
    assert [name for name in names if name in READS] == []


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_a_gpu(precision: str, graphs: str) -> None:
    experiment = debug(Path("nowhere"), device="cuda", train__precision=precision, train__graphs=graphs)
    steps = stepper(experiment, "cuda", None)
    list(train(steps, 32, [0, 1]))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(train(steps, 32, [2]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
