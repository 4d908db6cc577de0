"""Our backbones under detectron2's own models, by yacs settings: which maps they give, and the order of colours."""

from typing import Any

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_model

import detr_container.d2  # noqa: F401
from detr_container.d2.settings import add_keys
from detr_container.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

NAMES = {
    "build_detr_container_backbone": ["s2", "s3", "s4"],
    "build_detr_container_fpn_backbone": ["p2", "p3", "p4", "p5"],
    "build_detr_container_retinanet_fpn_backbone": ["p3", "p4", "p5", "p6"],
}


def settings(name: str, kind: str = "RetinaNet", order: str = "RGB", **changed: Any) -> CfgNode:
    """RetinaNet or GeneralizedRCNN on the tiny CONTAINER-LIGHT, whose maps have the strides 4, 8 and 16."""
    cfg = get_cfg()
    add_keys(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = kind, name, "cpu"
    own = cfg.MODEL.DETR_CONTAINER.BACKBONE
    own.NAME, own.WEIGHTS, own.FROZEN_STAGES = "container_light_tiny", "none", 0
    cfg.INPUT.FORMAT = order
    turned = slice(None, None, 1 if order == "RGB" else -1)
    cfg.MODEL.PIXEL_MEAN = [255 * value for value in IMAGENET_MEAN[turned]]
    cfg.MODEL.PIXEL_STD = [255 * value for value in IMAGENET_STD[turned]]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.IN_FEATURES = NAMES["build_detr_container_retinanet_fpn_backbone"]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64]]
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    for key, value in changed.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_what_they_give(name: str) -> None:
    backbone = BACKBONE_REGISTRY.get(name)(settings(name), None)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert list(maps) == NAMES[name]
    for key, shape in backbone.output_shape().items():
        assert shape.stride == 2 ** int(key[1:])
        assert tuple(maps[key].shape) == (1, shape.channels, -(-64 // shape.stride), -(-96 // shape.stride))


def test_the_order_of_colours_changes_nothing_and_a_wrong_one_does() -> None:
    name = "build_detr_container_retinanet_fpn_backbone"
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    found = {}
    for order in ("RGB", "BGR"):
        torch.manual_seed(0)
        model = build_model(settings(name, order=order)).eval()
        for label, pixels in (("as", image), ("wrong", image.flip(0))):
            given = pixels.flip(0) if order == "BGR" else pixels
            with torch.inference_mode():
                images = model.preprocess_image([{"image": given}])
                found[order, label] = model.backbone(images.tensor)["p3"]
    torch.testing.assert_close(found["RGB", "as"], found["BGR", "as"], atol=1e-5, rtol=0)
    assert (found["RGB", "as"] - found["RGB", "wrong"]).abs().max() > 0.01 * found["RGB", "as"].abs().max()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"MODEL__PIXEL_MEAN": [103.53, 116.28, 123.675]}, "was made for .* of RGB images"),
        ({"MODEL__FPN__NORM": "GN"}, "the pyramids here have no norms"),
        ({"MODEL__DETR_CONTAINER__BACKBONE__NAME": "mh_dw_tiny_"}, "there is no backbone 'mh_dw_tiny_'"),
    ],
)
def test_settings_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(settings("build_detr_container_retinanet_fpn_backbone", **changed))


def test_norms_on_the_maps() -> None:
    name = "build_detr_container_fpn_backbone"
    backbone = BACKBONE_REGISTRY.get(name)(settings(name, MODEL__DETR_CONTAINER__MAP_NORM="layer"), None)
    assert len(backbone.bottom_up.norms) == 3
