"""ResNets in detectron2's format, made here: names, colours, statistics, and whose network it is."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from resnet_files import as_caffe2, as_converted, pickled, state_of
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.engine.classifiers import build_classifier
from detr_container.models.backbones.backbone import Backbone
from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.backbones.resnet import DEPTHS, MSRA, ResNetBackbone
from detr_container.models.classifier import BackboneClassifier, TimmClassifier
from detr_container.models.layers.frozen_norm import FrozenNorm
from detr_container.models.weights.backbones import load_backbone
from detr_container.models.weights.classifiers import load_classifier
from detr_container.models.weights.detectron2_resnet import EPSILON, resnet_rules
from detr_container.models.weights.layouts import rename


@cache
def network_of(name: str) -> ResNetBackbone:
    """As far as layer3, in which 50 and 101 layers differ."""
    return ResNetBackbone(name, outputs=3)


def loaded(name: str, state: dict[str, Tensor], **entries: object) -> Backbone:
    """Our network with the weights of a file."""
    network = network_of(name)
    load_backbone(network, {"model": state, **entries} if entries else state, "R.pkl")
    return network


def has(network: Backbone, state: dict[str, Tensor], flipped: bool) -> bool:
    """Whether its tensors are those of torchvision's names, the first convolution's colours flipped or not."""
    theirs = state | ({"conv1.weight": state["conv1.weight"].flip(1)} if flipped else {})
    own = network.state_dict()
    return all(torch.equal(value, theirs[name.removeprefix("body.")]) for name, value in own.items())


@pytest.mark.parametrize("name", [*DEPTHS, *MSRA])
def test_every_name_has_one_of_detectron2s_and_comes_back(name: str) -> None:
    network = ResNetBackbone(name)
    state = {key: torch.tensor(float(number)) for number, key in enumerate(network.state_dict())}
    theirs = rename(state, resnet_rules("body.", ""))
    assert len(theirs) == len(state)
    assert all(key.split(".")[0] in ("stem", "res2", "res3", "res4", "res5") for key in theirs)
    assert theirs == as_converted({key.removeprefix("body."): value for key, value in state.items()})


@pytest.mark.parametrize("author", ["Caffe2", "Detectron2 Model Zoo", "somebody"])
@pytest.mark.parametrize("name", MSRA)
def test_msras_network_under_detectron2s_names_reads_red_first(name: str, author: str) -> None:
    state = state_of(name)
    assert not torch.equal(state["conv1.weight"], state["conv1.weight"].flip(1))
    assert has(loaded(name, as_converted(state), __author__=author, matching_heuristics=True), state, flipped=True)


@pytest.mark.parametrize("form", ["alone", "blobs", "model"])
def test_msras_network_under_caffe2s_names(form: str) -> None:
    state = state_of("resnet50")
    named = as_caffe2(state) | {"conv1_b": torch.zeros(64), "res2_0_branch2a_w_momentum": torch.zeros(3)}
    entries: dict[str, Any] = {"alone": {}, "blobs": {"cfg": "MODEL: {}"}, "model": {"__author__": "Caffe2"}}[form]
    network = network_of("resnet50_msra")
    load_backbone(network, named if form == "alone" else {form: named, **entries}, "R-50.pkl")
    assert has(network, state, flipped=True)


@pytest.mark.parametrize("names", [as_caffe2, as_converted])
def test_a_pickle_is_read_by_the_settings_that_name_it(names: Any, tmp_path: Path) -> None:
    state = state_of("resnet50")
    path = pickled(tmp_path / "R-50.pkl", names(state), __author__="Caffe2")
    config = BackboneConfig(name="resnet50_msra", weights=str(path), stage=-3, frozen_stages=0)
    assert has(build_backbone(config), state, flipped=True)


@pytest.mark.parametrize("names", [as_caffe2, as_converted])
def test_norms_without_statistics_scale_and_shift_alone(names: Any) -> None:
    """As detectron2 takes them, whose norms start from mean 0 and variance 1 - eps."""
    state = {name: value for name, value in state_of("resnet50").items() if "running_" not in name}
    named = as_caffe2(state, statistics=False) if names is as_caffe2 else as_converted(state)
    norm = loaded("resnet50_msra", named, __author__="Caffe2").body.layer3[2].bn2
    assert isinstance(norm, FrozenNorm)
    assert norm.eps == EPSILON
    assert torch.equal(norm.running_mean, torch.zeros(256))
    torch.testing.assert_close(norm.scale, state["layer3.2.bn2.weight"])
    assert torch.equal(norm.shift, state["layer3.2.bn2.bias"])
    # With some of them, the others are missing.
    some = named | {"stem.conv1.norm.running_mean": torch.zeros(64), "res_conv1_bn_rm": torch.zeros(64)}
    with pytest.raises(ValueError, match="running_var is missing"):
        loaded("resnet50_msra", some, __author__="Caffe2")


@pytest.mark.parametrize("name", DEPTHS)
def test_torchvisions_network_converted_for_detectron2(name: str) -> None:
    state = state_of(name)
    network = loaded(name, as_converted(state), __author__="torchvision", matching_heuristics=True)
    assert has(network, state, flipped=False)


PIXELS = {"pixel_mean": torch.tensor([103.5, 116.3, 123.7]), "pixel_std": torch.ones(3, 1, 1)}


@pytest.mark.parametrize(
    ("names", "more", "author"),
    [
        (as_caffe2, {}, ""),
        (as_converted, {}, "Caffe2"),
        (as_converted, {}, "Detectron2 Model Zoo"),
        (as_converted, PIXELS, ""),
    ],
    ids=["names", "author", "model zoo", "pixels"],
)
def test_msras_weights_are_refused_elsewhere(names: Any, more: dict[str, Tensor], author: str) -> None:
    content = {"model": names(state_of("resnet50")) | more, "__author__": author}
    with pytest.raises(ValueError, match=r"R\.pkl is MSRA's ResNet .*--backbone\.name resnet50_msra$"):
        load_backbone(network_of("resnet50"), content, "R.pkl")
    with pytest.raises(ValueError, match=r"--backbone\.name resnet101_msra$"):
        load_backbone(
            network_of("resnet101"), {"model": names(state_of("resnet101")) | more} | {"__author__": author}, ""
        )
    other = TimmClassifier("resnet26", 3, 0.0, 64, False)
    with pytest.raises(ValueError, match=r"--backbone\.name resnet50_msra$"):
        load_classifier(other, content, "R.pkl")


def test_torchvisions_weights_are_refused_by_msras() -> None:
    with pytest.raises(ValueError, match=r"is torchvision's ResNet .*'torchvision'.*--backbone\.name resnet50$"):
        loaded("resnet50_msra", as_converted(state_of("resnet50")), __author__="torchvision")


def test_the_statistics_of_pixels_say_which_colour_comes_first() -> None:
    state, mean = state_of("resnet50"), torch.tensor([123.675, 116.28, 103.53])
    for name, means, std, flipped in (
        ("resnet50_msra", mean, 1.0, False),
        ("resnet50_msra", mean.flip(0), 1.0, True),
        ("resnet50", mean, 57.0, False),
        ("resnet50", mean.flip(0), 57.0, True),
    ):
        more = {"pixel_mean": means[:, None, None], "pixel_std": torch.full((3, 1, 1), std)}
        assert has(loaded(name, as_converted(state) | more), state, flipped)


def test_where_nothing_says_the_network_that_is_asked_for_decides() -> None:
    state = state_of("resnet50")
    assert has(loaded("resnet50", as_converted(state)), state, flipped=False)
    assert has(loaded("resnet50_msra", as_converted(state)), state, flipped=True)


def test_ours_is_told_from_the_other_by_what_its_checkpoint_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(name: str) -> Backbone:
        return build_backbone(BackboneConfig(name=name, weights=str(path), stage=-3, frozen_stages=0))

    state, path = state_of("resnet50"), tmp_path / "c.pt"
    model = {f"backbone.body.{name}": value for name, value in state.items()}
    for of, other in (("resnet50_msra", "resnet50"), ("resnet50", "resnet50_msra")):
        torch.save({"model": model, "experiment": {"backbone": {"name": of}}}, path)
        assert has(start(of), state, flipped=False)
        with pytest.raises(ValueError, match=rf"is of backbone\.name={of}, .*those of {other}, but"):
            start(other)
    assert caplog.text == ""
    # torchvision's file says nothing: it fits, and is most likely not what is meant.
    torch.save(state, path)
    start("resnet50_msra")
    assert "has torchvision's names and does not say whose they are" in caplog.text


def test_a_classifier_starts_from_a_whole_file() -> None:
    state = state_of("resnet50")
    model = build_classifier(BackboneConfig(name="resnet50_msra", weights="none", frozen_stages=0), 5, 64)
    assert isinstance(model, BackboneClassifier)
    for named in (as_caffe2(state), as_converted(state)):
        assert load_classifier(model, {"model": named, "__author__": "Caffe2"}, "R.pkl").kept
        assert torch.equal(model.head.weight, state["fc.weight"])
        assert torch.equal(model.head.bias, state["fc.bias"])
        assert torch.equal(model.backbone.body.conv1.weight, state["conv1.weight"].flip(1))
        torch.nn.init.zeros_(model.head.weight)


def test_the_strides_are_in_the_first_convolutions_and_nothing_else_changes() -> None:
    ours, usual = ResNetBackbone("resnet50_msra"), ResNetBackbone("resnet50")
    assert (ours.channels, ours.strides, ours.mean) == (usual.channels, usual.strides, usual.mean)
    assert ours.std == (1 / 255,) * 3
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in usual.state_dict().items()
    }
    strides = [
        [block.conv1.stride[0], block.conv2.stride[0], block.downsample[0].stride[0]]
        for block in (layer[0] for layer in (ours.body.layer1, ours.body.layer2, ours.body.layer3, ours.body.layer4))
    ]
    assert strides == [[1, 1, 1], *[[2, 1, 2]] * 3]
    assert [name for name, _ in ours.stages()] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    dilated = ResNetBackbone("resnet50_msra", dilation=True)
    assert dilated.strides == (4, 8, 16, 16)
    assert dilated(torch.zeros(1, 3, 64, 64))[-1].shape[-1] == 4


def test_freezing_and_checkpointing_go_by_stage() -> None:
    network = build_backbone(BackboneConfig(name="resnet50_msra", weights="none", frozen_stages=2))
    assert isinstance(network, ResNetBackbone)
    assert [trained == 0 for _, trained, _ in network.count_parameters()] == [True, True, False, False, False]
    assert [id(part) for part in network.checkpointed()] == [
        id(part) for part in (network.body.layer2, network.body.layer3, network.body.layer4)
    ]
    assert network.own_precision() == [network.body]


def test_what_to_do_without_a_file() -> None:
    for name, depth in (("resnet50_msra", 50), ("resnet101_msra", 101)):
        address = rf"https://dl\.fbaipublicfiles\.com/detectron2/ImageNetPretrained/MSRA/R-{depth}\.pkl"
        with pytest.raises(ValueError, match=rf"weights of {name} .*{address} .*backbone\.weights"):
            build_backbone(BackboneConfig(name=name))


def test_another_network_with_such_names_is_not_taken_for_one() -> None:
    state = as_converted(state_of("resnet18"))
    with pytest.raises(ValueError, match=r"does not fit ResNetBackbone: .* is missing"):
        loaded("resnet50", state)
    with pytest.raises(ValueError, match="does not fit Container"):
        load_backbone(Container(SIZES["container_light_tiny"]), state, "R.pkl")
