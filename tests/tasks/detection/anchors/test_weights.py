"""RetinaNet's and Mask R-CNN's weights: into detectron2, back from there, and of detectron2's own models."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from anchored import KINDS, anchored, needs_detectron2
from resnet_files import as_converted
from test_trained import SMALL, model_of
from torch import Tensor

from detr_container.commands import cli
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, PyramidConfig
from detr_container.config.experiments import detection_named
from detr_container.config.settings import to_dict
from detr_container.datasets.annotations import Category
from detr_container.datasets.coco_classes import COCO
from detr_container.engine.backbones import build_backbone
from detr_container.engine.checkpoint import load
from detr_container.models.detector import Detector
from detr_container.models.weights.class_rows import class_rows
from detr_container.tasks.detection.build import build_detector, start_from
from detr_container.tasks.detection.export import write_export
from detr_container.tasks.detection.trained import Trained, open_trained

needs_detectron2()

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import instantiate  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402

from detr_container.tasks.detection.anchors.heads import _theirs  # noqa: E402

CPU = torch.device("cpu")
CLASSES = (Category(1, "cat"), Category(3, "dog"), Category(7, "zebra"))
BODY = "model.backbone.bottom_up.network.body."
FEW = PyramidConfig(channels=16, convolutions=1, hidden=32, proposals=50)


def tiny(kind: str, **changed: Any) -> DetectionExperiment:
    return anchored(Path("nowhere"), kind, **changed)


def built(experiment: DetectionExperiment, classes: int = 3) -> Detector:
    return build_detector(experiment, classes, weights=False).eval()


def weights_of(model: Detector) -> dict[str, Tensor]:
    """Without what only training needs."""
    return {name: value for name, value in model.state_dict().items() if name != "per_image"}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def as_theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model of ours on a ResNet as detectron2 has it on its own, which reads blue first."""
    body = {name.removeprefix(BODY): value for name, value in state.items() if name.startswith(BODY)}
    named = {f"backbone.bottom_up.{name}": value for name, value in as_converted(body).items()}
    named["backbone.bottom_up.stem.conv1.weight"] = body["conv1.weight"].flip(1)
    rest = {name.removeprefix("model."): value for name, value in state.items() if not name.startswith(BODY)}
    return named | rest


