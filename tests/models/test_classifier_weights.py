"""Files of classifiers, ours and other people's: into classifiers, into detection's backbones, and back."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden import pattern, published
from torch import Tensor, nn
from torchvision.models import get_model

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.engine.classifiers import build_classifier
from detr_container.models.classifier import BackboneClassifier, ImageClassifier, TimmClassifier
from detr_container.models.weights.classifiers import as_published
from detr_container.models.weights.layouts import to_container

TIMM = (
    *("resnet18", "convnext_atto", "deit_tiny_patch16_224", "efficientnet_lite0", "mobilenetv3_small_100"),
    *("regnety_002", "swin_tiny_patch4_window7_224"),
)
NAMES = (
    *("container_light_tiny", "container_tiny", "container_pam_tiny", "resnet18"),
    *(f"timm/{name}" for name in TIMM[:-1]),
)
# A transformer's positions, interpolated for another size and back, would not be the same.
SIZES = {"timm/deit_tiny_patch16_224": 224}


def config(name: str, weights: object = "none", **changed: Any) -> BackboneConfig:
    return BackboneConfig(name=name, **{"weights": str(weights), "frozen_stages": 0, "norm": "batch"} | changed)


def classifier(
    name: str, classes: int = 3, weights: object = "none", size: int = 64, **changed: Any
) -> ImageClassifier:
    return build_classifier(config(name, weights, **changed), classes, size).eval()


def filled(model: nn.Module) -> nn.Module:
    """With weights of its own, in evaluation mode."""
    model.load_state_dict(pattern.fill(model.state_dict()))
    return model.eval()


def image(size: int = 64) -> Tensor:
    return pattern.image(size, size)[None]


@torch.no_grad()
def logits(model: nn.Module, size: int = 64) -> Tensor:
    return model(image(size))


@torch.no_grad()
def last_map(model: ImageClassifier, size: int = 64) -> Tensor:
    """What a detector would read of the same network."""
    if isinstance(model, BackboneClassifier):
        return model.backbone(image(size))[-1]
    assert isinstance(model, TimmClassifier)
    maps = model.body.forward_intermediates(image(size), intermediates_only=True, norm=False)
    return maps[-1]


def save(folder: Path, state: Any) -> Path:
    path = folder / "weights.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_ours_starts_a_detector_and_a_classifier(name: str, tmp_path: Path) -> None:
    size = SIZES.get(name, 64)
    model = filled(classifier(name, size=size))
    path = save(tmp_path, {"model": model.state_dict(), "step": 3})
    again = classifier(name, weights=path, size=size)
    assert torch.equal(logits(again, size), logits(model, size))
    backbone = build_backbone(config(name, path), canvas=size).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(image(size))[-1], last_map(model, size), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["container_light_tiny", "container_pam_tiny", "resnet18", "timm/convnext_atto"])
def test_another_number_of_classes_starts_the_classifier_anew(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = filled(classifier(name))
    path = save(tmp_path, {"model": model.state_dict()})
    caplog.set_level(logging.INFO)
    other = classifier(name, 5, path)
    assert "the classifier starts anew: the file's has 3 classes, not 5" in caplog.text
    with torch.no_grad():
        assert torch.equal(other.features(image()), model.features(image()))
    assert logits(other).shape == (1, 5)


@pytest.mark.parametrize("name", TIMM)
def test_timm_files_load_everywhere_and_ours_load_in_timm(name: str, tmp_path: Path) -> None:
    theirs = filled(timm.create_model(name, num_classes=3))
    path = save(tmp_path, theirs.state_dict())
    model = classifier(f"timm/{name}", 3, path, 224)
    torch.testing.assert_close(logits(model, 224), logits(theirs, 224), rtol=1e-5, atol=1e-5)
    state = as_published(model)
    assert state.keys() == theirs.state_dict().keys()
    theirs.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
    theirs.load_state_dict(state, strict=True)
    torch.testing.assert_close(logits(theirs, 224), logits(model, 224), rtol=1e-5, atol=1e-5)
    backbone = build_backbone(config(f"timm/{name}", path), canvas=224).eval()
    with torch.no_grad():
        maps = backbone(pattern.image(224, 224)[None])
    torch.testing.assert_close(maps[-1], last_map(model, 224), rtol=1e-5, atol=1e-5)


def test_a_timm_network_with_some_of_the_published_names_keeps_its_own(tmp_path: Path) -> None:
    theirs = filled(timm.create_model("coat_tiny", num_classes=3))
    assert {name for name in theirs.state_dict() if name.startswith("patch_embed1.")}
    model = classifier("timm/coat_tiny", 3, save(tmp_path, theirs.state_dict()), 224)
    torch.testing.assert_close(logits(model, 224), logits(theirs, 224), rtol=1e-5, atol=1e-5)


def test_torchvision_files_both_ways(tmp_path: Path) -> None:
    theirs = filled(get_model("resnet18", num_classes=3))
    path = save(tmp_path, theirs.state_dict())
    for name in ("resnet18", "timm/resnet18"):
        model = classifier(name, 3, path)
        torch.testing.assert_close(logits(model), logits(theirs))
        state = as_published(model)
        fresh = get_model("resnet18", num_classes=3)
        fresh.load_state_dict(state, strict=True)
        torch.testing.assert_close(logits(fresh.eval()), logits(theirs))
        with torch.no_grad():
            torch.testing.assert_close(build_backbone(config(name, path)).eval()(image())[-1], last_map(model))


def test_the_published_container_light_both_ways(tmp_path: Path) -> None:
    stored = published.weights("container_light")
    model = classifier("container_light", 1000, save(tmp_path, {"model": stored}), 224)
    state = as_published(model)
    assert state.keys() == stored.keys() == published.shapes("container_light").keys()
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    assert to_container(model.state_dict()).keys() == state.keys()


@pytest.mark.parametrize("name", ["container_light_tiny", "resnet18", "timm/resnet18"])
def test_frozen_norms_take_the_files_statistics(name: str, tmp_path: Path) -> None:
    model = filled(classifier(name))
    path = save(tmp_path, {"model": model.state_dict()})
    frozen = classifier(name, weights=path, norm="frozen").train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    torch.testing.assert_close(logits(frozen), logits(model), rtol=1e-4, atol=1e-4)
    # And back, where nothing counts batches.
    again = classifier(name, weights=save(tmp_path, {"model": frozen.state_dict()}))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)


def test_averaged_weights_come_first_unless_asked_otherwise(tmp_path: Path) -> None:
    model = filled(classifier("container_light_tiny"))
    other = classifier("container_light_tiny")
    path = save(tmp_path, {"model": other.state_dict(), "ema": model.state_dict(), "ema_updates": 4})
    assert torch.equal(logits(classifier("container_light_tiny", weights=path)), logits(model))
    raw = classifier("container_light_tiny", weights=path, file_weights="model")
    assert torch.equal(logits(raw), logits(other))


def test_a_transformers_positions_follow_the_size_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "timm/deit_tiny_patch16_224"
    model = filled(classifier(name, size=64))
    path = save(tmp_path, {"model": model.state_dict()})
    assert torch.equal(logits(classifier(name, weights=path, size=64)), logits(model))
    assert "interpolated" not in caplog.text
    larger = classifier(name, weights=path, size=96)
    assert "its positions are those of 4 x 4 patches, interpolated for 6 x 6 here" in caplog.text
    # As the model itself interpolates them for images of another size.
    torch.testing.assert_close(logits(larger, 96), logits(model, 96), rtol=1e-5, atol=1e-5)


def test_a_backbone_without_a_classifier_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = filled(build_backbone(config("container_light_tiny")))
    caplog.set_level(logging.INFO)
    model = classifier("container_light_tiny", weights=save(tmp_path, backbone.state_dict()))
    assert "no norm before the classifier" in caplog.text
    assert "the classifier starts anew: the file has none" in caplog.text
    with torch.no_grad():
        assert torch.equal(last_map(model), backbone(image())[-1])


@pytest.mark.parametrize("name", ["container_light_tiny", "timm/resnet18", "timm/convnext_atto"])
def test_another_networks_file_is_refused(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, {"model": classifier("container_light_small").state_dict()})
    with pytest.raises(ValueError, match=r"weights\.pt does not fit .*Check backbone\.name and backbone\.weights"):
        classifier(name, weights=path)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights=.*none\.pt: neither `imagenet` nor `none`"):
        classifier("timm/resnet18", weights=tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"container_light are not on a server .*github\.com/allenai/container"):
        classifier("container_light", 1000, "imagenet")
