import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from golden import pattern
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.ops import FrozenBatchNorm2d

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig
from detr_container.engine.backbones import OWN, build_backbone
from detr_container.engine.optimizer import make_optimizer
from detr_container.models.backbones.backbone import Backbone
from detr_container.models.backbones.resnet import ResNetBackbone
from detr_container.models.layers.frozen_norm import freeze_norms
from detr_container.models.weights.backbones import load_backbone
from detr_container.tasks.detection.build import build_detector
from detr_container.tasks.detection.groups import parameter_groups

SMALL_TIMM = ("resnet10t", "convnext_atto", "mobilenetv3_small_050", "test_efficientnet", "regnetx_002", "test_vit")
EVERY = (*OWN, *(f"timm/{name}" for name in SMALL_TIMM))


def backbone_of(name: str, **settings: object) -> Backbone:
    usual = {"weights": "none", "frozen_stages": 0, "dense": "interpolate"}
    return build_backbone(BackboneConfig(name=name, **(usual | settings)))


@pytest.mark.parametrize("name", EVERY)
def test_the_stages_together_hold_every_parameter_once(name: str) -> None:
    for norm in ("frozen", "batch"):
        backbone = backbone_of(name, norm=norm)
        held = [id(p) for _, parts in backbone.stages() for part in parts for p in part.parameters()]
        assert len(held) == len(set(held))
        assert set(held) == {id(p) for p in backbone.parameters()}
        names = [stage for stage, _ in backbone.stages()]
        assert len(set(names)) == len(names) >= 3


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_feature_maps_have_the_stated_channels_and_strides(name: str) -> None:
    backbone = backbone_of(name).eval()
    # Not square, so that swapped axes show; not 224, which some models take for granted.
    height, width = 64, 160
    maps = backbone(torch.zeros(1, 3, height, width))
    assert height % backbone.size_multiple == width % backbone.size_multiple == 0
    for feature, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (1, channels, height // stride, width // stride)


@torch.no_grad()
def test_maps_with_channels_last_are_recognised_by_their_format() -> None:
    """A Swin of 96 channels on 384 pixels, whose first map has 96 rows: nothing but the format says what is what."""
    backbone = backbone_of("timm/swin_tiny_patch4_window7_224", stage=-4)
    assert backbone.channels == (96,)
    (feature,) = backbone(torch.randn(1, 3, 384, 128))
    assert feature.shape == (1, 96, 96, 32)
    # The body ends in a norm over the channels.
    raw = backbone.body(torch.randn(1, 3, 384, 128))[0]
    assert raw.shape == (1, 96, 32, 96)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "test_vit"])
@torch.no_grad()
def test_an_earlier_map_of_a_timm_model(name: str) -> None:
    whole, part = backbone_of(f"timm/{name}"), backbone_of(f"timm/{name}", stage=-2)
    assert (part.channels, part.strides) == (whole.channels[:-1], whole.strides[:-1])
    state = whole.state_dict()
    part.load_state_dict({key: state[key] for key in part.state_dict()})
    image = pattern.image(96, 64)[None]
    for ours, theirs in zip(part.eval()(image), whole.eval()(image)[:-1], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "settings", "strides"),
    [
        ("resnet18", {"stride": 16}, (4, 8, 16)),
        ("resnet50", {"stride": 16, "dilation": True}, (4, 8, 16, 16)),
        ("container_light", {"stride": 8}, (4, 8)),
        ("container_light_small", {"stride": 16}, (4, 8, 16)),
        ("timm/resnet10t", {"stride": 16}, (2, 4, 8, 16)),
        ("timm/test_vit", {"stride": 16}, (16, 16, 16)),
    ],
)
@torch.no_grad()
def test_a_map_named_by_its_stride_is_the_deepest_of_it(
    name: str, settings: dict[str, Any], strides: tuple[int, ...]
) -> None:
    backbone = backbone_of(name, **settings).eval()
    assert backbone.strides == strides
    assert backbone(torch.zeros(1, 3, 64, 96))[-1].shape[-2:] == (64 // strides[-1], 96 // strides[-1])


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002", "resnet10t"])
@torch.no_grad()
def test_frozen_norms_of_timm_keep_their_activations(name: str) -> None:
    trained, frozen = backbone_of(f"timm/{name}", norm="batch"), backbone_of(f"timm/{name}")
    state = pattern.fill(trained.state_dict())
    trained.load_state_dict(state)
    frozen.load_state_dict({key: value for key, value in state.items() if "num_batches" not in key})
    image = pattern.image(64, 96)[None]
    # In training mode: drop-path and dropout are off, so only the norms could differ.
    for ours, theirs in zip(frozen.train()(image), trained.eval()(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_freezing_goes_by_stage() -> None:
    backbone = backbone_of("resnet18", frozen_stages=2)
    rows = backbone.count_parameters()
    assert [name for name, _, _ in rows] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert [trained == 0 for _, trained, _ in rows] == [True, True, False, False, False]
    assert [frozen == 0 for _, _, frozen in rows] == [False, False, True, True, True]
    assert sum(trained + frozen for _, trained, frozen in rows) == sum(p.numel() for p in backbone.parameters())
    backbone.train()
    assert not backbone.body.layer1.training
    assert backbone.body.layer2.training


def test_the_published_numbers_of_trained_parameters() -> None:
    rows = backbone_of("resnet50", frozen_stages=2).count_parameters()
    # FrozenBatchNorm has no parameters.
    assert sum(trained for _, trained, _ in rows) == 23_232_512
    assert sum(frozen for _, _, frozen in rows) == 41_524_768 - 41_302_368


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 5), ("container_light_tiny", 3), ("timm/test_vit", 4)])
def test_freezing_more_stages_than_there_are_is_refused(name: str, stages: int) -> None:
    assert len(backbone_of(name, frozen_stages=stages).stages()) == stages
    with pytest.raises(ValueError, match=rf"frozen_stages={stages + 1}, but this backbone has {stages} stages"):
        backbone_of(name, frozen_stages=stages + 1)


