"""Models side by side: how much attention lies in a box, what the JSON holds and what sheets show."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matched import most, naive_iou, some, weights_of
from numpy.typing import NDArray
from PIL import Image
from runs import final_state, one_thread, tiny, train_in

from detr_container.commands import cli
from detr_container.config.detection import DataConfig
from detr_container.datasets.annotations import Category
from detr_container.drawing.images import PALETTE
from detr_container.engine.run import Run
from detr_container.models.weights.layouts import to_published
from detr_container.tasks.detection.found_objects import Found, Model, found_by, within_box
from detr_container.tasks.detection.inspection import labels, open_models, tally, write_inspection
from detr_container.tasks.detection.inspection_sheet import draw_sheet
from detr_container.tasks.detection.predict import Prediction, predict

CPU = torch.device("cpu")
MAGENTA, ITS_GREY = (255, 0, 255), 105
PANEL = 512
KEYS = {"category_id", "category", "score", "bbox", "query", "attention_in_box", "image_in_box", "iou"}


@pytest.fixture(scope="session")
def smca(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On CONTAINER, with two checkpoints; its images of 72 pixels are padded to 80."""
    folder = tmp_path_factory.mktemp("inspection") / "focal"
    settings: dict[str, Any] = {"data__eval_size": 72, "data__max_size": 72, "train__eval_every": 0}
    assert train_in(folder, tiny(root, **settings)) == 0
    return folder


