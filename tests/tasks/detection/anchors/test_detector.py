"""Detectors that detectron2 builds: the same detections and losses as in its own hands, whatever surrounds them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from anchored import KINDS, anchored, needs_detectron2
from pycocotools import mask
from torch import Tensor

from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import validate
from detr_container.datasets.batch import Batch, collate
from detr_container.models.layers.frozen_norm import FrozenNorm
from detr_container.tasks.detection.build import build_detector, open_data, size_multiple
from detr_container.tasks.detection.canvases import padding_of
from detr_container.tasks.detection.groups import parameter_groups

needs_detectron2()

from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from detr_container.tasks.detection.anchors.detector import AnchorDetector, _objects  # noqa: E402
from detr_container.tasks.detection.anchors.retinanet import INITIAL, MOMENTUM  # noqa: E402
from detr_container.tasks.detection.finding import finder_of  # noqa: E402

CPU = torch.device("cpu")


def built(experiment: DetectionExperiment, classes: int = 6) -> AnchorDetector:
    model = build_detector(experiment, classes, weights=False)
    assert isinstance(model, AnchorDetector)
    return model


def sure(model: AnchorDetector) -> AnchorDetector:
    """The same, with weights by which it finds something everywhere."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cls_score.bias"):
                parameter.zero_()
            elif name.endswith(("cls_score.weight", "objectness_logits.weight")):
                parameter.mul_(30)
    return model.eval()


def batch_of(experiment: DetectionExperiment, model: AnchorDetector, count: int) -> Batch:
    """The first images of training, one of them cut, so that it is padded."""
    data = open_data(experiment).train
    samples = [data[(0, index)] for index in range(count)]
    samples[-1] = replace(samples[-1], image=samples[-1].image[:, :50, :40])
    return collate(samples, padding_of(experiment.data, model, None))


