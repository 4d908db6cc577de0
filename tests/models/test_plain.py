"""The plain networks of the family: DeiT's body with dense affinities, which belong to one size of image."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden import pattern
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.engine.classifiers import build_classifier
from detr_container.models.backbones.plain import PLAIN, PlainBackbone
from detr_container.models.layers.dense_affinity import DenseAffinity, resampled

TINY = {"container_pam_tiny": 64, "mh_mlp_tiny": 64}


def plain(name: str, canvas: int = 0, **settings: Any) -> PlainBackbone:
    usual = {"weights": "none", "frozen_stages": 0}
    backbone = build_backbone(BackboneConfig(name=name, **(usual | settings)), canvas=canvas)
    assert isinstance(backbone, PlainBackbone)
    return backbone


def affinities(backbone: nn.Module) -> list[Tensor]:
    return [module.affinity for module in backbone.modules() if isinstance(module, DenseAffinity)]


def deit() -> VisionTransformer:
    """timm's own, of the size of container_pam_tiny."""
    return VisionTransformer(img_size=64, patch_size=8, num_classes=7, embed_dim=64, depth=4, num_heads=2).eval()


@torch.no_grad()
def test_without_its_affinities_container_pam_is_deit() -> None:
    theirs, ours = deit(), plain("container_pam_tiny").eval()
    state = pattern.fill(theirs.state_dict())
    theirs.load_state_dict(state)
    found = ours.body.load_state_dict(state, strict=False)
    assert found.unexpected_keys == ["head.weight", "head.bias"]
    assert {name.rpartition(".")[2] for name in found.missing_keys} == {"affinity"}
    images = torch.stack([pattern.image(64, 64), pattern.tensor("noise", (3, 64, 64))])
    with_affinities = ours.pooled(images)
    for affinity in affinities(ours):
        affinity.zero_()
    expected = theirs.forward_features(images)
    (feature,) = ours(images)
    torch.testing.assert_close(feature, expected[:, 1:].transpose(1, 2).unflatten(2, (8, 8)))
    torch.testing.assert_close(ours.pooled(images), theirs.forward_head(expected, pre_logits=True))
    assert (with_affinities - ours.pooled(images)).abs().max() > 0.01


def test_the_published_size_and_names() -> None:
    """DeiT-S with a parameter (1, heads, 1 + L, 1 + L) for each block: 24.84 M with a classifier of 1000 classes."""
    classifier = build_classifier(BackboneConfig(name="container_pam", weights="none", frozen_stages=0), 1000, 224)
    assert sum(p.numel() for p in classifier.parameters()) == 24_844_912
    state = classifier.get_submodule("backbone.body").state_dict()
    theirs = timm.create_model("deit_small_patch16_224").state_dict()
    added = {name: tuple(value.shape) for name, value in state.items() if name not in theirs}
    assert added == {f"blocks.{i}.attn.aggregation.static.kernel.affinity": (1, 6, 197, 197) for i in range(12)}
    assert theirs.keys() - state.keys() == {"head.weight", "head.bias"}
    assert all(value.shape == theirs[name].shape for name, value in state.items() if name in theirs)
    first = state["blocks.0.attn.aggregation.static.kernel.affinity"]
    # A normal distribution of deviation 1 cut at 2.
    assert first.abs().max() <= 2
    assert first.std().item() == pytest.approx(0.88, abs=0.01)
    assert classifier.no_weight_decay() == {"backbone.body.cls_token", "backbone.body.pos_embed"}


@torch.no_grad()
def test_a_classifier_reads_the_class_token_or_the_mean_of_the_positions() -> None:
    images = torch.randn(2, 3, 64, 64)
    for name in TINY:
        config = BackboneConfig(name=name, weights="none", frozen_stages=0, norm="batch")
        classifier = build_classifier(config, 5, 64).eval()
        backbone = plain(name).eval()
        backbone.load_state_dict(classifier.get_submodule("backbone").state_dict())
        features = classifier.features(images)
        assert (classifier.side, features.shape) == (64, (2, 64))
        mean = backbone(images)[0].mean(dim=(2, 3))
        assert torch.allclose(features, mean, atol=1e-5) == (name == "mh_mlp_tiny")
        assert torch.equal(features, backbone.pooled(images))


