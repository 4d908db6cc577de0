"""Feature levels: what backbones give, what heads of one and of several levels make of it."""

import pytest
import torch
import torch.nn.functional as F
from many_levels import HEADS, LAYERS, QUERIES, WIDTH, ManyLevels
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.datasets.batch import Targets
from detr_container.engine.backbones import build_backbone
from detr_container.models.backbones.backbone import Backbone
from detr_container.models.criterion import Criterion
from detr_container.models.detr import Detr
from detr_container.models.layers.levels import Level, bias_of, by_stride, positions_of, tokens_of
from detr_container.models.layers.position_encoding import Extent, SinePosition
from detr_container.models.matcher import Matcher
from detr_container.models.smca import SmcaDetr

STRIDES = (8, 16, 32)
CHANNELS = {"resnet18": (128, 256, 512), "container_light": (128, 320, 512)}
# Not square, and the smaller image covers no whole number of positions.
SIZES = torch.tensor([[96, 160], [70, 101]])


def backbone_of(name: str) -> Backbone:
    return build_backbone(BackboneConfig(name=name, weights="none", frozen_stages=0))


def batch() -> Tensor:
    images = torch.zeros(2, 3, 96, 160, dtype=torch.uint8)
    for image, (height, width) in zip(images, SIZES.tolist(), strict=True):
        image[:, :height, :width] = torch.randint(256, (3, height, width))
    return images


@pytest.mark.parametrize("name", CHANNELS)
@torch.no_grad()
def test_levels_have_their_masks_and_positions(name: str) -> None:
    every = backbone_of(name)
    model = ManyLevels(backbone_of(name).at_strides(*STRIDES), 4).eval()
    model.backbone.load_state_dict(every.state_dict())
    assert (model.backbone.channels, model.backbone.strides, model.strides) == (CHANNELS[name], STRIDES, STRIDES)
    images = batch()
    maps = model.backbone(model.normalise(images, SIZES, padded=True))
    for ours, theirs in zip(maps, every.eval()(model.normalise(images, SIZES, padded=True))[1:], strict=True):
        assert torch.equal(ours, theirs)
    outside = torch.ones(2, 96, 160)
    for image, (height, width) in zip(outside, SIZES.tolist(), strict=True):
        image[:height, :width] = 0
    levels = model.levels(images, SIZES, padded=True)
    assert tuple(level.stride for level in levels) == STRIDES
    for level in levels:
        height, width = 96 // level.stride, 160 // level.stride
        assert level.features.shape == (2, WIDTH, height, width)
        expected = F.interpolate(outside[None], size=(height, width))[0].bool().flatten(1)
        assert torch.equal(level.cover.padding(), expected)
        inside = ~expected.view(2, height, width)
        rows, columns = inside.sum(dim=1).amax(dim=1), inside.sum(dim=2).amax(dim=1)
        assert torch.equal(level.position, SinePosition(WIDTH)(Extent(height, width, rows, columns)))
    everywhere = torch.cat([level.cover.padding() for level in levels], dim=1)
    assert torch.equal(bias_of(levels, 8)[:, 0, 0].isinf(), everywhere)
    assert tokens_of(levels).shape == positions_of(levels).shape == (2, everywhere.shape[1], WIDTH)
    assert bias_of(model.levels(images, SIZES, padded=False), 8) is None