def pickled(path: Path, state: dict[str, Tensor], author: str = "Detectron2 Model Zoo") -> Path:
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": author}))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_detectron2_loads_what_is_exported_name_by_name(kind: str, tmp_path: Path) -> None:
    experiment, path = tiny(kind), tmp_path / "out.pth"
    before, other = built(experiment), built(replace(experiment, seed=5))
    count = write_export(Trained(before, experiment, CLASSES, Path("run"), 0), path, "detectron2", "id")
    assert not same(weights_of(before), weights_of(other))
    checkpointer: Any = DetectionCheckpointer(other.model)
    more = checkpointer.load(str(path))
    # Names are not guessed.
    assert "matching_heuristics" not in more
    assert same(weights_of(other), weights_of(before))
    assert count == len(weights_of(before)) == len(other.model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_comes_back_by_the_name_of_its_experiment(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment, path = detection_named(f"{kind}_demo"), tmp_path / "out.pth"
    before = built(experiment)
    write_export(Trained(before, experiment, CLASSES, Path("run"), 0), path, "detectron2", "id")
    with caplog.at_level(logging.WARNING):
        again = open_trained(path, CPU, f"{kind}_demo")
    assert caplog.text == ""
    assert again.classes == CLASSES
    assert same(again.model.state_dict(), before.state_dict())
    with pytest.raises(ValueError, match=rf"out\.pth: it is {kind}, .*--experiment {kind}_r50_1x"):
        open_trained(path, CPU)
    with pytest.raises(ValueError, match=rf"it is {kind}, and debug is an experiment of smca: .*--experiment"):
        open_trained(path, CPU, "debug")
    # As detectron2 writes it, after training or in older versions: nothing but tensors, and some more of them.
    content = load(path)["model"]
    content |= {"pixel_mean": torch.tensor([123.7, 116.3, 103.5])[:, None, None], "pixel_std": torch.ones(3, 1, 1)}
    content["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4)
    torch.save({"model": content, "iteration": 89999}, path)
    again = open_trained(path, CPU, f"{kind}_demo")
    assert [category.name for category in again.classes] == ["class 0", "class 1", "class 2"]
    assert same(again.model.state_dict(), before.state_dict())
    del content["backbone.fpn_output4.weight"]
    torch.save({"model": content}, path)
    with pytest.raises(ValueError, match=r"does not fit .*model\.backbone\.fpn_output4\.weight is missing"):
        open_trained(path, CPU, f"{kind}_demo")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_ours_opens_as_it_is(kind: str, tmp_path: Path) -> None:
    experiment, path = tiny(kind), tmp_path / "c.pt"
    model = built(experiment)
    state = {name: value + 1 if name == "per_image" else value for name, value in model.state_dict().items()}
    classes = [[category.id, category.name] for category in CLASSES]
    torch.save({"model": state, "experiment": to_dict(experiment), "classes": classes, "step": 12}, path)
    again = open_trained(path, CPU)
    assert (again.classes, again.step, again.experiment) == (CLASSES, 12, experiment)
    assert same(again.model.state_dict(), state)
    torch.save({"model": state, "experiment": to_dict(experiment), "classes": classes[:2], "step": 12}, path)
    with pytest.raises(ValueError, match="rows of 3 classes do not belong to its 2"):
        open_trained(path, CPU)


@pytest.mark.parametrize("layout", ["published", "hugging-face", "hugging-face-folder"])
def test_other_layouts_are_refused(layout: Any, tmp_path: Path) -> None:
    trained = Trained(built(tiny("retinanet")), tiny("retinanet"), CLASSES, Path("run"), 0)
    with pytest.raises(ValueError, match="retinanet is detectron2's: use --layout detectron2"):
        write_export(trained, tmp_path / "out", layout, "id")


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_carried_over_by_name_in_every_tensor(kind: str, tmp_path: Path) -> None:
    """The rows of a kept class are the file's, wherever it stands there; those of a new one are fresh."""
    experiment, path = tiny(kind), tmp_path / "c.pt"
    before, model = built(experiment, 3), built(replace(experiment, seed=5), 2)
    classes = [[category.id, category.name] for category in CLASSES]
    torch.save({"model": before.state_dict(), "experiment": to_dict(experiment), "classes": classes}, path)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = start_from(model, experiment, (Category(1, "zebra"), Category(2, "quagga")), path)
    assert (loaded.classes, loaded.fresh, loaded.unused) == (("zebra",), ("quagga",), ())
    theirs, ours = before.state_dict(), model.state_dict()
    rows = class_rows(ours, no_object=False)
    assert len(rows) == {"retinanet": 2, "mask_rcnn": 6}[kind]
    for name, lie in rows.items():
        new, old = lie.split(ours[name]), lie.split(theirs[name])
        assert torch.equal(new[:, 0], old[:, 2])
        assert torch.equal(new[:, 1], lie.split(fresh[name])[:, 1])
        assert torch.equal(new[:, 2:], old[:, 3:])
    assert same({k: v for k, v in ours.items() if k not in rows}, {k: v for k, v in theirs.items() if k not in rows})


def test_a_detector_of_another_kind_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"model": built(tiny("retinanet")).state_dict()}, path)
    with pytest.raises(ValueError, match=r"does not fit this model: .*Make head\.\* and backbone\.\*"):
        start_from(model_of(SMALL, 3), SMALL, CLASSES, path)
    torch.save({"model": model_of(SMALL, 3).state_dict()}, path)
    with pytest.raises(ValueError, match=r"does not fit this model: .*Make pyramid\.\* and backbone\.\*"):
        start_from(built(tiny("retinanet")), tiny("retinanet"), CLASSES, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_starts_from_a_run_of_either(kind: str, tmp_path: Path) -> None:
    experiment, path = tiny(kind), tmp_path / "c.pt"
    before = built(experiment)
    torch.save({"model": before.state_dict(), "experiment": to_dict(experiment)}, path)
    exported = tmp_path / "out.pth"
    write_export(Trained(before, experiment, CLASSES, Path("run"), 0), exported, "detectron2", "id")
    for file in (path, exported):
        backbone = build_backbone(replace(experiment.backbone, weights=str(file)))
        assert same(backbone.state_dict(), before.backbone.state_dict())
        with pytest.raises(ValueError, match="does not fit ResNetBackbone"):
            build_backbone(BackboneConfig(name="resnet50", weights=str(file), frozen_stages=0))


def their_own(kind: str) -> Any:
    """detectron2's own model on its own ResNet, with a small head."""
    model = _theirs({"retinanet": "retinanet", "mask_rcnn": "mask_rcnn_fpn"}[kind])
    model.backbone.out_channels = FEW.channels
    if kind == "retinanet":
        model.backbone.top_block.out_channels = FEW.channels
        model.head.input_shape = [ShapeSpec(channels=FEW.channels)] * 5
        model.head.conv_dims = [FEW.channels]
        return instantiate(model).eval()
    model.proposal_generator.head.in_channels = FEW.channels
    model.proposal_generator.post_nms_topk = (FEW.proposals, FEW.proposals)
    heads = model.roi_heads
    heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = FEW.channels
    heads.box_head.fc_dims = [FEW.hidden, FEW.hidden]
    heads.box_predictor.input_shape.channels = FEW.hidden
    heads.mask_head.conv_dims = [FEW.channels, FEW.channels]
    return instantiate(model).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_of_detectron2s_own_finds_the_same_here(kind: str, tmp_path: Path) -> None:
    """Its ResNet reads blue first and has its strides elsewhere; its classes are COCO's in their order."""
    theirs = their_own(kind)
    for name, value in theirs.state_dict().items():
        if name.endswith("norm.weight"):
            # Or values of random weights would grow from block to block.
            value.fill_(0.05 if ".stem." in name else 0.5)
        elif name.endswith("cls_score.bias"):
            value.fill_(-1)
            value[:5] = 3
        elif name.endswith("cls_score.weight"):
            value.mul_(10)
    path = pickled(tmp_path / "model_final_abc123.pkl", theirs.state_dict())
    experiment = replace(tiny(kind), pyramid=FEW, backbone=BackboneConfig("resnet50_msra", "none"))
    model = built(experiment, len(COCO))
    loaded = start_from(model, experiment, COCO, path)
    assert (len(loaded.classes), loaded.fresh, loaded.unused) == (80, (), ())
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = model(image[None], torch.tensor([[96, 128]]), False)[0]
    expected = theirs([{"image": image.flip(0).float(), "height": 96, "width": 128}])[0]["instances"]
    assert len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    scale = torch.tensor([128, 96, 128, 96])
    torch.testing.assert_close(found.boxes * scale, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
    assert torch.equal(found.labels, expected.pred_classes)
    # The other way round, and with torchvision's network, it is another model.
    wrong = model(image[None].flip(1), torch.tensor([[96, 128]]), False)[0]
    boxes = wrong.boxes * scale
    assert len(boxes) != len(expected) or not torch.allclose(boxes, expected.pred_boxes.tensor, rtol=1e-3, atol=0.1)
    other = replace(experiment, backbone=BackboneConfig("resnet50", "none"))
    with pytest.raises(ValueError, match=r"is on resnet50_msra, .*use --backbone\.name resnet50_msra"):
        start_from(built(other, 80), other, COCO, path)
    # And its backbone under a detector of ours.
    backbone = build_backbone(BackboneConfig("resnet50_msra", str(path), frozen_stages=0))
    assert same(backbone.state_dict(), model.backbone.state_dict())


def test_a_model_of_the_zoo_opens_under_the_experiment_of_its_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = detection_named("retinanet_r50_1x")
    before = built(replace(named, backbone=replace(named.backbone, name="resnet50_msra")), len(COCO))
    path = pickled(tmp_path / "model_final_abc123.pkl", as_theirs(weights_of(before)))
    with caplog.at_level(logging.WARNING):
        again = open_trained(path, CPU, "retinanet_r50_1x")
    assert "model_final_abc123.pkl is on resnet50_msra, as it says, not on resnet50" in caplog.text
    assert again.experiment.backbone.name == "resnet50_msra"
    assert again.classes == COCO
    assert same(weights_of(again.model), weights_of(before))
    # Where nothing says whose it is, it is that of the experiment, and the log says so.
    torch.save({"model": as_theirs(weights_of(before))}, path.with_suffix(".pth"))
    caplog.clear()
    again = open_trained(path.with_suffix(".pth"), CPU, "retinanet_r50_1x")
    assert "does not say whether its ResNet is MSRA's, " in caplog.text
    assert "taken for resnet50, red first" in caplog.text
    assert not torch.equal(again.model.backbone.body.conv1.weight, before.backbone.body.conv1.weight)


def test_the_commands_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    experiment, path = detection_named("retinanet_demo"), tmp_path / "out.pth"
    write_export(Trained(built(experiment), experiment, CLASSES, Path("run"), 0), path, "detectron2", "id")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "image.png")
    predict = [
        "predict",
        str(path),
        str(tmp_path / "image.png"),
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "found"),
    ]
    assert cli.main([*predict, "--experiment", "retinanet_demo"]) == 0
    assert cli.main(predict) != 0
    assert "name the experiment, as in --experiment retinanet_r50_1x" in capsys.readouterr().err
