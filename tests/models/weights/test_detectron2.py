"""Names of detectors in detectron2's form and in ours, both ways."""

import pytest
import torch
from golden import published
from resnet_files import as_converted
from torch import Tensor

from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.backbones.resnet import ResNetBackbone
from detr_container.models.backbones.timm_backbone import TimmBackbone
from detr_container.models.detr import Detr
from detr_container.models.smca import SmcaDetr
from detr_container.models.weights.class_rows import Rows, class_rows, reordered
from detr_container.models.weights.detectors import detector_weights
from detr_container.models.weights.detectron2 import (
    anchor_kind,
    from_anchors,
    from_detectron2,
    to_anchors,
    to_detectron2,
)
from detr_container.models.weights.find import find_weights
from detr_container.models.weights.layouts import from_published

SMALL = {"queries": 2, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8}


def numbered(names: list[str]) -> dict[str, Tensor]:
    """A tensor for every name that says which one it is."""
    return {name: torch.tensor(float(number)) for number, name in enumerate(names)}


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as DETR's authors convert them for detectron2."""
    start = "backbone.0.body."
    body = as_converted({name.removeprefix(start): value for name, value in state.items() if name.startswith(start)})
    rest = {name: value for name, value in state.items() if not name.startswith(start)}
    return {f"detr.{name}": v for name, v in ({f"backbone.0.backbone.{k}": v for k, v in body.items()} | rest).items()}


@pytest.mark.parametrize("name", published.DETECTORS)
def test_published_names_are_converted_as_by_their_authors(name: str) -> None:
    state = numbered(list(published.shapes(name)))
    theirs = converted(state)
    assert len(theirs) == len(state)
    ours = from_published(state)
    assert to_detectron2(ours, resnet=True) == theirs
    assert from_detectron2({key.removeprefix("detr."): value for key, value in theirs.items()}) == ours


@pytest.mark.parametrize(
    "backbone",
    [
        Container(SIZES["container_light_tiny"]),
        TimmBackbone("resnet10t", -1, 0, False, True, 0.0, 0),
        ResNetBackbone("resnet18_tiny"),
    ],
    ids=["container_light", "timm", "narrow"],
)
@pytest.mark.parametrize("head", [Detr, SmcaDetr])
def test_backbones_that_detectron2_has_not_keep_our_names(backbone: object, head: type) -> None:
    assert isinstance(backbone, Container | TimmBackbone | ResNetBackbone)
    strides = backbone.strides
    model = head(backbone.at_strides(strides[-1]), 3, **SMALL)
    state = model.state_dict()
    theirs = to_detectron2(state, resnet=False)
    assert len(theirs) == len(state)
    own = {f"detr.backbone.0.backbone.network.{name}" for name in backbone.state_dict()}
    assert {name for name in theirs if ".backbone." in name} == own
    for prefix in ("", "module.", "model."):
        found = find_weights({"model": {prefix + name: value for name, value in theirs.items()}})
        inside, again, layout = detector_weights(found)
        assert layout == "detectron2"
        assert inside.outside == ()
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name], state[name]) for name in state)


def test_what_stands_beside_the_detector_is_left_out() -> None:
    state = to_detectron2(Detr(ResNetBackbone("resnet18").at_strides(32), 3, **SMALL).state_dict(), resnet=True)
    more = {"criterion.empty_weight": torch.ones(3), "pixel_mean": torch.zeros(3, 1, 1)}
    inside, again, layout = detector_weights(find_weights({"model": state | more, "iteration": 3}))
    assert layout == "detectron2"
    assert set(inside.outside) == set(more)
    assert len(again) == len(state)
    # With masks, the detector is within another, which has the mask head beside it.
    masks = {f"detr.{name}": value for name, value in state.items()} | {"detr.mask_head.lay1.weight": torch.zeros(1)}
    inside, again, _ = detector_weights(find_weights({"model": masks}))
    assert inside.masks
    assert len(again) == len(state)


def test_what_detectron2_has_trained_of_our_own_detectors() -> None:
    model = Detr(Container(SIZES["container_light_tiny"]).at_strides(16), 3, **SMALL)
    state = {f"detector.{name}": value for name, value in model.state_dict().items()}
    _, again, layout = detector_weights(find_weights({"model": state, "iteration": 9}))
    assert layout == "detectron2"
    assert again.keys() == model.state_dict().keys()


