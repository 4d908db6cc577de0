"""One file in detectron2's own ResNet and in ours: the same feature maps of the same picture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from resnet_files import as_caffe2, as_converted, pickled, state_of
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.models.backbones.backbone import Backbone
from detr_container.models.weights.backbones import load_backbone

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone

IMAGE = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
NAMES = ["res2", "res3", "res4", "res5"]


def weights() -> dict[str, Tensor]:
    """Numbers under which every map has values of about one."""
    state = {name: value.clone() for name, value in state_of("resnet50").items()}
    for name, value in state.items():
        if value.dim() == 4:
            value.sub_(0.5).mul_((6 / value[0].numel()) ** 0.5)
        elif name.endswith(("bias", "running_mean")):
            value.sub_(0.5)
        else:
            value.mul_(0.5).add_(0.5)
    # Pixels of 0 .. 255 come in.
    state["conv1.weight"] /= 50
    return state


@torch.no_grad()
def theirs(path: Path, stride_in_1x1: bool, mean: list[float], std: list[float], image: Tensor) -> list[Tensor]:
    """What detectron2 makes of an image in the order of colours that its settings say; it loads the file itself."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = NAMES, stride_in_1x1
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(model).load(str(path))
    maps = model((image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    return [maps[name] for name in NAMES]


def built(name: str, path: Path) -> Backbone:
    return build_backbone(BackboneConfig(name=name, weights=str(path), frozen_stages=0)).eval()


@torch.no_grad()
def ours(backbone: Backbone, image: Tensor = IMAGE) -> list[Tensor]:
    """What ours makes of an image, red first."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (backbone.mean, backbone.std))
    return backbone((image / 255 - mean) / std)


def furthest(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("form", ["detectron2", "caffe2", "scale and shift"])
def test_msras_network(form: str, tmp_path: Path) -> None:
    state = weights()
    if form == "scale and shift":
        state = {name: value for name, value in state.items() if "running_" not in name}
    named = as_converted(state) if form == "detectron2" else as_caffe2(state, form == "caffe2")
    # Of their own names, detectron2 would not know all if the author were Caffe2.
    author = "somebody" if form == "detectron2" else "Caffe2"
    path = pickled(tmp_path / "R-50.pkl", named, __author__=author, matching_heuristics=True)
    # The file's own: blue first, less the mean of each colour, not scaled.
    expected = theirs(path, True, [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], IMAGE.flip(1))
    backbone = built("resnet50_msra", path)
    assert furthest(ours(backbone), expected) < 1e-4
    assert min(float(each.abs().max()) for each in expected) > 0.1
    # With the colours in the other order it is another picture.
    assert furthest(ours(backbone, IMAGE.flip(1)), expected) > 1e-2


def test_torchvisions_network(tmp_path: Path) -> None:
    path = pickled(tmp_path / "r50.pkl", as_converted(weights()), __author__="torchvision", matching_heuristics=True)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    expected = theirs(path, False, mean, std, IMAGE)
    backbone = built("resnet50", path)
    assert furthest(ours(backbone), expected) < 1e-4
    assert furthest(ours(backbone, IMAGE.flip(1)), expected) > 1e-2
    # With strides elsewhere it is another network.
    assert furthest(theirs(path, True, mean, std, IMAGE), expected) > 1e-2


def test_a_checkpoint_of_their_own_network(tmp_path: Path) -> None:
    """As their trainer writes it: names alone, and nothing that says what they are of."""
    cfg: Any = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = NAMES
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    backbone = build_backbone(BackboneConfig(name="resnet50_msra", weights="none", frozen_stages=0))
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert load_backbone(backbone, content, "model_final.pth") == []
    own = backbone.state_dict()
    assert len(own) == len(content["model"]) == 265
    assert torch.equal(own["body.conv1.weight"], content["model"]["stem.conv1.weight"].flip(1))
    assert torch.equal(own["body.layer4.2.conv3.weight"], content["model"]["res5.2.conv3.weight"])