def test_a_trained_backbone_with_nothing_to_train_is_refused() -> None:
    head = HeadConfig(queries=2, width=8, heads=1, encoder_layers=1, decoder_layers=1, feedforward=8)
    experiment = DetectionExperiment(head=head, backbone=BackboneConfig(name="resnet18", weights="none"))
    model = build_detector(experiment, 2, weights=False)
    groups = make_optimizer(parameter_groups(model, experiment.train), experiment.train).param_groups
    assert [(group["name"], group["base_lr"]) for group in groups] == [("head", 1e-4), ("backbone", 1e-5)]
    in_groups = [id(p) for group in groups for p in group["params"]]
    assert sorted(in_groups) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"train\.lr_backbone=1e-05, 2 of 5 stages frozen\) but has no parameter"):
        make_optimizer(parameter_groups(model, experiment.train), experiment.train)
    # Freezing all of it is a decision, not an accident.
    model.backbone.freeze(5)
    assert [
        group["name"]
        for group in make_optimizer(parameter_groups(model, experiment.train), experiment.train).param_groups
    ] == ["head"]


def unfolded(name: str, **options: object) -> nn.Module:
    """torchvision's ResNet with frozen norms and the pattern's weights, in float64."""
    body = get_model(name, norm_layer=FrozenBatchNorm2d, **options).double()
    body.load_state_dict(pattern.fill(body.state_dict()))
    return body


def features_of(body: nn.Module, image: Tensor) -> list[Tensor]:
    x = body.maxpool(body.relu(body.bn1(body.conv1(image))))
    maps = []
    for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
        x = layer(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True)])
def test_folded_norms_change_neither_features_nor_gradients(name: str, dilation: bool) -> None:
    theirs = unfolded(name, replace_stride_with_dilation=[False, False, dilation])
    ours = ResNetBackbone(name, dilation=dilation).double()
    unused = load_backbone(ours, theirs.state_dict(), "torchvision")
    assert unused == ["fc.weight", "fc.bias"]
    # In float32 a rounding next to 0 would switch a ReLU, and with it a gradient.
    image = pattern.image(64, 96)[None].double().requires_grad_()
    results = []
    for maps, parameters in (
        (ours(image), dict(ours.body.named_parameters())),
        (features_of(theirs, image), {k: v for k, v in theirs.named_parameters() if "fc." not in k}),
    ):
        # A loss that weighs every position differently.
        loss = sum((F.normalize(m, dim=1) * pattern.tensor("loss", tuple(m.shape))).sum() for m in maps)
        gradients = torch.autograd.grad(loss, [image, *parameters.values()])
        results.append((maps, dict(zip(["image", *parameters], gradients, strict=True))))
    (our_maps, our_gradients), (their_maps, their_gradients) = results
    for a, b in zip(our_maps, their_maps, strict=True):
        assert (a - b).abs().max() <= 1e-11 * b.abs().max()
    assert our_gradients.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        assert (our_gradients[key] - gradient).norm() <= 1e-9 * gradient.norm(), key


