"""BatchNorm with the statistics of two processes is BatchNorm on their joined batch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from runs import REPOSITORY, environment, free_port
from sync_norm_ranks import CASES, images, network, taken
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from detr_container.config.backbones import BackboneConfig
from detr_container.config.classification import ClassificationExperiment
from detr_container.config.detection import DetectionExperiment
from detr_container.engine.backbones import build_backbone
from detr_container.engine.classifiers import build_classifier
from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.backbones.resnet import ResNetBackbone
from detr_container.models.layers.sync_norm import SyncNorm, SyncNormAct, share_norms
from detr_container.tasks.classification.task import ClassificationTask
from detr_container.tasks.detection.task import DetectionTask

Found = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("shared-norms")
    (folder / "given.json").write_text(json.dumps(str(free_port())))
    command = [sys.executable, str(REPOSITORY / "tests" / "sync_norm_ranks.py"), str(folder)]
    pair = [
        subprocess.Popen([*command, str(rank)], env=environment(), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        stderr = [process.communicate(timeout=300)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n--- rank 1 ---\n".join(stderr)
    assert not any("deprecated" in text for text in stderr), stderr[0]
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_normalise_as_one_with_the_whole_batch(ranks: Found, case: str) -> None:
    whole = taken(network(case), images(case))
    first, second = (found[case] for found in ranks)
    assert first.keys() == whole.keys()
    close(torch.cat((first["out"], second["out"]), dim=1), whole["out"], "outputs")
    close(torch.cat((first["grad"], second["grad"])), whole["grad"], "gradient of the images")
    for name in whole:
        if name.startswith("grad/"):
            assert torch.equal(first[name], second[name])
            # Processes' gradients are averaged, and each has the loss of its own images.
            close(2 * first[name], whole[name], name)
        elif name not in ("out", "grad"):
            assert torch.equal(first[name], second[name])
            close(first[name], whole[name], name)


def close(ours: Tensor, theirs: Tensor, name: str) -> None:
    largest = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * max(1.0, largest), msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("training", [True, False])
def test_within_one_process_it_is_batch_norm_bit_for_bit(training: bool) -> None:
    for make in (
        lambda: Container(SIZES["container_light_tiny"]),
        lambda: ResNetBackbone("resnet18", frozen_norm=False),
        lambda: timm.create_model("efficientnet_lite0", features_only=True),
    ):
        torch.manual_seed(0)
        plain = make().train(training)
        torch.manual_seed(0)
        shared = share_norms(make().train(training))
        x = torch.randn(2, 3, 64, 64)
        for ours, theirs in zip(shared(x), plain(x), strict=True):
            assert torch.equal(ours, theirs)
        assert shared.state_dict().keys() == plain.state_dict().keys()
        assert all(torch.equal(value, shared.state_dict()[name]) for name, value in plain.state_dict().items())
        assert not any(
            type(module) is nn.BatchNorm2d or isinstance(module, BatchNormAct2d) for module in shared.modules()
        )
        assert any(isinstance(module, SyncNorm) for module in shared.modules())


def test_what_timm_put_into_a_norm_stays() -> None:
    norm = BatchNormAct2d(4)
    shared = share_norms(norm)
    assert isinstance(shared, SyncNormAct)
    assert shared.weight is norm.weight
    assert shared.act is norm.act
    x = torch.randn(2, 4, 3, 3)
    assert bool((shared(x) >= 0).all())


@pytest.mark.parametrize("name", ["container_light_tiny", "resnet18", "timm/resnet18"])
@pytest.mark.parametrize("build", [build_backbone, lambda config: build_classifier(config, 3, 64)])
def test_networks_of_every_kind_share_their_norms(name: str, build: Callable[[BackboneConfig], nn.Module]) -> None:
    model = build(BackboneConfig(name=name, weights="none", norm="sync", frozen_stages=1))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, SyncNorm) for norm in norms)
    model.train()
    assert {norm.training for norm in norms} == {True, False}


@pytest.mark.parametrize("name", ["container_pam_tiny", "timm/deit_tiny_patch16_224", "resnet18"])
def test_a_network_without_batch_norm_says_that_the_setting_does_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def said(norm: Any, classifies: bool) -> str:
        caplog.clear()
        config = BackboneConfig(name=name, weights="none", norm=norm, frozen_stages=0)
        _ = build_classifier(config, 3, 64) if classifies else build_backbone(config, canvas=64)
        return " ".join(caplog.messages)

    for norm, classifies in (("frozen", True), ("sync", True), ("sync", False)):
        message = f"backbone.norm={norm} has no effect on {name}, which has no BatchNorm"
        assert said(norm, classifies) == ("" if name == "resnet18" else message)
    # A detector's default does nothing, and is no mistake of anybody's.
    assert not any(said(*settings) for settings in (("batch", True), ("batch", False), ("frozen", False)))


@pytest.mark.parametrize("settings", [DetectionExperiment(), ClassificationExperiment()])
def test_norms_that_processes_share_keep_steps_from_being_recorded(
    settings: DetectionExperiment | ClassificationExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(settings, backbone=replace(settings.backbone, norm="sync"))
    make = DetectionTask if isinstance(settings, DetectionExperiment) else ClassificationTask
    assert make(shared, None, 3).why_eager == ""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert "backbone.norm=sync shares batch statistics" in make(shared, None, 3).why_eager
    assert make(settings, None, 3).why_eager == ""