@pytest.fixture(scope="session")
def detr(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a ResNet, whose feature map has another stride."""
    folder = tmp_path_factory.mktemp("inspection") / "softmax"
    settings: dict[str, Any] = {"head__kind": "detr", "loss__classification": "softmax", "train__max_steps": 2}
    assert train_in(folder, tiny(root, backbone__name="resnet18", **settings)) == 0
    return folder


@pytest.fixture(scope="session")
def models(smca: Path, detr: Path) -> list[Model]:
    return open_models([smca, detr], CPU)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """An image of one colour, so that what of it a sheet shows can be counted."""
    path = tmp_path / "flat.png"
    Image.new("RGB", (64, 64), MAGENTA).save(path)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def inspect(*arguments: object) -> int:
    return cli.main(["inspect", *map(str, arguments), "--device", "cpu"])


def like(image: Image.Image, colour: Sequence[int], within: int = 0) -> NDArray[np.bool_]:
    """Where an image has a colour; within: how far each channel may be from it."""
    difference: NDArray[np.bool_] = (np.abs(np.asarray(image).astype(int) - colour) <= within).all(axis=-1)
    return difference


def naive_share(prediction: Prediction, query: int, bbox: Sequence[float]) -> float:
    """Position by position: how much of its part of the image a box covers, times its attention."""
    assert prediction.output.attention is not None
    (attention,) = prediction.output.attention.values()
    heads = attention[-1, 0, :, query].tolist()
    rows, columns = len(heads[0]), len(heads[0][0])
    (height, width), (canvas_height, canvas_width) = prediction.size, prediction.canvas
    _, file_height, file_width = prediction.image.shape
    left, right = bbox[0] * width / file_width, (bbox[0] + bbox[2]) * width / file_width
    top, bottom = bbox[1] * height / file_height, (bbox[1] + bbox[3]) * height / file_height
    inside = everything = 0.0
    for i in range(rows):
        for j in range(columns):
            y1, y2 = i * canvas_height / rows, min((i + 1) * canvas_height / rows, height)
            x1, x2 = j * canvas_width / columns, min((j + 1) * canvas_width / columns, width)
            mass = sum(head[i][j] for head in heads) / len(heads)
            everything += mass
            if x2 > x1 and y2 > y1:
                covered = max(0.0, min(right, x2) - max(left, x1)) * max(0.0, min(bottom, y2) - max(top, y1))
                inside += mass * covered / ((x2 - x1) * (y2 - y1))
    return inside / everything


def test_the_json(models: list[Model], root: Path, tmp_path: Path) -> None:
    """Every detection once, with the shares that loops over boxes and positions give."""
    paths = sorted((root / "val2017").iterdir())[:2]
    write_inspection(models, paths, tmp_path, threshold=0.05, lines=1)
    report = json.loads((tmp_path / "inspection.json").read_text())
    assert [(m["label"], m["head"], m["backbone"], m["step"], m["stride"]) for m in report["models"]] == [
        ("focal", "smca", "container_light_tiny", 8, 16),
        ("softmax", "detr", "resnet18", 2, 32),
    ]
    assert [image["file"] for image in report["images"]] == [str(path) for path in paths]
    for place, image in enumerate(report["images"]):
        assert (image["width"], image["height"]) == (64, 64)
        assert image["truth"] == str(root / "annotations" / "instances_val2017.json")
        assert (tmp_path / image["sheet"]).is_file()
        for model in models:
            (prediction,) = predict(model.trained, paths[place : place + 1], attention_maps=True)
            queries = [
                int(q) for q, s in zip(prediction.found.queries, prediction.found.scores, strict=True) if s >= 0.05
            ]
            found = [thing["detections"][model.label] for thing in image["objects"]]
            found = [one for one in found if one is not None]
            assert sorted(one["query"] for one in found) == sorted(queries) != []
            for one in found:
                assert one.keys() == KEYS
                x, y, w, h = one["bbox"]
                expected = naive_share(prediction, one["query"], one["bbox"])
                assert one["attention_in_box"] == pytest.approx(expected, abs=1e-5)
                area = (min(x + w, 64) - max(x, 0)) * (min(y + h, 64) - max(y, 0))
                assert one["image_in_box"] == pytest.approx(area / 64**2, abs=1e-5)
        for thing in image["objects"]:
            first, second = (thing["detections"][model.label] for model in models)
            assert thing["category"] == (first or second)["category"]
            assert first is None or first["iou"] == pytest.approx(1, abs=1e-5)
            if second is not None:
                expected_iou = (
                    None if first is None else pytest.approx(naive_iou(first["bbox"], second["bbox"]), abs=1e-4)
                )
                assert second["iou"] == expected_iou


def test_two_checkpoints_of_a_run(smca: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their detections hardly differ, so many are matched, and as well as they can be."""
    image = min((root / "val2017").iterdir())
    older, newer = sorted((smca / "checkpoints").glob("*.pt"))
    usual = ("--weights", "auto", "model", "--classes", "", "", "--experiment", "", "")
    assert inspect(older, newer, "--image", image, "--output", tmp_path / "out", "--threshold", 0, *usual) == 0
    (record,) = json.loads((tmp_path / "out" / "inspection.json").read_text())["images"]
    pairs = [tuple(thing["detections"].values()) for thing in record["objects"]]
    assert list(record["objects"][0]["detections"]) == [older.name, newer.name]
    both = [(a, b) for a, b in pairs if a and b]
    ours, theirs = ([pair[k] for pair in pairs if pair[k]] for k in (0, 1))
    as_found = [[some(one["category"], one["score"], one["bbox"]) for one in side] for side in (ours, theirs)]
    assert sum(b["iou"] for _, b in both) == pytest.approx(most(weights_of(*as_found)), abs=1e-3)
    line, wrote = capsys.readouterr().out.splitlines()
    expected = (
        f"{image}: {len(pairs)} objects: {len(both)} found by both, {len(ours) - len(both)} only by {older.name}, "
        f"{len(theirs) - len(both)} only by {newer.name}; {tmp_path}/out/{image.stem}.jpg"
    )
    assert line == expected
    assert wrote == f"wrote {tmp_path}/out/inspection.json and a sheet of each"


def test_the_same_run_twice(smca: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is kept apart from itself, and finds the same; options may stand in front, and images have two names."""
    image = min((root / "val2017").iterdir())
    assert inspect("--threshold", 0, "--output", tmp_path, smca, smca, "--images", image, image) == 0
    report = json.loads((tmp_path / "inspection.json").read_text())
    assert [model["label"] for model in report["models"]] == ["focal", "focal (2)"]
    assert [record["sheet"] for record in report["images"]] == [f"{image.stem}.jpg", f"{image.stem}_.jpg"]
    for thing in report["images"][0]["objects"]:
        first, second = thing["detections"].values()
        assert first == second | {"iou": pytest.approx(1, abs=1e-5)}
    assert "10 objects: 10 found by both, 0 only by focal, 0 only by focal (2)" in capsys.readouterr().out


def test_attention_within_a_box(models: list[Model], root: Path) -> None:
    """All of it in the whole image, none beside it, and the parts of an image together have all."""
    for model in models:
        (prediction,) = predict(model.trained, [min((root / "val2017").iterdir())], attention_maps=True)
        heat = found_by(model, prediction, 0)[0].attention_maps[0]
        assert within_box(heat, torch.tensor([-5.0, -5, 99, 99]), prediction) == pytest.approx(1, abs=1e-6)
        assert within_box(heat, torch.tensor([64.0, 0, 99, 64]), prediction) == pytest.approx(0, abs=1e-6)
        cuts = [0.0, 7.5, 30, 64]
        parts = [
            within_box(heat, torch.tensor([left, top, right, bottom]), prediction)
            for left, right in pairwise(cuts)
            for top, bottom in pairwise(cuts)
        ]
        assert sum(parts) == pytest.approx(1, abs=1e-6)
        assert min(parts) > 0


def test_what_a_sheet_shows(models: list[Model], flat: Path) -> None:
    """An image per model, then three attention maps for every object: two of SMCA, one of DETR, grey if not found."""
    predictions = [next(predict(model.trained, [flat], attention_maps=True)) for model in models]
    first, second = (found_by(*pair, 0)[0] for pair in zip(models, predictions, strict=True))
    peak = torch.zeros(2, 5, 5)
    peak[0, 1, 3], peak[1, 4, 0] = 1, 1
    first = replace(first, attention_maps=peak, box=torch.tensor([8.0, 24, 56, 48]))

    def sheet(*objects: list[Found | None], threshold: float = 1, lines: int = 6) -> Image.Image:
        return draw_sheet(models, predictions, objects, None, threshold, lines, "a title")

    nothing, both, one, other = sheet(), sheet([first, second]), sheet([first, None]), sheet([None, second])
    for drawn, panels in ((nothing, 2 * PANEL**2), (both, 2 * 772**2)):
        assert like(drawn, MAGENTA).sum() == panels
    assert nothing.width == 2 * PANEL + 8 + 32
    assert both.width == one.width == other.width == 3 * PANEL + 2 * 8 + 32
    for drawn, missing in ((both, 0), (one, 1), (other, 2)):
        grey = like(drawn, (ITS_GREY,) * 3).sum() / PANEL**2
        assert missing - 0.06 < grey < missing + 0.01  # a dashed box covers some of it
    assert (like(sheet([first, second], threshold=0), MAGENTA).sum()) < like(both, MAGENTA).sum()  # boxes
    assert (
        sheet(*[[first, second]] * 3).height == sheet(*[[first, second]] * 4, lines=3).height > both.height + 2 * PANEL
    )
    assert sheet([first, second], lines=0).size != both.size
    # The bright places of the first two attention maps are where the positions are: 80 pixels of canvas on 72 of image.
    bright = np.asarray(one.convert("L")).astype(int)
    top = np.flatnonzero(like(one, MAGENTA).any(axis=1)).max() + 1
    maps = bright[top:, 16:]
    start = np.flatnonzero((np.abs(maps - ITS_GREY) == 0).sum(axis=1) > PANEL * 0.8).min()
    for panel, (row, column) in enumerate(((1, 3), (4, 0))):
        shown = maps[start : start + PANEL, panel * (PANEL + 8) : panel * (PANEL + 8) + PANEL]
        y, x = np.unravel_index(shown.argmax(), shown.shape)
        assert (y * 72 / PANEL // 16, x * 72 / PANEL // 16) == (row, column)
    # The box is on all three attention maps, eight times as large as in the file, and dashed where it is
    # not the model's own.
    outline = like(one, PALETTE[1])[top + start + 48 * 8]
    drawn = [outline[16 + panel * (PANEL + 8) :][8 * 8 : 56 * 8].mean() for panel in range(3)]
    assert drawn[:2] == [1, 1]
    assert 0.5 < drawn[2] < 0.9


def with_data(model: Model, **data: Any) -> Model:
    """The model as if it had been trained with other data."""
    settings = replace(model.trained.experiment, data=replace(DataConfig(eval_size=64, max_size=64), **data))
    return replace(model, trained=replace(model.trained, experiment=settings))


def test_ground_truth_of_validation_images_only(
    models: list[Model], flat: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, file = tmp_path / "set" / "val", tmp_path / "set" / "val.json"
    images.mkdir(parents=True)
    (images / "linked.png").symlink_to(flat)
    shutil.copy(flat, images / "strange.png")
    box = {"id": 1, "image_id": 5, "category_id": 9, "bbox": [16, 24, 32, 32], "area": 1024, "iscrowd": 0}
    image = {"id": 5, "file_name": "./linked.png", "height": 64, "width": 64}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 9, "name": "a shape of its own"}]}
    file.write_text(json.dumps(content))
    second = with_data(models[1], val_images=images, val_annotations=file)
    # The first one's set is gone.
    pair = [with_data(models[0], root=tmp_path / "gone"), second]
    paths = [flat, images / "strange.png", tmp_path / "set" / ".." / "set" / "val" / "linked.png"]
    report = write_inspection(pair, paths, tmp_path / "out", threshold=1)
    assert [entry["truth"] for entry in report["images"]] == [None, None, file]
    sheets = [Image.open(tmp_path / "out" / entry["sheet"]) for entry in report["images"]]
    assert [sheet.width for sheet in sheets] == [2 * PANEL + 8 + 32] * 2 + [3 * PANEL + 16 + 32]
    areas = [like(sheet, MAGENTA, within=12).sum() / PANEL**2 for sheet in sheets]
    assert areas[:2] == pytest.approx([2, 2], abs=0.03)
    assert 2.9 < areas[2] < 2.99
    # The box is in the first panel: its middle is as it was, its lower side is drawn.
    place = like(sheets[2], MAGENTA, within=12)
    top, left = np.flatnonzero(place.sum(axis=1) > 100).min(), 16
    colour = PALETTE[len(models[0].trained.classes) % len(PALETTE)]
    assert like(sheets[2], colour, within=40)[top + 56 * 8 - 3 : top + 56 * 8 + 3, left + 32 * 8].any()
    assert place[top + 40 * 8, left + 32 * 8]
    assert caplog.text == ""
    file.write_text("[]")
    report = write_inspection(pair, paths[2:], tmp_path / "out", threshold=1)
    assert report["images"][0]["truth"] is None
    assert "no ground truth is shown: " in caplog.text


def test_large_narrow_and_many_images(models: list[Model], tmp_path: Path) -> None:
    """Photographs are made smaller; narrow images get room for their titles."""
    sizes = {"large": (3000, 2000), "narrow": (20, 300), "flat": (300, 20)}
    for name, size in sizes.items():
        Image.new("RGB", size, MAGENTA).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in sizes]
    report = write_inspection([*models, *models[:1]], paths, tmp_path / "out", threshold=0, lines=2)
    widths = {}
    for name, image in zip(sizes, report["images"], strict=True):
        with Image.open(tmp_path / "out" / image["sheet"]) as sheet:
            widths[name] = sheet.width
            assert sheet.height < 3000
    assert widths == {"large": 5 * PANEL + 64, "narrow": 5 * 320 + 64, "flat": 5 * PANEL + 64}


def test_files_that_cannot_be_read_are_named_last(smca: Path, detr: Path, flat: Path, tmp_path: Path) -> None:
    shutil.copy(flat, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(flat.read_bytes()[:60])
    assert inspect(smca, detr, "--image", tmp_path / "b.png", tmp_path / "a.png", "--output", tmp_path / "out") == 1
    report = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert [image["sheet"] for image in report["images"]] == ["a.jpg"]
    assert report["refused"][0].startswith(f"{tmp_path / 'b.png'} cannot be read as an image: ")


def test_labels_are_short_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert labels([Path("runs/a"), Path("runs/b/")]) == ["a", "b"]
    assert labels([Path("one/a"), Path("two/a"), Path("two/b")]) == ["one/a", "two/a", "two/b"]
    assert labels([Path("one/a"), Path("two/../one/a"), Path("b"), Path("one/a")]) == ["a", "a (2)", "b", "a (3)"]
    assert labels([Path(), Path("x.pt")]) == [tmp_path.name, "x.pt"]


def test_the_tally() -> None:
    found = {"abc": 2, "ab": 1, "c": 3, "": 0}
    things = [
        {"detections": {name: ({} | {"score": 1} if name in group else None) for name in "abc"}}
        for group, times in found.items()
        for _ in range(times)
    ]
    expected = "6 objects: 2 found by all, 1 only by a and b, 0 only by a, 0 only by b, 3 only by c"
    assert tally({"objects": things}, "abc") == expected
    assert tally({"objects": things[:1]}, "abc").startswith("1 object: 1 found by all, 0 only by a,")
    assert tally({"objects": []}, "ab") == "0 objects: 0 found by both, 0 only by a, 0 only by b"


def test_class_lists_that_differ(
    smca: Path, detr: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Classes are matched by name, whatever their id and case; with none in common there is nothing to match."""
    ours = open_models([smca, detr], CPU)
    assert caplog.text == ""
    lists = [
        tuple(Category(place, name) for place, name in enumerate(names))
        for names in (("Star", "ring"), ("(unused id 0)", "star", "person", "dog"), ("cat",))
    ]
    opened = iter([])

    def as_if(*names: int) -> None:
        nonlocal opened
        opened = iter([replace(ours[0].trained, classes=lists[name]) for name in names])

    monkeypatch.setattr("detr_container.tasks.detection.inspection.open_trained", lambda *_: next(opened))
    as_if(0, 1)
    with caplog.at_level(logging.WARNING):
        open_models([smca, detr], CPU)
    assert "not all of the models know ring, person, dog: the others cannot find such objects" in caplog.text
    as_if(0, 2)
    with pytest.raises(
        ValueError, match=r"no class in common \(focal: Star, ring; softmax: cat\): objects are matched"
    ):
        open_models([smca, detr], CPU)


def test_weights_and_class_names_of_foreign_files(detr: Path, root: Path, tmp_path: Path) -> None:
    """Averaged beside raw weights of one file, whose classes an annotation file names."""
    state = to_published(final_state(detr)["model"])
    average = {name: value + 1 if name == "query_embed.weight" else value for name, value in state.items()}
    path = tmp_path / "foreign.pth"
    heads = tiny(root).head.heads
    torch.save({"model": state, "model_ema": average, "args": argparse.Namespace(nheads=heads)}, path)
    annotations = str(root / "annotations" / "instances_val2017.json")
    averaged, raw = open_models([path, path], CPU, weights=("ema", "model"), classes=(annotations, annotations))
    queries = [one.trained.model.query_embed.weight for one in (averaged, raw)]
    assert torch.equal(queries[0], queries[1] + 1)
    assert averaged.trained.classes == raw.trained.classes == open_models([detr, detr], CPU)[0].trained.classes
    with pytest.raises(ValueError, match=r"no class in common \(foreign\.pth: class 0, class 1, .*; foreign"):
        open_models([path, path], CPU, classes=("", annotations))


def test_mistakes(smca: Path, detr: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is reported with what would help, before anything is written."""
    (tmp_path / "broken.png").write_bytes(flat.read_bytes()[:60])
    young = Run(tmp_path / "young")
    young.folder.mkdir()
    shutil.copy(smca / "config.json", young.folder)
    out = ("--output", tmp_path / "out")
    cases: list[tuple[Sequence[object], str]] = [
        ((smca, "--image", flat), f"only {smca} is given, and two or more are inspected side by side: name their runs"),
        (("--image", flat, smca, detr), "no model is given, and two or more are inspected"),
        ((smca, detr, "--image"), "no image is given: name files, or folders"),
        ((smca, detr, "--image", tmp_path / "nowhere.png"), "there is no image"),
        ((smca, detr, "--image", tmp_path / "broken.png"), "broken.png cannot be read as an image"),
        ((smca, young.folder, "--image", flat), "young has no checkpoint yet: train it first"),
        ((smca, tmp_path, "--image", flat), "is not a run: it has no config.json"),
        ((smca, tmp_path / "x.pt", "--image", flat), "x.pt: there is no such checkpoint"),
        ((smca, detr, "--image", flat, "--threshold", 1.5), "threshold=1.5: it must be"),
        ((smca, detr, "--image", flat, "--objects", -1), "objects=-1: it must be"),
        ((smca, detr, "--image", flat, "--experiment", "demo"), "--experiment has 1 words for 2 models: give one per"),
        ((smca, detr, "--image", flat, "--weights", "ema"), "give one per model in their order, auto for those"),
        ((smca, detr, "--image", flat, "--classes", "a", "b", "c"), "--classes has 3 words for 2 models: give one per"),
    ]
    for arguments, message in cases:
        assert inspect(*arguments, *out) == 2
        shown, error = capsys.readouterr()
        assert message in error
        assert shown == ""
    assert not (tmp_path / "out").exists()
