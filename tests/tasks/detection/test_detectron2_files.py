"""DETR and SMCA-DETR in detectron2's form: published files open, and ours are written so and come back."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import published
from resnet_files import as_converted
from test_trained import CLASSES, CPU, SMALL, SMCA, model_of, outputs, saved
from torch import Tensor

from detr_container.commands import cli
from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import to_dict
from detr_container.datasets.annotations import Category
from detr_container.datasets.coco_classes import COCO
from detr_container.engine.backbones import build_backbone
from detr_container.engine.checkpoint import load
from detr_container.models.weights.detectron2 import to_detectron2
from detr_container.tasks.detection.build import start_from
from detr_container.tasks.detection.export import exported, write_export
from detr_container.tasks.detection.trained import Trained, open_trained

ROWS = [*(category.id for category in COCO), 91]
"""Of a published head: the 80 classes and no object."""
TINY = replace(SMALL, backbone=replace(SMALL.backbone, name="container_light_tiny", frozen_stages=0))
MSRA = replace(SMALL, backbone=replace(SMALL.backbone, name="resnet50_msra"))


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published DETR as its authors convert it: their names for detectron2, and one row per class and no object."""
    start = "backbone.0.body."
    body = as_converted({name.removeprefix(start): value for name, value in state.items() if name.startswith(start)})
    rest = {name: value for name, value in state.items() if not name.startswith(start)}
    rest |= {name: value[ROWS] for name, value in rest.items() if name.startswith("class_embed.")}
    return {f"detr.{name}": v for name, v in ({f"backbone.0.backbone.{k}": v for k, v in body.items()} | rest).items()}


