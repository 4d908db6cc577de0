"""SMCA's Gaussian prior against naive loops, and what SMCA-DETR does with it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.detector import Detector
from detr_container.models.detr import Detr
from detr_container.models.layers.position_encoding import Extent
from detr_container.models.smca import SCALES, GaussianPrior, SmcaDetr

HEADS, WIDTH = 2, 8


def tiny(kind: type[Detector] = SmcaDetr, **options: object) -> Detector:
    """A detector for 64-pixel images that computes in milliseconds."""
    shared: dict[str, object] = {"queries": 5, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 3}
    shared |= {"feedforward": 32, "dropout": 0.0}
    backbone = Container(SIZES["container_light_tiny"], frozen_norm=True).at_strides(16)
    return kind(backbone, 4, **(shared | options)).eval()


@pytest.mark.parametrize("gaussian", SCALES)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 4), width=st.integers(1, 4))
def test_the_prior_is_that_of_naive_loops(gaussian: str, seed: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    prior = GaussianPrior(WIDTH, HEADS, gaussian, smooth=5.0)
    query, centre = torch.randn(2, 3, WIDTH), torch.rand(2, 3, 2) * 4
    cover = Extent(height, width, torch.tensor([height, 1]), torch.tensor([1, width]))
    ours = prior(query, centre, cover).unflatten(-1, (height, width))
    offset = prior.offset(query)
    scale = prior.scale(query) ** 2 if SCALES[gaussian] else None
    for image in range(2):
        for head in range(HEADS):
            for one in range(3):
                # Head after head, each with (x, y), or (x, y, xy).
                x = (centre[image, one, 0] + offset[image, one, 2 * head]).item()
                y = (centre[image, one, 1] + offset[image, one, 2 * head + 1]).item()
                for row in range(height):
                    for column in range(width):
                        dx, dy = (x - column) ** 2, (y - row) ** 2
                        if gaussian == "type1":
                            distance = dx + dy
                        else:
                            count = SCALES[gaussian]
                            s = scale[image, one, count * head : count * (head + 1)].tolist()
                            along = (s[0], s[0], 0.0) if gaussian == "type2" else (*s, 0.0)
                            distance = dx * along[0] + dy * along[1] + dx * dy * along[2]
                        found = ours[image, head, one, row, column].item()
                        assert found == pytest.approx(-distance / 5.0, rel=1e-4, abs=1e-4)


def test_it_starts_isotropic_and_with_rare_objects() -> None:
    model = tiny()
    for prior in model.decoder.priors:
        assert torch.equal(prior.scale(torch.randn(3, 16)), torch.ones(3, 2 * 2))
    assert torch.allclose(model.class_embed.bias.sigmoid(), torch.tensor(0.01))


def test_centres_are_positions_of_the_real_stride_in_the_true_size() -> None:
    """The reference point 0.5 is the middle of the unpadded image, whatever the backbone's stride."""
    model = tiny()
    nn.init.zeros_(model.decoder.reference.layers[-1].weight)
    nn.init.zeros_(model.decoder.reference.layers[-1].bias)
    for prior in model.decoder.priors:
        nn.init.zeros_(prior.offset.weight)
        nn.init.zeros_(prior.offset.bias)
    images, sizes = torch.randn(2, 3, 96, 128), torch.tensor([[96, 128], [64, 32]])
    assert model.stride == 16
    with torch.no_grad():
        gaussians = model(images, sizes, attention_maps=True).gaussians[16]
    # 96 x 128 pixels are 6 x 8 positions: centre (4, 3); 64 x 32 pixels are 4 x 2: centre (1, 2).
    for image, (row, column) in enumerate([(3, 4), (2, 1)]):
        for gaussian in gaussians[:, image].flatten(0, 2):
            assert gaussian[row, column] == gaussian.max() == 1
            assert gaussian[row, column - 1].item() == pytest.approx(math.exp(-1 / 8), rel=1e-5)


def test_all_layers_share_the_reference_points() -> None:
    model = tiny()
    for layer in model.bbox_embed.layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    images, sizes = torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]])
    boxes = model(images, sizes).boxes
    # With nothing added, a box is centred on its reference point, and half the image wide.
    reference = model.decoder.reference(model.decoder.priors[0].norm(model.query_embed.weight)).sigmoid()
    for layer in boxes:
        torch.testing.assert_close(layer[0, :, :2], reference, rtol=1e-5, atol=1e-6)
    assert (boxes[..., 2:] == 0.5).all()
    boxes.sum().backward()
    assert model.decoder.reference.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [Detr, SmcaDetr])
def test_attention_maps_show_where_the_decoder_attends(kind: type[Detector]) -> None:
    model = tiny(kind)
    images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [32, 48]])
    with torch.no_grad():
        output, plain = model(images, sizes, attention_maps=True), model(images, sizes)
    assert list(output.attention) == [16]
    attention = output.attention[16]
    assert attention.shape == (3, 2, 2, 5, 4, 6)
    torch.testing.assert_close(attention.sum(dim=(-2, -1)), torch.ones(3, 2, 2, 5))
    assert not attention[:, 1, ..., 2:, :].any()
    assert not attention[:, 1, ..., 3:].any()
    assert torch.equal(output.logits, plain.logits)
    assert plain.attention is None
    assert plain.gaussians is None
    if kind is Detr:
        assert output.gaussians is None
    else:
        assert list(output.gaussians) == [16]
        assert output.gaussians[16].shape == attention.shape
        assert output.gaussians[16].max() <= 1
        assert output.gaussians[16].min() >= 0


@pytest.mark.parametrize("kind", [Detr, SmcaDetr])
def test_without_auxiliary_losses_only_the_last_layer_predicts(kind: type[Detector]) -> None:
    model = tiny(kind)
    images, sizes = torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]])
    with torch.no_grad():
        every = model(images, sizes)
        model.auxiliary = False
        last = model(images, sizes)
    assert len(every.logits) == 3
    torch.testing.assert_close(last.logits, every.logits[-1:])
    torch.testing.assert_close(last.boxes, every.boxes[-1:])