@pytest.mark.parametrize("name", TINY)
def test_images_of_another_size_are_refused_with_the_remedy(name: str) -> None:
    backbone = plain(name, canvas=48)
    assert (backbone.side, backbone.size_multiple, backbone.grid) == (48, 48, (6, 6))
    assert backbone(torch.randn(1, 3, 48, 48))[0].shape == (1, 64, 6, 6)
    for height, width in ((64, 64), (48, 56)):
        message = rf"{name} .* 48 x 48 pixels, not of {height} x {width}: .* backbone\.dense=interpolate"
        with pytest.raises(ValueError, match=message):
            backbone(torch.randn(1, 3, height, width))


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_or_interpolated(name: str) -> None:
    fixed, any_size = plain(name, canvas=48).eval(), plain(name, canvas=48, dense="interpolate").eval()
    any_size.load_state_dict(fixed.state_dict())
    assert (any_size.side, any_size.size_multiple) == (0, 8)
    own = torch.randn(1, 3, 48, 48)
    assert torch.equal(any_size(own)[0], fixed(own)[0])
    # As a network whose own affinities and embeddings are those interpolated ones.
    image, found = torch.randn(2, 3, 64, 64), {}
    for key, value in any_size.state_dict().items():
        found[key] = resampled(value, (6, 6), (8, 8), any_size.leading) if key.endswith("affinity") else value
        if key.endswith("pos_embed"):
            map_ = value[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
            larger = nn.functional.interpolate(map_, (8, 8), mode="bicubic", antialias=True)
            found[key] = torch.cat([value[:, :1], larger.flatten(2).transpose(1, 2)], dim=1)
    other = plain(name, canvas=64).eval()
    other.load_state_dict(found)
    torch.testing.assert_close(any_size(image)[0], other(image)[0])
    assert any_size(torch.randn(1, 3, 40, 72))[0].shape == (1, 64, 5, 9)
    with pytest.raises(ValueError, match=r"multiples of 8 pixels, not 50 x 64: pad or resize"):
        any_size(torch.randn(1, 3, 50, 64))


@pytest.mark.parametrize(
    ("name", "canvas", "dense", "side"),
    [
        ("container_pam", 0, "refuse", 224),
        ("container_pam", 384, "refuse", 384),
        ("container_pam", 250, "refuse", 256),
        ("container_pam", 384, "interpolate", 224),
        ("container_pam", 128, "interpolate", 128),
        ("mh_mlp_tiny", 0, "interpolate", 64),
        ("mh_mlp_tiny", 48, "refuse", 48),
    ],
)
def test_the_side_that_affinities_are_built_for(name: str, canvas: int, dense: str, side: int) -> None:
    assert PLAIN[name].built_side(canvas, dense == "interpolate") == side


def test_numbers_of_affinities() -> None:
    for name in TINY:
        assert PLAIN[name].static(48) == sum(each.numel() for each in affinities(plain(name, canvas=48)))


@torch.no_grad()
def test_weights_of_another_size_are_refused_or_interpolated(tmp_path: Path) -> None:
    for name in TINY:
        source, path = plain(name, canvas=48).eval(), tmp_path / f"{name}.pth"
        torch.save({"model": source.state_dict()}, path)
        assert torch.equal(affinities(plain(name, canvas=48, weights=str(path)))[0], affinities(source)[0])
        message = rf"{name}\.pth is of {name} for images of 48 x 48 .* for 64 x 64: .*backbone\.dense=interpolate"
        with pytest.raises(ValueError, match=message):
            plain(name, canvas=64, weights=str(path))
        other = plain(name, canvas=64, dense="interpolate", weights=str(path)).eval()
        # Its usual side, of a data set with larger images.
        assert other.built_side == 64
        expected = [resampled(each, (6, 6), (8, 8), source.leading) for each in affinities(source)]
        assert all(torch.equal(a, b) for a, b in zip(affinities(other), expected, strict=True))


@pytest.mark.parametrize("dense", ["refuse", "interpolate"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("pos_embed", (1, 38, 64)), ("blocks.0.attn.aggregation.static.kernel.affinity", (1, 2, 38, 38))],
)
def test_weights_of_no_square_of_patches_are_named(
    dense: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """A distilled DeiT has one token more, for instance: neither another size nor to be interpolated."""
    path = tmp_path / "weights.pth"
    torch.save({"model": plain("container_pam_tiny").body.state_dict() | {name: torch.zeros(shape)}}, path)
    with pytest.raises(ValueError, match=rf"body\.{re.escape(name)} is {re.escape(str(list(shape)))}, not"):
        plain("container_pam_tiny", dense=dense, weights=str(path))


def test_drop_path_rises_to_the_last_block() -> None:
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in plain("container_pam", drop_path=0.1).body.blocks]
    assert rates == pytest.approx([0.1 * place / 11 for place in range(12)])


def test_freezing_goes_block_by_block() -> None:
    backbone = plain("container_pam_tiny", frozen_stages=2).train()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert {name.split(".blocks.")[-1].split(".")[0] for name in frozen if ".blocks." in name} == {"0"}
    assert {"body.cls_token", "body.pos_embed", "body.patch_embed.proj.weight"} < frozen
    assert [name for name, _ in backbone.stages()] == ["embed", "block1", "block2", "block3", "block4"]
