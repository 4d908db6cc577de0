"""CONTAINER-LIGHT: the released network exactly, and what a detector needs beyond it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import pattern, published
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.models.backbones.container import SIZES, Block, Container
from detr_container.models.classifier import BackboneClassifier
from detr_container.models.layers.context_aggregation import DEPTHWISE, ContextAggregation
from detr_container.models.layers.depthwise import Depthwise
from detr_container.models.layers.pointwise import PatchEmbed, Pointwise
from detr_container.models.weights.layouts import from_container, to_container

TINY = SIZES["container_light_tiny"]
INPUTS = {
    "224": lambda: torch.stack([pattern.image(224, 224), pattern.tensor("noise", (3, 224, 224))]),
    "160x256": lambda: pattern.image(160, 256)[None],
}
STRIDES = {
    "224": [(8, 7, 7), (8, 4, 4), (16, 2, 2), (16, 1, 1)],
    "160x256": [(8, 5, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)],
}


@pytest.fixture(scope="module")
def released() -> BackboneClassifier:
    model = BackboneClassifier(Container(SIZES["container_light"]), 1000).eval()
    model.load_state_dict(from_container(published.weights("container_light")), strict=True)
    return model


def close(ours: Tensor, golden: Tensor) -> None:
    """Within 1e-5 of the largest magnitude: float32 rounds such sums no better, in the published code either."""
    assert ours.shape == golden.shape
    assert (ours - golden).abs().max() <= 1e-5 * golden.abs().max()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("size", list(INPUTS))
@torch.no_grad()
def test_reference_outputs(
    released: BackboneClassifier, size: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CPU computes them and, on a CPU, in the way of a GPU."""
    for layer in (Depthwise, PatchEmbed, Pointwise):
        monkeypatch.setattr(layer, "devices", ("cpu",) if device == "cuda" else ())
    golden = published.arrays(f"container_light_{size}")
    maps = released.backbone(INPUTS[size]())
    for stage, (ours, (channel, row, column)) in enumerate(zip(maps, STRIDES[size], strict=True), start=1):
        close(ours[:, ::channel, ::row, ::column], golden[f"stage{stage}"])
    norm = released.norm(maps[-1])
    close(norm[:, ::16], golden["norm"])
    close(released.head(norm.mean(dim=(2, 3))), golden["logits"])
    close(released(INPUTS[size]()), golden["logits"])


def test_names_and_number_of_parameters(released: BackboneClassifier) -> None:
    state = released.state_dict()
    names = to_container(state)
    assert {name: list(value.shape) for name, value in names.items()} == published.shapes("container_light")
    assert len(names) == 422
    back = from_container(names)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert sum(p.numel() for p in released.parameters()) == 20_633_643


def test_the_released_file_loads_as_a_backbone(tmp_path: Path, released: BackboneClassifier) -> None:
    path = tmp_path / "container_light.pth"
    torch.save({"model": published.weights("container_light")}, path)
    backbone = build_backbone(BackboneConfig(name="container_light", weights=str(path), frozen_stages=0)).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    image = pattern.image(64, 96)[None]
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), released.backbone(image), strict=True):
            close(ours, theirs)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save(to_container(BackboneClassifier(Container(TINY), classes=3).state_dict()), path)
    with pytest.raises(ValueError, match=r"small\.pth does not fit Container: .*backbone\.name"):
        build_backbone(BackboneConfig(name="container_light_small", weights=str(path), frozen_stages=0))


@pytest.mark.parametrize("name", SIZES)
def test_the_stated_channels_and_strides_are_the_real_ones(name: str) -> None:
    backbone = Container(SIZES[name]).eval()
    height, width = 2 * backbone.size_multiple, 3 * backbone.size_multiple
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, height, width))
    shapes = [tuple(each.shape[1:]) for each in maps]
    expected = zip(backbone.channels, backbone.strides, strict=True)
    assert shapes == [(channels, height // stride, width // stride) for channels, stride in expected]


def test_fewer_stages() -> None:
    backbone = build_backbone(BackboneConfig(name="container_light", weights="none", stage=-2, frozen_stages=1))
    assert (backbone.channels, backbone.strides, backbone.size_multiple) == ((64, 128, 320), (4, 8, 16), 16)
    kinds = {module.affinities for module in backbone.modules() if isinstance(module, ContextAggregation)}
    assert kinds == {DEPTHWISE}


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    block = Block(16, 2, ContextAggregation(16, DEPTHWISE), drop=0.5)
    x = torch.randn(200, 16, 4, 4)
    # Statistics of a batch would mix the samples.
    block.norm1.eval()
    block.norm2.eval()
    with torch.no_grad():
        positioned = x + block.position(x)
        whole = block.conv2(block.aggregation(block.conv1(block.norm1(positioned))))
        # The first branch dropped or doubled, then the second.
        choices = []
        for first in (positioned, positioned + 2 * whole):
            mlp = block.mlp(block.norm2(first))
            choices += [first, first + 2 * mlp]
        out = block(x)
        near = torch.stack([(out - choice).abs().amax(dim=(1, 2, 3)) for choice in choices])
    assert (near.min(dim=0).values < 1e-4).all()
    assert near.argmin(dim=0).bincount(minlength=4).min() > 20
    block.eval()
    with torch.no_grad():
        assert torch.equal(block(x), block(x))


def test_drop_path_rises_to_the_last_block() -> None:
    backbone = build_backbone(
        BackboneConfig(name="container_light_small", weights="none", drop_path=0.1, frozen_stages=0)
    )
    blocks = [block for stage in backbone.blocks for block in stage]
    assert [getattr(block.drop_path, "p", 0.0) for block in blocks] == pytest.approx(
        [0.1 * place / (len(blocks) - 1) for place in range(len(blocks))]
    )


def test_frozen_norm_is_the_norm_in_evaluation_mode() -> None:
    config = BackboneConfig(name="container_light_small", weights="none", norm="batch", frozen_stages=0)
    trained, frozen = build_backbone(config), build_backbone(replace(config, norm="frozen"))
    state = pattern.fill(trained.state_dict())
    trained.load_state_dict(state)
    frozen.load_state_dict({name: value for name, value in state.items() if "num_batches" not in name})
    assert any(isinstance(module, FrozenBatchNorm2d) for module in frozen.modules())
    image = pattern.image(64, 64)[None]
    for ours, theirs in zip(frozen.train()(image), trained.eval()(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_frozen_stages_stay_in_evaluation_mode() -> None:
    config = BackboneConfig(name="container_light_small", weights="none", norm="batch", drop_path=0.2, frozen_stages=2)
    backbone = build_backbone(config).train()
    modes = [{module.training for part in parts for module in part.modules()} for _, parts in backbone.stages()]
    assert modes == [{False}, {False}, {True}]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("blocks.2.") and "norm" in name for name in changed)