@pytest.mark.parametrize("more", [False, True], ids=["three", "one more of its own"])
@pytest.mark.parametrize("name", CHANNELS)
def test_a_head_of_several_levels_detects_and_trains(name: str, more: bool) -> None:
    torch.manual_seed(0)
    model = ManyLevels(backbone_of(name).at_strides(*STRIDES), 4, more)
    images = batch()
    output = model(images, SIZES, attention_maps=True)
    assert output.logits.shape == (LAYERS, 2, QUERIES, 4)
    grids = {8: (12, 20), 16: (6, 10), 32: (3, 5), **({64: (2, 3)} if more else {})}
    assert list(output.attention) == list(model.strides) == list(grids)
    covered = torch.zeros(LAYERS, 2, HEADS, QUERIES)
    for stride, attention in output.attention.items():
        assert attention.shape == (LAYERS, 2, HEADS, QUERIES, *grids[stride])
        # 70 x 101 pixels.
        assert not attention[:, 1, ..., -(-70 // stride) :, :].any()
        assert not attention[:, 1, ..., -(-101 // stride) :].any()
        assert (attention[:, 1].sum(dim=(-2, -1)) > 0).all()
        covered += attention.detach().sum(dim=(-2, -1))
    torch.testing.assert_close(covered, torch.ones_like(covered))
    labels, boxes = torch.tensor([0, 2, 1]), torch.tensor([[0.5, 0.5, 0.3, 0.4]] * 3)
    targets = Targets.of_images(labels.split((2, 1)), boxes.split((2, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        output = model(images, SIZES)
        loss = Criterion()(output, targets, Matcher()(output, targets)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unread = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # Of the first stages nothing is frozen here, and every level's projection learns.
    assert unread == []
    assert all(layer.weight.grad.abs().sum() > 0 for layer in model.input_proj)


@torch.no_grad()
def test_what_lies_on_the_padding_of_any_level_is_not_seen() -> None:
    model = ManyLevels(backbone_of("resnet18").at_strides(*STRIDES), 4).eval()
    images = batch()
    clean = model(images, SIZES)
    images[1, :, 70:] = 255
    images[1, :, :, 101:] = 7
    assert torch.equal(model(images, SIZES).logits, clean.logits)
    assert torch.equal(model(images, SIZES).boxes, clean.boxes)


def test_each_level_gets_its_own_weights() -> None:
    """Counted up over all positions, so that one in a wrong place shows."""
    grids = [(4, 6), (2, 3), (1, 2)]
    levels = [
        Level(
            stride,
            torch.zeros(1, 4, h, w),
            Extent(h, w, torch.tensor([h]), torch.tensor([w])),
            torch.zeros(1, h * w, 4),
        )
        for stride, (h, w) in zip(STRIDES, grids, strict=True)
    ]
    found = by_stride(levels, torch.arange(32.0).expand(5, -1))
    assert {stride: tuple(part.shape) for stride, part in found.items()} == {8: (5, 4, 6), 16: (5, 2, 3), 32: (5, 1, 2)}
    assert found[8][0, 1, 2] == 8
    assert found[16][3].tolist() == [[24, 25, 26], [27, 28, 29]]
    assert found[32][4].tolist() == [[30, 31]]


def test_one_level_costs_no_copy() -> None:
    features, position = torch.randn(2, 4, 3, 5), torch.randn(2, 15, 4)
    level = Level(16, features, Extent(3, 5, torch.tensor([3, 2]), torch.tensor([5, 5])), position)
    assert tokens_of([level]).data_ptr() == features.data_ptr()
    assert positions_of([level]) is position
    weights = torch.randn(2, 7, 15)
    assert by_stride([level], weights)[16].data_ptr() == weights.data_ptr()


@pytest.mark.parametrize(("kind", "name"), [(Detr, "DETR"), (SmcaDetr, "SMCA-DETR")])
def test_a_head_of_one_level_refuses_several(kind: type[Detr | SmcaDetr], name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{name} reads one feature level, .* gives 4, of the strides 4, 8, 16, 32: "
    ):
        kind(backbone_of("resnet18"), 4)
    with pytest.raises(
        ValueError, match=r"gives 2, of the strides 8, 32: ask it for one, as in backbone\.at_strides\(32"
    ):
        kind(backbone_of("resnet18").at_strides(8, 32), 4)


def test_levels_of_one_stride_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(16, 16, 16\): .* one of each \(backbone\.at_strides\)"):
        ManyLevels(backbone_of("timm/test_vit"), 4)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        (
            (8, 12, 32),
            r"strides 8, 12, 32: this backbone has 4, 8, 16, 32; name some of these once, in ascending order",
        ),
        ((32, 8), r"strides 32, 8: .* in ascending order"),
        ((8, 8, 32), r"strides 8, 8, 32: .* once"),
        ((), r"strides none: this backbone has 4, 8, 16, 32"),
        ((8, 16), r"strides 8, 16: .* built up to a map of stride 32, which nothing would read; .* one of stride 16"),
    ],
)
def test_levels_that_cannot_be_given(strides: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone_of("resnet18").at_strides(*strides)


@torch.no_grad()
def test_of_a_stride_the_deepest_map_is_given() -> None:
    backbone = build_backbone(BackboneConfig(name="resnet50", weights="none", dilation=True, frozen_stages=0)).eval()
    image = torch.randn(1, 3, 64, 64)
    every = backbone(image)
    backbone.at_strides(8, 16)
    assert (backbone.channels, backbone.strides) == ((512, 2048), (8, 16))
    for ours, theirs in zip(backbone(image), (every[1], every[3]), strict=True):
        assert torch.equal(ours, theirs)
    # Once more: places are those of what is given now.
    (last,) = backbone.at_strides(16)(image)
    assert torch.equal(last, every[3])
