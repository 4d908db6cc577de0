"""Attention maps of a model of several feature levels, on sheets and in JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from many_levels import ManyLevels
from PIL import Image
from runs import one_thread, tiny

from detr_container.datasets.annotations import read_annotations
from detr_container.models.backbones.container import SIZES, Container
from detr_container.tasks.detection.found_objects import Model, found_by, within_box
from detr_container.tasks.detection.inspection import write_inspection
from detr_container.tasks.detection.predict import predict, query_maps
from detr_container.tasks.detection.trained import Trained


def model_of(label: str, root: Path, *strides: int) -> Model:
    """Untrained; its images of 72 pixels are padded to 80."""
    classes = read_annotations(root / "annotations" / "instances_val2017.json", root / "val2017").categories
    torch.manual_seed(0)
    network = ManyLevels(Container(SIZES["container_light_tiny"]).at_strides(*strides), len(classes)).eval()
    experiment = tiny(root, data__eval_size=72, data__max_size=72)
    return Model(label, Trained(network, experiment, classes, Path(label), 0))


def naive_heat(levels: dict[int, torch.Tensor], query: int) -> torch.Tensor:
    """[20, 20] of 4 pixels: all levels' attention pixel by pixel, of which 72 of 80 a side are the image's."""
    heat, inside = torch.zeros(20, 20), torch.zeros(80, 80)
    inside[:72, :72] = 1
    for stride, level in levels.items():
        mean = level[-1, 0, :, query].mean(dim=0)
        counts = inside.unfold(0, stride, stride).unfold(1, stride, stride).sum(dim=(-2, -1))
        density = (mean / counts.clamp(min=1)).repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        heat += (inside * density).unfold(0, 4, 4).unfold(1, 4, 4).sum(dim=(-2, -1))
    return heat


def test_its_attention_maps_are_those_of_the_finest_level(root: Path, tmp_path: Path) -> None:
    """On it the others are spread, and none of them over padding."""
    several, one = model_of("several", root, 4, 8, 16), model_of("one", root, 16)
    image = min((root / "val2017").iterdir())
    with one_thread():
        report = write_inspection([several, one], [image], tmp_path, threshold=0, lines=2)
        (prediction,) = predict(several.trained, [image], attention_maps=True)
    assert [model["stride"] for model in report["models"]] == [4, 16]
    with Image.open(tmp_path / f"{image.stem}.jpg") as sheet:
        sheet.load()
    levels = prediction.output.attention
    assert levels is not None
    grids = {stride: tuple(level.shape[-2:]) for stride, level in levels.items()}
    assert grids == {4: (20, 20), 8: (10, 10), 16: (5, 5)}
    for query in range(3):
        (heat,) = query_maps(prediction, query)
        torch.testing.assert_close(heat, naive_heat(levels, query))
        assert float(heat.sum()) == pytest.approx(1, abs=1e-5)
    found = found_by(several, prediction, 0.0)[0]
    whole = torch.tensor([0.0, 0, prediction.image.shape[2], prediction.image.shape[1]])
    assert within_box(found.attention_maps[0], whole, prediction) == pytest.approx(1, abs=1e-5)
