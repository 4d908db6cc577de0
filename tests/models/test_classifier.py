"""Image classifiers: what each states, which parameters decay, what is frozen, and at which sizes they work."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.classifiers import build_classifier
from detr_container.models import classifier
from detr_container.models.backbones import timm_fit, timm_whole
from detr_container.models.classifier import BackboneClassifier, ImageClassifier, TimmClassifier
from detr_container.models.weights.layouts import to_container

DEIT = json.loads((Path(__file__).parents[1] / "golden" / "deit.json").read_text())


def built(name: str, classes: int = 3, size: int = 64, **settings: object) -> ImageClassifier:
    given = {"weights": "none", "frozen_stages": 0, "norm": "batch"} | settings
    return build_classifier(BackboneConfig(name=name, **given), classes, size)


@pytest.fixture(scope="module")
def container_light() -> ImageClassifier:
    return built("container_light", 1000, 224, drop_path=0.1)


def test_drop_path_rates_are_the_published_ones(container_light: ImageClassifier) -> None:
    assert isinstance(container_light, BackboneClassifier)
    blocks = [block for stage in container_light.backbone.blocks for block in stage]
    rates = [block.drop_path.p if isinstance(block.drop_path, StochasticDepth) else 0.0 for block in blocks]
    assert rates == pytest.approx(DEIT["drop_path"], abs=1e-7)


def test_weight_decay_acts_on_the_published_parameters(container_light: ImageClassifier) -> None:
    decayed, bare = ({*to_container(part)} for part in container_light.decayed_or_not())
    assert decayed == set(DEIT["decayed"])
    assert bare == set(DEIT["not_decayed"])
    assert (len(decayed), len(bare)) == (113, 198)


def test_initial_weights_are_the_published_ones(container_light: ImageClassifier) -> None:
    assert isinstance(container_light, BackboneClassifier)
    assert container_light.head.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert not container_light.head.bias.any()
    norm = container_light.backbone.embeds[2].norm
    assert bool((norm.weight == 1).all())
    assert not norm.bias.any()
    # The framework's default: uniform within one by the root of the number of inputs.
    kernel = container_light.backbone.blocks[2][0].mlp[0].weight
    assert kernel.abs().max().item() == pytest.approx(320**-0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("timm/deit_tiny_patch16_224", {"body.pos_embed", "body.cls_token"}),
        ("resnet18", set()),
        ("timm/resnet18", set()),
    ],
)
def test_tokens_and_positions_are_not_decayed(name: str, bare: set[str]) -> None:
    model = built(name)
    decayed, others = model.decayed_or_not()
    assert {each for each, parameter in others.items() if parameter.ndim > 1} == bare
    assert all(parameter.ndim > 1 for parameter in decayed.values())
    assert len(decayed) + len(others) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *[("container_light_tiny", 64), ("resnet18", 512), ("timm/resnet18", 512), ("timm/deit_tiny_patch16_224", 192)],
        *[("timm/efficientnet_lite0", 1280), ("timm/convnext_atto", 320), ("timm/mixer_s32_224", 512)],
        ("timm/deit_tiny_distilled_patch16_224", 192),
    ],
)
def test_logits_follow_from_the_features(name: str, width: int) -> None:
    model = built(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, logits = model.features(images), model(images)
    assert features.shape == (2, width)
    assert logits.shape == (2, 3)
    if isinstance(model, TimmClassifier):
        with torch.no_grad():
            torch.testing.assert_close(logits, model.body(images))
    else:
        torch.testing.assert_close(logits, model.head(features))


@pytest.mark.parametrize("name", ["container_light_tiny", "timm/resnet18", "timm/deit_tiny_patch16_224"])
def test_logits_are_not_rounded_in_bfloat16(name: str) -> None:
    model = built(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 64, 64))
    assert logits.dtype == torch.float32
    assert bool((logits.bfloat16().float() != logits).any())


def test_frozen_stages_keep_weights_and_statistics() -> None:
    for name in ("container_light_tiny", "resnet18", "timm/resnet18", "timm/convnext_atto"):
        model = built(name, frozen_stages=1).train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad), name
        first = {key.rsplit(".", 1)[0] for key in frozen}
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert not {key.rsplit(".", 1)[0] for key in changed} & first
        rows = model.count_parameters()
        assert rows[0][1] == 0
        assert rows[0][2] == sum(parameter.numel() for key, parameter in model.named_parameters() if key in frozen)
        assert sum(trained + kept for _, trained, kept in rows) == sum(each.numel() for each in model.parameters())


def test_a_model_that_cannot_be_a_backbone_is_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("timm/mixer_s32_224")
    monkeypatch.setattr(classifier, "ends", lambda name: ())
    assert model.count_parameters() == [("whole", sum(each.numel() for each in model.parameters()), 0)]
    model.train()
    assert all(module.training for module in model.modules())


def test_the_stages_of_a_model_that_cannot_be_made_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ConvNeXts of timm 1.0.12, which read a value while they are made."""
    made = timm_fit.create

    def reading(name: str, options: dict[str, Any], pretrained: bool = False) -> Any:
        torch.linspace(0, 1, 2).cpu()
        return made(name, options, pretrained)

    for module in (timm_fit, timm_whole):
        monkeypatch.setattr(module, "create", reading, raising=False)
    assert timm_whole.ends("resnet10t") == ("act1", "layer1", "layer2", "layer3", "layer4")


def test_frozen_norms() -> None:
    for name in ("container_light_tiny", "resnet18", "timm/resnet18"):
        model = built(name, norm="frozen")
        kinds = {type(module) for module in model.modules()}
        assert not any(issubclass(kind, nn.BatchNorm2d) for kind in kinds)
        assert any(issubclass(kind, FrozenBatchNorm2d) for kind in kinds)


def test_a_timm_model_drops_paths_or_says_that_it_cannot() -> None:
    model = built("timm/convnext_atto", drop_path=0.2)
    assert isinstance(model, TimmClassifier)
    assert max(getattr(module, "drop_prob", 0.0) or 0.0 for module in model.modules()) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"timm/vgg11 takes no backbone\.drop_path=0\.2 .*: set it to 0"):
        built("timm/vgg11", drop_path=0.2)


def test_images_of_which_nothing_is_left_at_the_last_stride_are_refused() -> None:
    for name, least in (("container_light_tiny", 16), ("mh_dw", 32)):
        model = built(name)
        model.check_side(least)
        with pytest.raises(
            ValueError, match=rf"images of {least - 1} pixels: .* stride of {least}: use data\.size={least}"
        ):
            model.check_side(least - 1)
    built("resnet18").check_side(3)


def test_sizes() -> None:
    free, bound = built("timm/deit_tiny_patch16_224"), built("timm/mixer_s32_224")
    assert (free.side, bound.side) == (0, 64)
    free.check_side(96)
    with torch.no_grad():
        assert free.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"takes no images of 100 x 100 pixels .*divisible"):
        free.check_side(100)
    with pytest.raises(ValueError, match=r"built for 64 .*: use 64, as data\.size"):
        bound.check_side(96)
    with pytest.raises(ValueError, match=r"takes no images of 8 x 8 pixels .*made for data\.size=224"):
        built("timm/deit_tiny_patch16_224", size=8)


def test_examining_a_timm_model_draws_nothing() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        weights.append(built("timm/resnet18").state_dict()["body.fc.weight"])
    assert torch.equal(*weights)