def test_norms_in_training_are_torchvisions() -> None:
    theirs = get_model("resnet18")
    ours = ResNetBackbone("resnet18", frozen_norm=False)
    load_backbone(ours, theirs.state_dict(), "torchvision")
    image = torch.randn(2, 3, 64, 64)
    for a, b in zip(ours.train()(image), features_of(theirs.train(), image), strict=True):
        torch.testing.assert_close(a, b)


def test_freeze_norms_replaces_a_norm_by_itself() -> None:
    norm = nn.BatchNorm2d(3, eps=0.01)
    norm.load_state_dict(pattern.fill(norm.state_dict()))
    frozen = freeze_norms(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x))
    with pytest.raises(ValueError, match=r"backbone\.norm=batch"):
        freeze_norms(nn.Sequential(nn.BatchNorm2d(3, affine=False)))


def test_dilation_keeps_the_stride_at_16() -> None:
    backbone = backbone_of("resnet50", dilation=True)
    assert backbone.strides == (4, 8, 16, 16)
    assert backbone(torch.zeros(1, 3, 64, 64))[-1].shape[-1] == 4
    with pytest.raises(ValueError, match="resnet18 cannot be dilated"):
        backbone_of("resnet18", dilation=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="resnet19"), r"no backbone 'resnet19': backbone\.name is one of resnet18, .*timm/"),
        (BackboneConfig(name="timm/resnet51", weights="none"), r"timm has no model 'resnet51'"),
        (BackboneConfig(name="timm/convnext_ato", weights="none"), r"Near: .*convnext_atto"),
        (BackboneConfig(name="resnet18", weights="none", stage=-5), r"backbone\.stage=-5: resnet18 has 4 feature maps"),
        (BackboneConfig(name="timm/resnet10t", weights="none", stage=-6), r"backbone\.stage=-6: timm/resnet10t has 5 "),
        (
            BackboneConfig(name="resnet18", weights="none", stride=12),
            r"stride=12: resnet18 has .* strides 4, 8, 16, 32$",
        ),
        (
            BackboneConfig(name="timm/test_vit", weights="none", stride=32),
            r"stride=32: timm/test_vit has .* strides 16$",
        ),
        (BackboneConfig(name="container_light", weights="imagenet"), r"https://\S+ .*backbone\.weights=none"),
        (BackboneConfig(name="container"), r"never released: .*`detr-container train container_in1k` .*weights=none"),
        (BackboneConfig(name="mh_dw_tiny"), r"mh_dw_tiny were never .* container_in1k --backbone\.name mh_dw_tiny`"),
        (BackboneConfig(name="resnet18_small"), r"resnet18_small were never released"),
        (BackboneConfig(name="mh_mlp", weights="none", stage=-2), r"stage=-2: mh_mlp has 1 feature maps"),
        (BackboneConfig(name="resnet18_tiny", weights="none", stride=32), r"resnet18_tiny has .* strides 4, 8, 16$"),
        (BackboneConfig(name="resnet18_tiny", weights="none", dilation=True), r"resnet18_tiny cannot be dilated"),
    ],
)
def test_what_cannot_be_built_says_what_can(config: BackboneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(replace(config, frozen_stages=0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet18",
            r"could not be downloaded .* fetch https://download\.pytorch\.org/models/resnet18-\S+ .*weights=none",
        ),
        (
            "timm/resnet10t",
            r"timm/resnet10t could not .* \(https://huggingface\.co/timm/resnet10t\S*\); .*weights=none",
        ),
    ],
)
def test_without_a_network_the_weights_address_is_given(
    tmp_path: Path, repository: Path, name: str, message: str
) -> None:
    """In a process of its own, whose proxy answers nothing and whose caches are empty."""
    program = (
        "import sys\nfrom detr_container.engine.backbones import build_backbone\n"
        "from detr_container.config.backbones import BackboneConfig\n"
        "try:\n    build_backbone(BackboneConfig(name=sys.argv[1]))\n"
        "except ValueError as error:\n    sys.exit(str(error))\n"
    )
    nowhere = "http://127.0.0.1:9"
    environment = {
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(repository),
        "TORCH_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        # Otherwise it would try again for a minute.
        "HF_HUB_OFFLINE": "1",
        **{f"{scheme}_proxy": nowhere for scheme in ("http", "https", "all")},
    }
    done = subprocess.run(
        [sys.executable, "-c", program, name], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(message, last), done.stderr


def test_timm_models_are_loaded_with_their_own_normalisation() -> None:
    backbone = backbone_of("timm/vit_tiny_patch16_224")
    expected = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert (backbone.mean, backbone.std) == (expected.mean, expected.std) == ((0.5,) * 3, (0.5,) * 3)
