"""A training step reads from the device once: the matching costs."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detr_container.config.experiments import FOCAL
from detr_container.config.settings import BackboneConfig, Experiment, HeadConfig
from detr_container.datasets.batch import Targets
from detr_container.engine.optimizer import clipped_step, make_optimiser, set_learning_rates
from detr_container.models.criterion import diagnostics
from detr_container.models.matcher import Matcher, to_device
from detr_container.tasks.detection.build import build_criterion, build_detector, build_matcher

HEAD = HeadConfig(queries=7, width=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=48, dropout=0.1)
TINY = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=0)
EXPERIMENTS = {
    "detr": Experiment(head=HEAD, backbone=BackboneConfig(name="resnet18", weights="none")),
    "smca": Experiment(
        head=replace(HEAD, kind="smca"), loss=FOCAL, backbone=replace(TINY, norm="batch", drop_path=0.1)
    ),
}
TARGETS = Targets(torch.tensor([0, 2, 1]), torch.tensor([[0.5, 0.5, 0.3, 0.4]] * 3), (2, 0, 1))
# What cannot be computed without knowing values on the host: a scalar, the number of elements of a result, or a copy
# to another device.
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "item", "_to_cpu")


class Reads(TorchDispatchMode):
    """Counts the operations that would have to wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # A mask as an index has as many results as it has true values.
        indices = (
            args[1] if name.startswith(("index", "_index")) and len(args) > 1 and isinstance(args[1], list) else []
        )
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        if not self.paused and (name in READS or masked):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused = True
        yield
        self.paused = False


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


def training_step(experiment: Experiment, device: str) -> Callable[[Callable[..., Any]], None]:
    """One step as the training loop takes it; its argument makes the matcher's call."""
    model = build_detector(experiment, 3, weights=False).to(device).train()
    matcher, criterion = build_matcher(experiment), build_criterion(experiment)
    optimiser = make_optimiser(model, experiment.train)
    images = torch.randint(256, (3, 3, 64, 96), dtype=torch.uint8).to(device)
    sizes = torch.tensor([(64, 96), (50, 70), (64, 32)]).to(device)
    targets = TARGETS.to(device)
    meters = torch.zeros(4, device=device)

    def step(match: Callable[..., Any]) -> None:
        set_learning_rates(optimiser, 0.5)
        normalisers = to_device(criterion.normalisers(targets.counts, HEAD.queries), meters.device, torch.float32)
        output = model(images, sizes)
        matches = match(matcher, output, targets, normalisers)
        losses = criterion(output, targets, matches, normalisers)
        losses.total.backward()
        extra = diagnostics(output, targets, matches, experiment.loss.classification == "softmax")
        norm, _ = clipped_step(optimiser, experiment.train.clip)
        meters.add_(torch.stack((losses.total.detach(), losses.terms["l1"][-1], extra["class_error"], norm)))

    return step


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_but_the_matcher_reads_values(name: str) -> None:
    step = training_step(EXPERIMENTS[name], "cpu")
    reads = Reads()
    costs = []

    def match(matcher: Matcher, *arguments: Any) -> Any:
        # What is computed on the device is watched, what comes after the transfer is not.
        costs.append(matcher.costs(*arguments[:2]))
        with reads.pause():
            return matcher(*arguments)

    step(match)
    with reads:
        step(match)
    assert len(costs) == 2
    assert reads.found == Counter()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_synchronisation_a_step(name: str, precision: str) -> None:
    """Everything but the copy of the matcher's costs runs while waiting for the device is an error."""
    step = training_step(EXPERIMENTS[name], "cuda")
    transfers = []
    plain = torch.Tensor.cpu

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("default")
        transfers.append(tensor.shape)
        result = plain(tensor)
        torch.cuda.set_sync_debug_mode("error")
        return result

    def match(matcher: Matcher, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", copy)
            return matcher(*arguments)

    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        step(match)
        torch.cuda.synchronize()
        transfers.clear()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(match)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(transfers) == 1
