"""Every kind of timm model: it works, with the maps that it states, or is refused in one line that says what works."""

from typing import Any

import pytest
import timm
import torch

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment
from detr_container.engine.backbones import build_backbone, lay_out
from detr_container.models.backbones.timm_backbone import TimmBackbone
from detr_container.models.backbones.timm_fit import ANY_SIZE, fit
from detr_container.tasks.detection.build import build_detector


def backbone_of(name: str, canvas: int = 0, **settings: Any) -> TimmBackbone:
    config = BackboneConfig(name=f"timm/{name}", weights="none", **({"frozen_stages": 0} | settings))
    backbone = build_backbone(config, canvas=canvas)
    assert isinstance(backbone, TimmBackbone)
    return backbone


# Window attention, absolute and relative positions, mixing over positions, and layers that pad: all kinds there are.
@pytest.mark.parametrize(
    ("name", "canvas", "multiple", "side"),
    [
        ("test_vit", 128, 16, 0),
        ("swin_tiny_patch4_window7_224", 128, 32, 0),
        ("maxvit_pico_rw_256", 128, 256, 0),
        ("mobilevitv2_050", 128, 64, 0),
        ("levit_128s", 100, 128, 128),
        ("levit_128s", 0, 256, 256),
        ("test_vit_relpos", 100, 112, 112),
        ("test_coatnet", 128, 128, 128),
        ("efficientformer_l1", 128, 224, 224),
    ],
)
def test_models_are_built_for_the_sizes_that_they_take(name: str, canvas: int, multiple: int, side: int) -> None:
    backbone = backbone_of(name, canvas)
    assert (backbone.size_multiple, backbone.side) == (multiple, side)
    height, width = (side, side) if side else (multiple, 2 * multiple)
    maps = backbone.train()(torch.randn(2, 3, height, width))
    for feature, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (2, channels, height // stride, width // stride)
    maps[-1].square().mean().backward()
    gradients = [p.grad for _, parts in backbone.stages()[:1] for part in parts for p in part.parameters()]
    assert any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "canvas", "message"),
    [
        (
            "efficientformer_l1",
            1333,
            r"takes images of 224 x 224 pixels only, .* up to 1333 .*--data\.resize square --data\.scales 224 "
            r"--data\.eval-size 224 .*timm/convnext_tiny",
        ),
        ("inception_v3", 800, r"on 299 x 299 pixels its map of stride 2 is 64 x 147 x 147 where it states 64 x 149 x"),
        ("pit_ti_224", 0, r"map of stride 8 is 64 x 27 x 27 where it states 64 x 28 x 28 .*timm/convnext_tiny"),
        ("no_such_model", 0, r"timm has no model 'no_such_model'"),
    ],
)
def test_what_cannot_be_a_backbone_says_why_and_what_can(name: str, canvas: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        backbone_of(name, canvas)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_than_the_only_one_are_refused() -> None:
    backbone = backbone_of("levit_128s")
    with pytest.raises(ValueError, match=r"timm/levit_128s takes images of 256 x 256 pixels only, not of 256 x 512"):
        backbone(torch.zeros(1, 3, 256, 512))


def test_the_models_that_are_recommended_take_any_size() -> None:
    for name in ANY_SIZE:
        assert fit(name.removeprefix("timm/"), canvas=1333).side == 0


def test_looking_at_a_model_draws_no_numbers() -> None:
    """Or weights would depend on whether it was examined before."""
    fit.cache_clear()
    torch.manual_seed(0)
    first = backbone_of("levit_128s").state_dict()
    torch.manual_seed(0)
    second = backbone_of("levit_128s").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_detector_holds_convolutions_in_three_dimensions() -> None:
    """Which have no layout with channels last; those in two have it."""
    config = BackboneConfig(name="timm/lambda_resnet26t", weights="none", frozen_stages=0)
    model = build_detector(DetectionExperiment(backbone=config), classes=3)
    assert any(parameter.dim() == 5 for parameter in model.parameters())
    flat = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in flat)


def test_a_model_without_drop_path_says_so() -> None:
    with pytest.raises(ValueError, match=r"timm/vgg11 takes no backbone\.drop_path=0\.1"):
        backbone_of("vgg11", drop_path=0.1)


# Of every module of timm.models the one with the fewest parameters.
SMALLEST = [
    "beit_base_patch16_224",
    "halonet_h1",
    "test_byobnet",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "test_convnext",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "test_efficientnet",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "test_mambaout",
    "test_coatnet",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "test_nfnet",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "test_resnet",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window16_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "test_vit",
    "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]


def test_parameters_that_stages_share_are_counted_once() -> None:
    backbone = backbone_of("coat_tiny", 64)
    counts = sum(trained + frozen for _, trained, frozen in backbone.count_parameters())
    assert counts == sum(p.numel() for p in backbone.parameters())


REFUSED = (
    "crossvit_tiny_240",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "legacy_xception",
    "nasnetalarge",
    "pit_ti_224",
    "pnasnet5large",
)
"""Of those the ones that give other maps than they state."""


@pytest.mark.long
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_model_of_every_family_works_or_says_why_not(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    if name in REFUSED:
        with pytest.raises(ValueError, match=r"cannot be a backbone: .* Some that work at any size: ") as caught:
            backbone_of(name, 128)
        assert "\n" not in str(caught.value)
        return
    backbone = backbone_of(name, 128)
    lay_out(backbone, backbone.memory_format).train()
    multiple = backbone.size_multiple
    held = [id(p) for _, parts in backbone.stages() for part in parts for p in part.parameters()]
    counts = sum(trained + frozen for _, trained, frozen in backbone.count_parameters())
    assert counts == sum(p.numel() for p in backbone.parameters())
    assert set(held) == {id(p) for p in backbone.parameters()}
    for frozen, size in enumerate(((96, 128), (128, 128) if backbone.side else (64, 96))):
        backbone.freeze(frozen).zero_grad()
        rows, columns = (-(-side // multiple) * multiple for side in size)
        maps = backbone(torch.randn(2, 3, rows, columns).contiguous(memory_format=backbone.memory_format))
        shapes = [(2, c, rows // s, columns // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
        assert [tuple(feature.shape) for feature in maps] == shapes
        if any(p.requires_grad for p in backbone.parameters()):
            maps[-1].square().mean().backward()
    first = [p for part in backbone.stages()[0][1] for p in part.parameters()]
    assert all(p.grad is None for p in first)
