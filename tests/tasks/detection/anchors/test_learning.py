"""RetinaNet and Mask R-CNN learn to find shapes, in minutes on two CPU cores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from anchored import needs_detectron2
from runs import train_in

from detr_container.config.detection import detection
from detr_container.config.experiments import named
from detr_container.datasets.annotations import read_annotations
from detr_container.engine.run import evaluation_of
from detr_container.tasks.detection.detections import Detections

needs_detectron2()

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", ["retinanet_demo", "mask_rcnn_demo"])
def test_the_demo_finds_the_shapes(name: str, tmp_path: Path) -> None:
    base = detection(named(name).experiment)
    experiment = replace(base, data=replace(base.data, root=tmp_path / "shapes"), device="cpu")
    assert train_in(tmp_path / "run", experiment) == 0
    folder = evaluation_of(tmp_path / "run", experiment.train.epochs)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["ap50"] >= 0.5
    if experiment.masks:
        assert scores["mask_ap50"] >= 0.4
        found = Detections.read(folder / "detections.npz")
        assert found.masks is not None
        # A mask is a shape, not its box: circles fill their boxes by pi / 4, rings and crosses by less.
        sure = found.scores > 0.5
        boxes = found.boxes[sure]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        filled = found.masks.areas()[sure] / areas
        annotations = tmp_path / "shapes" / "annotations" / "instances_val2017.json"
        names = [each.name for each in read_annotations(annotations, tmp_path).categories]
        of = {name: filled[found.labels[sure] == label].mean() for label, name in enumerate(names)}
        assert of["circle"] == pytest.approx(0.785, abs=0.08)
        assert min(of["circle"], of["rectangle"]) > max(of["triangle"], of["star"], of["ring"], of["cross"]) + 0.1