RETINANET = ("head.cls_score.weight", "head.bbox_pred.weight", "head.bbox_subnet.0.weight", "head.cls_score.bias")
MASK_RCNN = (
    *("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.bias"),
    *("roi_heads.box_predictor.bbox_pred.weight", "roi_heads.mask_head.predictor.weight"),
    "proposal_generator.rpn_head.conv.weight",
)


def test_detectron2s_own_detectors_are_known_by_their_heads() -> None:
    assert anchor_kind(RETINANET) == anchor_kind([f"model.{name}" for name in RETINANET]) == "retinanet"
    assert anchor_kind(MASK_RCNN) == anchor_kind([f"model.{name}" for name in MASK_RCNN]) == "mask_rcnn"
    for others in (
        [*RETINANET, "head.ctrness.weight"],
        [*MASK_RCNN, "roi_heads.keypoint_head.conv_fcn1.weight"],
        [*MASK_RCNN, "sem_seg_head.p2.0.weight"],
        [name for name in MASK_RCNN if "mask_head" not in name],
        ["class_embed.weight"],
    ):
        assert anchor_kind(others) == ""
    faster = numbered([name for name in MASK_RCNN if "mask_head" not in name])
    with pytest.raises(ValueError, match=r"another region-proposal detector than detectron2's Mask R-CNN"):
        detector_weights(find_weights(faster))


def test_names_below_a_pyramid_are_ours_with_our_backbones_and_with_theirs() -> None:
    network = numbered(list(ResNetBackbone("resnet50_msra").state_dict()))
    ours = {f"model.backbone.bottom_up.network.{name}": value for name, value in network.items()}
    ours |= numbered([f"model.{name}" for name in (*RETINANET, "backbone.fpn_lateral3.weight")])
    plain = to_anchors(ours | {"per_image": torch.tensor(3.0)})
    assert plain.keys() == {name.removeprefix("model.") for name in ours}
    assert from_anchors(plain, "") == (ours, None)
    body = as_converted({name.removeprefix("body."): value for name, value in network.items()})
    theirs = {name: value for name, value in plain.items() if "bottom_up" not in name}
    theirs |= {f"backbone.bottom_up.{name}": value for name, value in body.items()}
    old = ("anchor_generator.cell_anchors.0", "proposal_generator.anchor_generator.cell_anchors.3", "pixel_std")
    named, resnet = from_anchors(theirs | dict.fromkeys(old, torch.zeros(())), "Caffe2")
    assert named == ours
    assert resnet is not None
    assert resnet.msra
    assert resnet.blue_first


def test_the_rows_of_a_class_are_found_in_every_tensor() -> None:
    """Each is chosen alone and compared with where detectron2 has it."""
    value = torch.arange(24.0)
    # Three anchors of eight classes; six classes and the background; boxes of six classes.
    assert Rows(groups=3).chosen(value, [1]).tolist() == [1, 9, 17]
    assert Rows(spare=1).chosen(value[:7], [5, 0]).tolist() == [5, 0, 6]
    assert Rows(each=4).chosen(value, [2]).tolist() == [8, 9, 10, 11]
    assert [Rows(each=4).classes(each) for each in (value, value[:7], torch.tensor(1.0))] == [6, -1, -1]
    state = {
        "model.roi_heads.box_predictor.cls_score.weight": torch.zeros(4, 2),
        "model.roi_heads.box_predictor.bbox_pred.weight": torch.zeros(12, 2),
        "model.roi_heads.mask_head.predictor.weight": torch.zeros(3, 2, 1, 1),
        "model.proposal_generator.rpn_head.conv.weight": torch.zeros(1),
    }
    rows = class_rows(state, no_object=False)
    assert {name: len(each) for name, each in reordered(state, rows, [2, 1]).items()} == dict(
        zip(state, (3, 8, 2, 1), strict=True)
    )
    # The same boxes and masks for all classes belong to none.
    agnostic = state | {
        "model.roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 2),
        "model.roi_heads.mask_head.predictor.weight": torch.zeros(1, 2, 1, 1),
    }
    assert {name.split(".")[-2] for name in class_rows(agnostic, no_object=False)} == {"cls_score"}
