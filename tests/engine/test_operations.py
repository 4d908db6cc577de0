"""How many operations a training step asks of a device: small steps on a GPU take as long as it takes to start them."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from operations import Operations, as_elsewhere

from detr_container.base.processes import ProcessInfo
from detr_container.config.experiments import detection_named
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper
from detr_container.tasks.detection.largest import LargestBatch, synthetic_batch
from detr_container.tasks.detection.task import DetectionTask


def operations_of(name: str, precision: str) -> Counter[str]:
    """Of a step of two padded images with the averages of weights, after the first."""
    known = detection_named(name)
    train = replace(known.train, precision=precision, ema_decay=0.9)
    experiment = replace(known, backbone=replace(known.backbone, weights="none"), train=train)
    task = DetectionTask(experiment, None, 3)
    stepper = Stepper(task, task.build(weights=False).train(), train, 0, Session(ProcessInfo(), torch.device("cpu")))
    stepper.begin()
    batch, numbers = synthetic_batch(LargestBatch(64, 96, (2, 1), padded=True), 3, 0), itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        as_elsewhere(patch)
        stepper.take([batch], next(numbers), 1.0)
        with Operations() as seen:
            stepper.take([batch], next(numbers), 1.0)
    return seen.found


@pytest.mark.parametrize(("name", "most"), [("detr_r50_50e", 1500), ("smca_r50_50e", 2450)])
def test_the_operations_of_a_step(name: str, most: int) -> None:
    """With one cast for all weights and another for their gradients, bfloat16 takes no more than float32."""
    found = operations_of(name, "bf16")
    total = sum(found.values())
    assert total <= most, found.most_common(25)
    # The model's own weights are cast by two operations; what is left are activations, at the edges of float32.
    assert found["_foreach_copy_"] == 2
    assert found["_to_copy"] <= (30 if name.startswith("detr") else 100)
    # There is work at all: 53 convolutions of a ResNet-50 and one more, attention, the optimizer, the average.
    assert found["convolution"] == 54
    assert found["_fused_adamw_"] >= 1
    assert found["_foreach_lerp_"] == 1
