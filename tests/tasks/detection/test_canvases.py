"""Runs whose batches are padded to canvases, against the same without: on a CPU, where both can be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import HARD, assert_same_run, one_thread, tiny, train_in
from tape import Tape
from torch import Tensor, nn

from detr_container.commands.cli import main
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import validate
from detr_container.datasets.loader import StepBatches
from detr_container.engine import step
from detr_container.engine.run import Run, evaluation_of
from detr_container.engine.trials import trials_of
from detr_container.tasks.detection.build import build_detector, open_data
from detr_container.tasks.detection.canvases import active, grid_of, grid_step
from detr_container.tasks.detection.detections import NAME, Detections
from detr_container.tasks.detection.task import DetectionTask

CPU, GPU = torch.device("cpu"), torch.device("cuda")
VARIED: dict[str, Any] = {
    "data__augment": "detr",
    "data__crop_resize": (48, 64),
    "data__crop_range": (32, 60),
    "data__scales": (48, 64, 96),
    "data__max_size": 160,
}
HEADS = [("detr", "resnet18"), ("smca", "container_light_tiny")]


def varied(root: Path, **changed: Any) -> DetectionExperiment:
    """Images of many sizes."""
    return tiny(root, **{**VARIED, **changed})


def on(experiment: DetectionExperiment) -> DetectionExperiment:
    return replace(experiment, data=replace(experiment.data, canvases="on"))


def with_parts(experiment: DetectionExperiment, head: str, backbone: str) -> DetectionExperiment:
    return replace(
        experiment,
        head=replace(experiment.head, kind=head),
        backbone=replace(experiment.backbone, name=backbone, frozen_stages=0),
    )


def test_when_they_are_used(root: Path) -> None:
    data = varied(root).data
    assert data.canvases == "auto"
    assert [active(data, device) for device in (CPU, GPU)] == [False, True]
    assert [active(replace(data, canvases="on"), device) for device in (CPU, GPU)] == [True, True]
    assert [active(replace(data, canvases="off"), device) for device in (CPU, GPU)] == [False, False]
    assert not active(replace(data, canvas=128, canvases="on"), GPU)
    warned = validate(on(replace(varied(root), data=replace(data, canvas=128))))
    assert any("data.canvases has no effect with data.canvas=128" in line for line in warned)
    (warned_off,) = validate(replace(varied(root), data=replace(data, canvases="off", canvas_multiple=64)))
    assert warned_off == "data.canvas_multiple has no effect with data.canvases=off"


def test_every_backbone_has_the_same(root: Path) -> None:
    experiment = varied(root)
    sizes, found = open_data(experiment).train.annotations.sizes, []
    for name in ("resnet18", "container_light_tiny", "timm/convnext_atto"):
        mine = with_parts(on(experiment), "detr", name)
        grid = grid_of(mine, build_detector(mine, 3, weights=False), CPU)
        assert grid is not None
        found.append((grid.training(sizes, 2), grid.evaluation(sizes)))
    assert found[0] == found[1] == found[2]
    # What the first two need is 1 and 32; another's multiple rules where the comparison says so.
    assert grid_step(experiment.data, 14) == 42
    assert grid_step(replace(experiment.data, canvas_multiple=64), 32) == 64
    with pytest.raises(ValueError, match=r"data.canvas_multiple=48: .* multiples of 32 pixels"):
        grid_step(replace(experiment.data, canvas_multiple=48), 32)


@pytest.mark.parametrize(("head", "backbone"), HEADS)
@torch.no_grad()
def test_a_head_computes_the_same_on_a_canvas(head: str, backbone: str, root: Path) -> None:
    """What lies beyond the images is masked: from the same features come the same outputs, to rounding.

    Convolutions see the border of a batch as zeros, as ever, so features near it depend on how it is padded.
    """
    experiment = with_parts(varied(root, data__eval_batch=3), head, backbone)
    model = build_detector(experiment, 3, weights=False).eval()
    images, sizes = torch.zeros(2, 3, 96, 128, dtype=torch.uint8), torch.tensor([[96, 128], [70, 101]])
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randint(256, (3, height, width))
    canvas = torch.zeros(2, 3, 192, 160, dtype=torch.uint8)
    canvas[:, :, :96, :128] = images
    maps: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: list[Tensor]) -> None:
        maps[:] = out

    def put_on_canvas(module: nn.Module, given: Any, out: list[Tensor]) -> list[Tensor]:
        padded = []
        for small, large in zip(maps, out, strict=True):
            whole = large.clone()
            whole[:, :, : small.shape[2], : small.shape[3]] = small
            padded.append(whole)
        return padded

    with model.backbone.register_forward_hook(keep):
        expected = model(images, sizes)
    with model.backbone.register_forward_hook(put_on_canvas):
        found = model(canvas, sizes)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)


def micro_batches(experiment: DetectionExperiment, steps: int) -> list[Any]:
    task = DetectionTask(experiment, open_data(experiment))
    model = task.build(weights=False)
    train = experiment.train
    sampler = StepBatches(
        task.training_images, seed=0, batch=train.batch, micro_batch=train.micro_batch, total_steps=steps
    )
    return list(task.batches(model, sampler, False, lambda short: False))


def test_the_same_images_on_the_least_canvas(root: Path) -> None:
    plain, padded = micro_batches(varied(root), 6), micro_batches(on(varied(root)), 6)
    model = build_detector(varied(root), 3, weights=False)
    grid = grid_of(on(varied(root)), model, CPU)
    assert grid is not None
    canvases = grid.training(open_data(varied(root)).train.annotations.sizes, varied(root).train.micro_batch)
    for a, b in zip(plain, padded, strict=True):
        assert a.image_ids == b.image_ids
        assert torch.equal(a.sizes, b.sizes)
        height, width = a.sizes.amax(dim=0).tolist()
        size = tuple(b.images.shape[2:])
        holding = [(h * w, (h, w)) for h, w in canvases.sizes if h >= height and w >= width]
        assert (size[0] * size[1], size) in holding
        assert size[0] * size[1] == min(holding)[0]
        assert torch.equal(a.images[:, :, :height, :width], b.images[:, :, :height, :width])
        assert not b.images[:, :, height:].any()
        assert not b.images[:, :, :, width:].any()
        assert b.padded
    assert len({tuple(batch.images.shape[2:]) for batch in padded}) < len({tuple(b.images.shape[2:]) for b in plain})


def test_a_run_on_canvases(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Recorded, logged, evaluated on each image once, resumed bit for bit; without, nothing of it is there."""
    caplog.set_level("INFO")
    with one_thread():
        assert train_in(tmp_path / "plain", varied(root, data__eval_batch=3)) == 0
        assert "padded to canvases" not in caplog.text
        assert train_in(tmp_path / "whole", on(varied(root, data__eval_batch=3))) == 0
        assert train_in(tmp_path / "parts", on(varied(root, data__eval_batch=3, train__max_steps=3))) == 0
        assert train_in(tmp_path / "parts", on(varied(root, data__eval_batch=3))) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    (said,) = {line for line in caplog.messages if "padded to canvases" in line}
    plain, padded = Run(tmp_path / "plain"), Run(tmp_path / "parts")
    assert all("padding_waste" not in row for row in plain.metrics())
    assert all(0 <= row["padding_waste"] < 1 for row in padded.metrics())
    lines = [json.loads(line) for line in (padded.folder / "provenance.jsonl").read_text().splitlines()]
    noted = lines[0]["canvases"]
    assert len(lines) == 2
    assert lines[1]["canvases"] == noted
    assert f"{len(noted['training']['sizes'])} from " in said
    assert "canvases" not in json.loads((plain.folder / "provenance.jsonl").read_text().splitlines()[0])
    # The same images, padded otherwise: the first losses are close, the random network's border apart.
    first, other = (run.metrics()[0]["loss"] for run in (plain, padded))
    assert first != other
    assert first == pytest.approx(other, rel=0.05)
    folders = [evaluation_of(run.folder, 2) for run in (plain, padded)]
    found = [Detections.read(folder / NAME) for folder in folders]
    ids = open_data(varied(root)).val.annotations.image_ids
    for each in found:
        assert np.array_equal(np.sort(each.image_ids), ids)
    scores = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    assert "canvases" not in scores[0]["evaluated_with"]
    assert scores[1]["evaluated_with"]["canvases"].startswith(f"{len(noted['evaluation']['sizes'])} canvases (")
    assert scores[1]["canvases"] == noted["evaluation"]


