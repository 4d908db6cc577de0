"""A norm behind the feature maps that a head reads: which one it is, and that it goes the way of all weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detr_container.config.backbones import BackboneConfig
from detr_container.config.experiments import detection_named
from detr_container.engine.backbones import build_backbone
from detr_container.engine.classifiers import build_classifier
from detr_container.models.classifier import BackboneClassifier
from detr_container.models.layers.frozen_norm import FrozenNorm
from detr_container.tasks.detection.build import build_detector
from detr_container.tasks.detection.groups import parameter_counts, parameter_groups

TINY = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=0, norm="batch", output_norm="batch")
IMAGES = torch.linspace(-2, 2, 2 * 3 * 64 * 64).view(2, 3, 64, 64)
Saved = tuple[BackboneClassifier, Path]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """One whose norms have seen images, and its checkpoint."""
    torch.manual_seed(0)
    model = build_classifier(replace(TINY, output_norm="none"), classes=3, size=64)
    assert isinstance(model, BackboneClassifier)
    for _ in range(3):
        model(IMAGES)
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    torch.save({"model": model.state_dict()}, path)
    return model.eval(), path


@pytest.mark.parametrize("norm", ["batch", "frozen", "sync"])
def test_a_classifiers_last_norm_comes_with_its_weights(norm: str, classifier: Saved) -> None:
    model, path = classifier
    backbone = build_backbone(replace(TINY, weights=str(path), norm=norm)).eval()
    # Those of the other maps are new.
    new = torch.nn.Identity() if norm == "frozen" else lambda x: x / (1 + 1e-5) ** 0.5
    for ours, theirs, of_map in zip(backbone(IMAGES), model.backbone(IMAGES), (new, new, model.norm), strict=True):
        torch.testing.assert_close(ours, of_map(theirs), rtol=1e-4, atol=1e-4)
    assert all(isinstance(each, FrozenNorm) for each in backbone.output_norms) == (norm == "frozen")


def test_it_is_of_the_map_that_is_read(classifier: Saved) -> None:
    model, path = classifier
    backbone = build_backbone(replace(TINY, weights=str(path))).at_strides(4, 16).eval()
    assert [len(each.weight) for each in backbone.output_norms] == [16, 64]
    torch.testing.assert_close(backbone(IMAGES)[1], model.norm(model.backbone(IMAGES)[-1]))
    # An earlier map is not what the classifier's norm belongs to.
    earlier = build_backbone(replace(TINY, weights=str(path), stage=-2)).output_norms[-1]
    assert earlier.running_mean.tolist() == [0.0] * 32


def test_a_detectors_weights_hold_it_and_start_another_with_it(tmp_path: Path) -> None:
    experiment = replace(detection_named("debug"), backbone=TINY)
    model = build_detector(experiment, classes=2)
    assert next(name for name in model.state_dict() if "output_norms" in name) == "backbone.output_norms.0.weight"
    assert "output norms 128 trained, 0 frozen" in parameter_counts(model)
    trained = {id(each) for group in parameter_groups(model, experiment.train) for each in group["params"]}
    assert {id(each) for each in model.parameters()} == trained
    torch.nn.init.constant_(model.backbone.output_norms[0].weight, 0.5)
    torch.save({"model": model.state_dict()}, tmp_path / "detector.pt")
    again = build_backbone(replace(TINY, weights=str(tmp_path / "detector.pt")))
    assert again.output_norms[-1].weight.tolist() == [0.5] * 64


def test_without_it_nothing_is_there() -> None:
    backbone = build_backbone(replace(TINY, output_norm="none"))
    assert not any("output_norms" in name for name in backbone.state_dict())


def test_a_last_norm_that_is_broken_is_refused_and_half_of_one_is_none(classifier: Saved, tmp_path: Path) -> None:
    state = torch.load(classifier[1])["model"]
    path = tmp_path / "half.pt"
    torch.save({name: value for name, value in state.items() if name != "norm.bias"}, path)
    norm = build_backbone(replace(TINY, weights=str(path))).output_norms[-1]
    assert bool((norm.weight == 1).all())
    torch.save(state | {"norm.bias": state["norm.bias"] * float("nan")}, path)
    with pytest.raises(ValueError, match=r"half\.pt holds what cannot be weights: bias holds 64 values of 64"):
        build_backbone(replace(TINY, weights=str(path)))
