"""Activation checkpointing changes what is kept, and no result, name or random number."""

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from runs import one_thread
from torch import Tensor, nn

from detr_container.base.processes import ProcessInfo
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, DetectionTrainConfig, HeadConfig
from detr_container.config.experiments import FOCAL
from detr_container.engine.graphs import why_eager
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper
from detr_container.engine.task import Task
from detr_container.models.activation_checkpointing import draws
from detr_container.models.detector import Detector
from detr_container.tasks.detection.largest import LargestBatch, synthetic_batch
from detr_container.tasks.detection.task import DetectionTask

Which = Literal["none", "backbone", "all"]
Precision = Literal["fp32", "tf32", "bf16"]
EVERY: tuple[Which, ...] = ("none", "backbone", "all")
HEAD = HeadConfig(queries=5, width=32, heads=4, encoder_layers=2, decoder_layers=2, feedforward=128, dropout=0.0)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "resnet, frozen norms and stages": ("detr", {"name": "resnet18", "frozen_stages": 2}, {}),
    "resnet, batch statistics and dropout": ("smca", {"name": "resnet18", "norm": "batch"}, {"dropout": 0.1}),
    "container, everything random": ("smca", {"norm": "batch", "drop_path": 0.3}, {"dropout": 0.1}),
    "container, pre-norm": ("detr", {}, {"pre_norm": True}),
    "container, learned weighing": ("detr", {"name": "container_tiny", "drop_path": 0.3}, {}),
    "container, dense": ("smca", {"name": "container_pam_tiny", "dense": "interpolate", "drop_path": 0.2}, {}),
    "timm convnext": ("detr", {"name": "timm/convnext_atto", "drop_path": 0.2, "norm": "batch"}, {}),
    "timm efficientnet": ("detr", {"name": "timm/mobilenetv2_035", "norm": "batch"}, {}),
    "timm vit": ("smca", {"name": "timm/vit_pwee_patch16_reg1_gap_256"}, {"dropout": 0.1}),
}


def stepper(name: str, which: Which, precision: Precision = "fp32") -> Stepper:
    """Ready to step, from the same random weights each time."""
    kind, backbone, head = CASES[name]
    train = DetectionTrainConfig(checkpoint_activations=which, precision=precision, ema_decay=0.5)
    usual = {"name": "container_light_small", "weights": "none", "frozen_stages": 1}
    experiment = DetectionExperiment(
        head=replace(HEAD, kind=kind, **head), backbone=BackboneConfig(**{**usual, **backbone}), train=train
    )
    experiment = replace(experiment, loss=FOCAL) if kind == "smca" else experiment
    task = DetectionTask(experiment, None, 3)
    model = task.build(weights=False).train()
    steps = Stepper(task, model, experiment.train, 0, Session(ProcessInfo(), torch.device("cpu")))
    steps.begin()
    return steps


def batch(side: int = 64, seed: int = 0) -> Any:
    return synthetic_batch(LargestBatch(side, side, (3, 1), padded=True), 3, seed)


def kept_bytes(steps: Stepper) -> int:
    """What a forward pass keeps for the gradient, beside parameters and buffers: each memory once."""
    mine = {each.untyped_storage().data_ptr() for each in (*steps.model.parameters(), *steps.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = steps.task.forward(steps.model, batch(128))
    assert output.logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_same_bit_for_bit(name: str) -> None:
    with one_thread():
        usual = stepper(name, "none")
        found = []
        for which in EVERY:
            steps = stepper(name, which)
            assert list(steps.model.state_dict()) == list(usual.model.state_dict())
            assert bool(steps.checkpointed) == (which != "none")
            for number in range(3):
                steps.take([batch(64, number), batch(96, number)], number, 1.0)
            assert steps.ema is not None
            moments = steps.optimizer.state_dict()["state"]
            found.append(
                {
                    **{f"moment {place} {key}": entry[key] for place, entry in moments.items() for key in entry},
                    **{f"ema {key}": value for key, value in steps.ema.module.state_dict().items()},
                    **steps.model.state_dict(),
                    "meters": steps.meters,
                    "next draw": torch.rand(4),
                }
            )
        for other in found[1:]:
            for key, value in found[0].items():
                assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", CASES)
def test_less_is_kept_for_the_gradient(name: str) -> None:
    with one_thread():
        none, some, every = (kept_bytes(stepper(name, which)) for which in EVERY)
    assert some < 0.5 * none
    assert every < some


@pytest.mark.parametrize("name", list(CASES)[:5])
def test_bfloat16_computes_the_same_again(name: str) -> None:
    with one_thread():
        gradients = []
        for which in (EVERY[0], EVERY[2]):
            steps = stepper(name, which, "bf16")
            steps.take([batch(64)], 0, 1.0)
            gradients.append([steps.meters, steps.last_norm, *steps.model.parameters()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients, strict=True))


def test_copies_compute_with_their_own_weights_and_evaluation_keeps_nothing() -> None:
    steps = stepper("container, pre-norm", "all")
    copied = copy.deepcopy(steps.model)
    assert isinstance(copied, Detector)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert not bool(copied.backbone(torch.rand(1, 3, 64, 64))[-1].any())
        assert bool(steps.model.backbone(torch.rand(1, 3, 64, 64))[-1].any())


def test_what_draws_random_numbers_is_known() -> None:
    for name, expected in {
        "resnet, frozen norms and stages": False,
        "resnet, batch statistics and dropout": False,
        "container, everything random": True,
        "timm convnext": True,
        "timm efficientnet": False,
        "timm vit": False,
    }.items():
        assert any(map(draws, stepper(name, "backbone").checkpointed)) == expected, name
    assert any(map(draws, stepper("resnet, batch statistics and dropout", "all").checkpointed))
    assert not any(map(draws, stepper("resnet, frozen norms and stages", "all").checkpointed))


def test_why_steps_that_draw_again_run_without_graphs() -> None:
    task = DetectionTask(DetectionExperiment(), None, 3)
    gpu = torch.device("cuda")
    assert why_eager("auto", gpu, task.why_eager) == ""
    assert "makes again what dropout or drop-path has drawn" in why_eager("auto", gpu, task.why_eager, drawn_again=True)


def test_a_task_without_such_parts_says_so() -> None:
    class Other(DetectionTask):
        checkpointed = Task.checkpointed

    task = Other(DetectionExperiment(), None, 3)
    with pytest.raises(ValueError, match=r"train\.checkpoint_activations=all: Other names no parts of Linear"):
        task.checkpointed(nn.Linear(1, 1), "all")