def test_the_largest_canvas_is_tried(root: Path) -> None:
    experiment = on(varied(root))
    trials = trials_of(experiment)
    task = trials.opened()
    largest = trials.largest(task, 32)
    assert isinstance(task, DetectionTask)
    sizes = task.padding(task.build(weights=False)).canvases
    assert (largest.large["height"], largest.large["width"]) == sizes[-1]
    assert largest.large["padded"]
    batch = trials.synthetic(task, largest.large)
    assert tuple(batch.images.shape[2:]) == sizes[-1]


def test_the_table_of_a_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More canvases, fewer pixels; the last line is what a run has."""
    arguments = ["data", "canvases", "debug", "--data.root", str(root), "--data.make-shapes", "0", "0", "0"]
    changed = ["--data.augment", "detr", "--data.max-size", "1333", "--data.scales", "480", "640", "800"]
    assert main([*arguments, *changed, "--counts", "2", "9", "40", "--images", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [
        [float(word.strip(" %")) for word in line.split("\u2502")[1:-1]]
        for line in lines
        if "%" in line and "\u2502" in line
    ]
    assert [row[0] for row in rows] == [2, 9, 40]
    wasted = [row[1] for row in rows]
    assert wasted == sorted(wasted, reverse=True)
    assert lines[-1].startswith("a run has, in training, ")


def test_recorded_steps_are_no_more_than_canvases_and_train_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run as on a GPU, but for what records: one recording for each canvas, whatever is on the images."""
    tape, experiment = Tape(), on(varied(root, **{**HARD, **VARIED}, train__micro_batch=2))
    # Rates that float32 holds exactly: recorded steps read them from the device.
    rates: dict[str, Any] = {"lr": 2.0**-11, "lr_backbone": 2.0**-12, "schedule": "step", "warmup_steps": 0}
    experiment = replace(experiment, train=replace(experiment.train, **rates))
    assert train_in(tmp_path / "eager", experiment) == 0
    with monkeypatch.context() as patch:
        patch.setattr(step, "why_eager", lambda *_: "")
        patch.setattr(step, "CudaRecorder", lambda device: tape)
        assert train_in(tmp_path / "recorded", experiment) == 0
    assert_same_run(tmp_path / "eager", tmp_path / "recorded")
    assert tape.recorded % 2 == 1
    canvases = json.loads((tmp_path / "eager" / "provenance.jsonl").read_text())["canvases"]["training"]["sizes"]
    assert 1 < tape.recorded // 2 <= len(canvases)
    assert tape.replays > tape.recorded


def test_a_batch_has_the_slots_of_the_fullest_image(root: Path) -> None:
    experiment = on(varied(root))
    data = open_data(experiment)
    task, model = DetectionTask(experiment, data), build_detector(experiment, len(data.classes), weights=False)
    most = max(len(data.train.objects(index)[0]) for index in range(len(data.train)))
    assert task.padding(model).slots == most
    off = replace(experiment, data=replace(experiment.data, canvases="off"))
    assert DetectionTask(off, data).padding(model).slots == 0


def test_steps_are_not_recorded_where_every_batch_is_of_another_size(root: Path) -> None:
    def why(**changed: Any) -> str:
        return DetectionTask(varied(root, **changed), None, 3).why_eager

    assert why() == why(data__canvases="on") == why(data__canvases="off", data__canvas=160) == ""
    assert why(data__canvases="off", data__resize="square", data__scales=(64,)) == ""
    assert why(data__canvases="off").startswith("data.canvases=off, so that")