def trained(experiment: DetectionExperiment) -> Trained:
    return Trained(model_of(experiment, 3), experiment, CLASSES, Path("run"), 0)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_published_file_for_detectron2_is_the_published_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = published.weights("detr_r50")
    theirs = converted(weights)
    assert len(theirs) == 458
    path = saved(tmp_path / "converted_detr_r50.pth", theirs | {"criterion.empty_weight": torch.ones(81)})
    with caplog.at_level(logging.WARNING):
        model = open_trained(path, CPU)
    assert "detectron2 names, 80 classes, COCO's in the order of their ids" in caplog.text
    assert "criterion.empty_weight" in caplog.text
    assert model.classes == COCO
    golden = published.arrays("detr_r50")
    with torch.no_grad():
        output = model.model(*published.images())
    step = output.boxes.shape[2] // golden["pred_boxes"].shape[1]
    torch.testing.assert_close(output.boxes[-1, :, ::step], golden["pred_boxes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits[-1, :, ::step], golden["pred_logits"][..., ROWS], rtol=1e-4, atol=1e-4)
    # Back to a head with a row for every id, and from one that has them: each is the other, bit for bit.
    back = exported(model, "published")
    assert set(back) == set(weights)
    for name in ("class_embed.weight", "class_embed.bias"):
        assert len(back[name]) == 92
        assert torch.equal(back[name][ROWS], weights[name][ROWS])
    assert same(exported(model, "detectron2"), theirs)
    usual = open_trained(saved(tmp_path / "detr_r50.pth", weights), CPU)
    assert same(exported(usual, "detectron2"), theirs)


@pytest.mark.parametrize(
    ("experiment", "name"),
    [
        (SMALL, "detr.backbone.0.backbone.res5.1.conv2.norm.running_var"),
        (SMCA, "detr.transformer.decoder.layers.0.point1.layers.0.weight"),
        (TINY, "detr.backbone.0.backbone.network.blocks.0.0.position.weight"),
        (MSRA, "detr.backbone.0.backbone.res5.2.conv3.weight"),
        (replace(SMALL, head=replace(SMALL.head, heads=4, position="learned")), "detr.backbone.1.row_embed.weight"),
    ],
    ids=["resnet", "smca", "container", "msra", "heads and positions"],
)
def test_what_is_exported_comes_back(experiment: DetectionExperiment, name: str, tmp_path: Path) -> None:
    before = trained(experiment)
    path = tmp_path / "out.pth"
    assert write_export(before, path, "detectron2", "id") == len(before.model.state_dict())
    content = load(path)
    assert name in content["model"]
    # In the order of the classes, whatever their ids.
    assert len(content["model"]["detr.class_embed.bias"]) == len(before.model.state_dict()["class_embed.bias"])
    again = open_trained(path, CPU)
    assert again.classes == CLASSES
    assert again.experiment.backbone.name == experiment.backbone.name
    assert same(again.model.state_dict(), before.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(again.model), outputs(before.model), strict=True))


def test_what_detectron2_has_trained_further_has_its_classes_from_a_list(tmp_path: Path) -> None:
    """It keeps the weights alone."""
    path, listed = tmp_path / "model_final.pth", tmp_path / "classes.json"
    torch.save({"model": exported(trained(SMCA), "detectron2"), "iteration": 7}, path)
    assert [each.name for each in open_trained(path, CPU).classes] == ["class 0", "class 1", "class 2"]
    listed.write_text(json.dumps([{"id": each.id, "name": each.name} for each in CLASSES]))
    assert open_trained(path, CPU, "", "auto", listed).classes == CLASSES


def test_classes_are_written_in_the_order_of_their_ids(tmp_path: Path) -> None:
    """As detectron2 numbers them, whatever the order of ours."""
    mixed = (CLASSES[2], CLASSES[0], CLASSES[1])
    before = replace_classes(trained(SMALL), mixed)
    write_export(before, tmp_path / "out.pth", "detectron2", "order")
    content, rows = load(tmp_path / "out.pth"), before.model.state_dict()["class_embed.weight"]
    assert content["classes"] == [[1, "cat"], [3, "dog"], [7, "zebra"]]
    assert torch.equal(content["model"]["detr.class_embed.weight"], rows[[1, 2, 0, 3]])


def replace_classes(model: Trained, classes: tuple[Category, ...]) -> Trained:
    return Trained(model.model, model.experiment, classes, model.source, model.step)


@pytest.mark.parametrize(
    ("experiment", "target", "layout", "message"),
    [
        (
            replace(MSRA, backbone=replace(MSRA.backbone, dilation=True)),
            "out.pth",
            "detectron2",
            r"backbone\.dilation=True cannot .*--layout published",
        ),
        (SMALL, "out.pkl", "detectron2", r"out\.pkl: detectron2 reads files of \.pkl in another way: .*\.pth"),
        (SMALL, "out.safetensors", "detectron2", r"files of \.safetensors"),
        (MSRA, "out.pth", "published", r"backbone\.name=resnet50_msra cannot .*--layout detectron2"),
        (MSRA, "out.pth", "hugging-face", r"no detr head on resnet50_msra: .*--layout detectron2"),
        (
            replace(SMALL, backbone=replace(SMALL.backbone, name="resnet18_tiny")),
            "out",
            "hugging-face-folder",
            r"no detr head on resnet18_tiny: .*--layout published",
        ),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(
    experiment: DetectionExperiment, target: str, layout: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        write_export(trained(experiment), tmp_path / target, layout, "id")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / target).exists()


def test_a_detector_starts_from_one_and_its_classes_are_carried_over(tmp_path: Path) -> None:
    state = model_of(SMALL, 80).state_dict()
    path = saved(tmp_path / "c.pth", to_detectron2(state, resnet=True))
    model = model_of(SMALL, 3)
    loaded = start_from(model, SMALL, (Category(1, "zebra"), Category(2, "quagga"), Category(5, "person")), path)
    assert (loaded.classes, loaded.fresh, loaded.unused) == (("zebra", "person"), ("quagga",), ())
    rows = [category.name for category in COCO].index("zebra"), 0, 80
    for name in ("class_embed.weight", "class_embed.bias"):
        assert torch.equal(model.state_dict()[name][[0, 2, 3]], state[name][list(rows)])
    assert torch.equal(model.backbone.body.conv1.weight, state["backbone.body.conv1.weight"])


def test_only_so_many_rows_are_cocos(tmp_path: Path) -> None:
    for classes, first in ((80, "person"), (79, "class 0"), (91, "class 0")):
        state = to_detectron2(model_of(SMALL, classes).state_dict(), resnet=True)
        assert open_trained(saved(tmp_path / "c.pth", state), CPU).classes[0].name == first


def test_a_backbone_starts_from_one_red_first(tmp_path: Path) -> None:
    """Its ResNet is torchvision's, and so are the colours; of ours on MSRA's they are red first as well."""
    path = tmp_path / "out.pth"
    for name in ("resnet50", "resnet50_msra"):
        experiment = replace(SMALL, backbone=replace(SMALL.backbone, name=name))
        before = trained(experiment)
        write_export(before, path, "detectron2", "id")
        backbone = build_backbone(BackboneConfig(name=name, weights=str(path), frozen_stages=0))
        assert torch.equal(backbone.body.conv1.weight, before.model.backbone.body.conv1.weight)
        own = before.model.backbone.state_dict()
        assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items())


def test_msras_and_torchvisions_networks_are_not_taken_for_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their tensors have the same names and sizes: what a file says decides."""
    path = tmp_path / "out.pth"
    write_export(trained(MSRA), path, "detectron2", "id")
    other = replace(MSRA, backbone=replace(MSRA.backbone, name="resnet50"))
    with pytest.raises(ValueError, match=r"out\.pth is on resnet50_msra, .*those of resnet50, .*--backbone\.name"):
        start_from(model_of(other, 3), other, CLASSES, path)
    start_from(model_of(MSRA, 3), MSRA, CLASSES, path)
    classes = [[category.id, category.name] for category in CLASSES]
    state = model_of(other, 3).state_dict()
    saved(path, state, experiment=to_dict(other), classes=classes, step=1)
    with pytest.raises(ValueError, match=r"is on resnet50, .*those of resnet50_msra, .*--backbone\.name resnet50$"):
        start_from(model_of(MSRA, 3), MSRA, CLASSES, path)
    assert caplog.text == ""


def test_the_commands_take_and_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = [[category.id, category.name] for category in CLASSES]
    run = saved(tmp_path / "c.pt", model_of(TINY, 3).state_dict(), experiment=to_dict(TINY), classes=classes, step=3)
    assert cli.main(["export", str(run), str(tmp_path / "out.pth"), "--layout", "detectron2"]) == 0
    assert "tensors to" in capsys.readouterr().out
    from PIL import Image

    Image.new("RGB", (64, 48), "red").save(tmp_path / "image.png")
    predict = ["predict", str(tmp_path / "out.pth"), str(tmp_path / "image.png"), "--device", "cpu", "--threshold", "0"]
    assert cli.main([*predict, "--output", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "predictions.json").is_file()
    assert cli.main(["export", str(tmp_path / "out.pth"), str(tmp_path / "out.pkl"), "--layout", "detectron2"]) != 0
    assert "end its name in .pth" in capsys.readouterr().err