def theirs(model: AnchorDetector, batch: Batch, flip: bool = False) -> list[Any]:
    """What detectron2 itself makes of the same images, in its order of channels."""
    inputs = []
    for image, (height, width), original in zip(batch.images, batch.sizes.tolist(), batch.original_sizes, strict=True):
        pixels = image[:, :height, :width].float()
        size = {"height": original[0], "width": original[1]}
        inputs.append({"image": pixels.flip(0) if flip else pixels, **size})
    return [each["instances"] for each in model.model(inputs)]


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_detectron2s_own_and_colours_matter(kind: str, root: Path) -> None:
    experiment = anchored(root, kind)
    model = sure(built(experiment))
    batch = batch_of(experiment, model, 3)
    with torch.inference_mode():
        found = finder_of(model, experiment, CPU)(batch).detections(range(6))
        expected, turned = theirs(model, batch), theirs(model, batch, flip=True)
    for place, image_id in enumerate(batch.image_ids):
        ours, one = found.rows_of(image_id), expected[place]
        assert len(one) > 3
        torch.testing.assert_close(torch.from_numpy(found.boxes[ours]), one.pred_boxes.tensor, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.from_numpy(found.scores[ours]), one.scores, atol=1e-5, rtol=0)
        assert found.labels[ours].tolist() == one.pred_classes.tolist()
        scores = found.scores[ours], turned[place].scores.numpy()
        assert len(scores[0]) != len(scores[1]) or abs(scores[0] - scores[1]).max() > 1e-3
        if kind == "mask_rcnn":
            assert found.masks is not None
            pasted = mask.decode([found.masks[row] for row in range(ours.start, ours.stop)]).transpose(2, 0, 1)
            assert pasted.shape == one.pred_masks.shape
            assert (pasted != one.pred_masks.numpy()).mean() < 1e-3
            assert 0.01 < pasted.mean() < 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbour_does_not_change_what_is_found(kind: str, root: Path) -> None:
    """Padding to a multiple of the deepest stride holds all that a map's borders read."""
    experiment = anchored(root, kind)
    model = sure(built(experiment))
    data = open_data(experiment).train
    padding = padding_of(experiment.data, model, None)
    alone, both = collate([data[(0, 0)]], padding), collate([data[(0, 0)], data[(0, 1)]], padding)
    assert alone.images.shape[-1] % model.size_multiple == 0
    with torch.inference_mode():
        one, two = model(alone.images, alone.sizes), model(both.images, both.sizes)
    torch.testing.assert_close(one[0].scores, two[0].scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(one[0].boxes, two[0].boxes, atol=1e-5, rtol=0)


def as_theirs(batch: Batch) -> list[dict[str, Any]]:
    """A batch as detectron2's loader gives it: images of their own sizes, and masks as whole bitmaps."""
    inputs = []
    sizes = [(height, width) for height, width in batch.sizes.tolist()]
    for place, (image, one) in enumerate(zip(batch.images, _objects(batch.targets, sizes), strict=True)):
        height, width = sizes[place]
        objects = Instances((height, width))
        objects.gt_boxes, objects.gt_classes = Boxes(one.gt_boxes.tensor), one.gt_classes
        if one.has("gt_masks"):
            masks = torch.zeros(len(one), height, width, dtype=torch.bool)
            for mask, raster, box in zip(masks, batch.targets.masks[place], one.gt_boxes.tensor, strict=False):  # type: ignore[index]
                painted(mask, raster, box)
            objects.gt_masks = BitMasks(masks)
        inputs.append({"image": image[:, :height, :width], "instances": objects})
    return inputs


def painted(mask: Tensor, raster: Tensor, box: Tensor) -> None:
    """Write a raster into its box of a bitmap."""
    side = raster.shape[-1]
    left, top, right, bottom = box.tolist()
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            column, row = ((x + 0.5 - left) / (right - left) * side, (y + 0.5 - top) / (bottom - top) * side)
            if 0 <= column < side and 0 <= row < side:
                mask[y, x] = raster[int(row), int(column)]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_detectron2s_own(kind: str, root: Path) -> None:
    experiment = anchored(root, kind)
    model = built(experiment).train()
    batch = batch_of(replace(experiment, data=replace(experiment.data, augment="none")), model, 2)
    torch.manual_seed(3)
    ours = model(batch.images, batch.sizes, batch.padded, targets=batch.targets)
    assert list(ours) == list(model.losses)
    if kind == "retinanet":
        # There the mean has moved before it divides; here it moves once the step is done.
        positives, images = model.model.take().tolist()
        assert images == 2
        theirs_now = MOMENTUM * 2 * INITIAL + (1 - MOMENTUM) * positives
        ours = {name: loss * 2 * INITIAL / theirs_now for name, loss in ours.items()}
        detectron2s = type(model.model).__mro__[1]
        losses = {}
        with EventStorage(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.model), "_ema_update", detectron2s._ema_update)
            losses = model.model(as_theirs(batch))
    else:
        torch.manual_seed(3)
        with EventStorage():
            losses = model.model(as_theirs(batch))
    assert set(losses) == set(model.losses.values())
    for name, loss in ours.items():
        # Bitmaps are coarser than rasters at the borders of so small objects.
        tolerance = 0.03 if name == "mask" else 1e-5
        torch.testing.assert_close(loss, losses[model.losses[name]], atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_the_heads_first_weights(kind: str, root: Path) -> None:
    def heads(**changed: Any) -> dict[str, Tensor]:
        state = built(anchored(root, kind, **changed)).state_dict()
        return {name: value for name, value in state.items() if ".backbone." not in name}

    first, other, again = heads(), heads(backbone__name="resnet18_tiny"), heads(seed=1)
    assert first.keys() == other.keys()
    assert all(first[name].equal(other[name]) for name in first)
    assert any(not first[name].equal(again[name]) for name in first)


@pytest.mark.parametrize(("name", "strides"), [("container_light", (4, 8, 16, 32)), ("resnet18", (4, 8, 16, 32))])
def test_all_four_stages_feed_the_pyramid(name: str, strides: tuple[int, ...], root: Path) -> None:
    for kind, finest in (("retinanet", 1), ("mask_rcnn", 0)):
        changed = {"backbone__name": name, "backbone__frozen_stages": 0, "backbone__norm": "frozen"}
        experiment = anchored(root, kind, **changed)
        model = built(experiment)
        assert model.backbone.strides == strides[finest:]
        assert model.size_multiple == size_multiple(experiment) == 32
        deepest = 128 if kind == "retinanet" else 64
        assert model.strides == tuple(2**k for k in range(3 - (kind == "mask_rcnn"), deepest.bit_length()))
        maps = model.model.backbone(torch.zeros(1, 3, 64, 96))
        assert [tuple(each.shape[2:]) for each in maps.values()] == [
            (-(-64 // stride), -(-96 // stride)) for stride in model.strides
        ]
        norms = [module for module in model.modules() if "Norm" in type(module).__name__ and list(module.buffers())]
        assert norms
        assert all(isinstance(module, FrozenNorm) for module in norms)


def test_frozen_stages_stay_and_all_else_trains(root: Path) -> None:
    model = built(anchored(root, "mask_rcnn", backbone__name="resnet18", backbone__frozen_stages=2))
    frozen = {name.split(".")[5] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    head, backbone = parameter_groups(model, anchored(root, "mask_rcnn").train)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in (*head["params"], *backbone["params"])} == trained
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone__name": "mh_mlp"}, "feature pyramid needs maps of the strides 8, 16"),
        ({"backbone__stride": 16}, "retinanet reads all of the backbone's maps"),
    ],
)
def test_a_backbone_without_several_maps_is_refused(changed: dict[str, Any], message: str, root: Path) -> None:
    def made() -> AnchorDetector:
        experiment = anchored(root, "retinanet", **changed)
        validate(experiment)
        return built(experiment)

    with pytest.raises(ValueError, match=message):
        made()


def test_norms_on_the_maps_are_a_setting(root: Path) -> None:
    plain, normed = (built(anchored(root, "retinanet", pyramid__map_norm=norm)) for norm in ("none", "layer"))
    own = set(normed.state_dict()) - set(plain.state_dict())
    assert {name.rsplit(".", 2)[0] for name in own} == {"model.backbone.bottom_up.norms"}
    maps = normed.model.backbone.bottom_up(torch.randn(1, 3, 64, 64))
    for each in maps.values():
        torch.testing.assert_close(each.mean(dim=1), torch.zeros(each[:, 0].shape), atol=1e-4, rtol=0)


def test_bfloat16_predicts_in_float32(root: Path) -> None:
    experiment = anchored(root, "mask_rcnn")
    model = built(experiment).train()
    batch = batch_of(experiment, model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch.images, batch.sizes, batch.padded, targets=batch.targets)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    heads = [
        module for name, module in model.named_modules() if name.endswith(("cls_score", "bbox_pred", "d.predictor"))
    ]
    assert len(heads) == 3
    assert {id(module) for module in heads} <= {id(module) for module in model.own_precision()}
    with torch.autocast("cpu", torch.bfloat16):
        features = model.model.backbone(batch.images.float())
        assert {each.dtype for each in features.values()} == {torch.bfloat16}
