"""The commands on classifiers: evaluate, predict and export, as a person types them, and what they refuse."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from classifiers import debug
from PIL import Image
from runs import one_thread, train_in
from safetensors.torch import load_file

from detr_container.commands import cli
from detr_container.engine.run import Run
from detr_container.tasks.classification import predict
from detr_container.tasks.classification.predictions import NAME, Predictions
from detr_container.tasks.classification.trained import open_trained


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, without averages, so that there is one set of weights."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    assert train_in(folder, debug(shapes, train__epochs=1, train__warmup_epochs=0, train__ema_decay=0.0)) == 0
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision writes it, of ten classes."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), path)
    return path


def run(*arguments: object) -> int:
    """The command's status, however it ends."""
    with one_thread():
        try:
            return cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0)


def test_evaluate_a_run_as_training_did(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures as the run's own last evaluation; others at another size, each in a folder of its own."""
    assert run("evaluate", trained, "--size", 32, 40, "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "By input size" in shown
    assert "all 10 classes by name" in shown
    row = Run(trained).evaluations()[-1]
    scores = json.loads((trained / "evaluation" / "scores.json").read_text())
    assert {key: scores[key] for key in ("top1", "top5", "loss", "images")} == {
        key: row[key] for key in ("top1", "top5", "loss", "images")
    }
    larger = json.loads((trained / "evaluation" / "size-40" / "scores.json").read_text())
    assert (scores["evaluated_with"]["size"], larger["evaluated_with"]["size"]) == (32, 40)
    assert larger["loss"] != scores["loss"]
    found = Predictions.read(trained / "evaluation" / NAME)
    assert found.top(1).mean() == pytest.approx(scores["top1"])
    for pair in scores["confused"]:
        names = [row["name"] for row in scores["per_class"]]
        true, predicted = (names.index(pair[key]) for key in ("true", "predicted"))
        count = int(((found.labels == true) & (found.classes[:, 0] == predicted)).sum())
        assert (pair["images"], pair["share"]) == (count, pytest.approx(count / (found.labels == true).sum()))


def test_evaluate_on_other_folders(trained: Path, shapes: Path, tmp_path: Path) -> None:
    """A part of the classes, in a folder of any order, is found by name."""
    for name in ("star-filled", "cross-outline"):
        shutil.copytree(shapes / "val" / name, tmp_path / "some" / name)
    assert run("evaluate", trained, "--images", tmp_path / "some", "--output", tmp_path / "out", "--device", "cpu") == 0
    part = Predictions.read(tmp_path / "out" / NAME)
    names = sorted(each.name for each in (shapes / "val").iterdir())
    assert sorted(set(part.labels.tolist())) == [names.index("cross-outline"), names.index("star-filled")]
    assert run("evaluate", trained, "--data-root", shapes, "--output", tmp_path / "all", "--device", "cpu") == 0
    whole = Predictions.read(tmp_path / "all" / NAME)
    assert len(whole.labels) == 20
    rows = np.isin(whole.labels, part.labels)
    np.testing.assert_allclose(whole.true_probability[rows], part.true_probability, rtol=1e-5)


def test_dense_affinities_of_one_size_are_interpolated_where_it_is_asked_for(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, settings = tmp_path / "run", {"train__epochs": 1, "train__warmup_epochs": 0, "train__ema_decay": 0.0}
    assert train_in(folder, debug(shapes, backbone__name="container_pam_tiny", **settings)) == 0
    capsys.readouterr()
    assert run("evaluate", folder, "--size", 32, 40, "--device", "cpu") == 2
    assert "built for images of 32 x 32 pixels, not of 40 x 40" in capsys.readouterr().err
    assert run("evaluate", folder, "--size", 32, 40, "--interpolate", "--device", "cpu") == 0
    own, larger = (json.loads((folder / "evaluation" / place / "scores.json").read_text()) for place in ("", "size-40"))
    assert own["loss"] == Run(folder).evaluations()[-1]["loss"] != larger["loss"]
    assert {each["evaluated_with"]["dense"] for each in (own, larger)} == {"interpolate"}
    assert run("evaluate", folder, "--size", 44, "--interpolate", "--device", "cpu") == 2
    assert "multiples of 8 pixels, not 44 x 44" in capsys.readouterr().err


def test_predict(trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no image is named, and the others are done."""
    images = sorted((shapes / "val" / "star-filled").iterdir())
    text = tmp_path / "text.png"
    text.write_text("no image")
    out = tmp_path / "out"
    assert run("predict", trained, text, *images, "--output", out, "--device", "cpu") == 1
    shown, said = capsys.readouterr()
    assert "text.png cannot be read as an image" in said
    records = json.loads((out / "predictions.json").read_text())
    assert [record["file"] for record in records] == [str(image) for image in images]
    for record, line in zip(records, shown.splitlines(), strict=False):
        assert len(record["classes"]) == 5
        probabilities = [guess["probability"] for guess in record["classes"]]
        assert probabilities == sorted(probabilities, reverse=True)
        best = record["classes"][0]
        assert line.startswith(f"{record['file']}: {best['category']} {100 * best['probability']:.1f} %, ")
    with Image.open(out / "predictions.jpg") as sheet:
        assert sheet.width > 240
    # The same numbers as an evaluation's, one image at a time.
    assert run("evaluate", trained, "--output", tmp_path / "whole", "--device", "cpu") == 0
    found = Predictions.read(tmp_path / "whole" / NAME)
    label = sorted(each.name for each in (shapes / "val").iterdir()).index("star-filled")
    expected = found.probabilities[found.labels == label]
    got = [[guess["probability"] for guess in record["classes"]] for record in records]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_sheet_names_files_on_one_line(
    trained: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    drawn = predict.row
    monkeypatch.setattr(
        predict, "row", lambda images, names, **more: titles.extend(names) or drawn(images, names, **more)
    )
    source = next((shapes / "val" / "star-filled").iterdir())
    names = ["short.png", f"one{'-of-many' * 9}-0001.png", f"one{'-of-many' * 9}-0002.png"]
    for name in names:
        shutil.copy(source, tmp_path / name)
    paths = [tmp_path / name for name in names]
    assert run("predict", trained, *paths, "--output", tmp_path / "out", "--device", "cpu") == 0
    first, *others = (title.splitlines()[0] for title in titles)
    assert first == "short.png"
    assert len(set(others)) == 2
    assert all(name.startswith("one-of") and "…" in name and len(name) <= 27 for name in others)


def test_predict_as_a_table(trained: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = shapes / "val" / "star-filled"
    options = ["--output", out, "--format", "csv", "--no-sheet", "--device", "cpu", "--size", 48]
    assert run("predict", trained, folder, *options) == 0
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"] * len(list(folder.iterdir()))
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]


def test_export_to_torchvision_and_back(resnet: Path, shapes: Path, tmp_path: Path) -> None:
    """Names that torchvision and timm load strictly; a note beside says what it is."""
    target = tmp_path / "mine.safetensors"
    assert run("export", resnet, target, "--classes", shapes / "val") == 0
    torchvision.models.resnet18(num_classes=10).load_state_dict(load_file(target), strict=True)
    about = json.loads((tmp_path / "mine.safetensors.json").read_text())
    assert (about["architecture"], about["library"], about["num_classes"]) == ("resnet18", "torchvision", 10)
    assert about["classes"] == sorted(each.name for each in (shapes / "val").iterdir())
    assert (about["input_size"], about["crop_ratio"]) == ([3, 224, 224], 0.875)
    original = torch.load(resnet, weights_only=True)
    exported = load_file(target)
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[name], value) for name, value in original.items())
    # Names that nobody gave are not made up.
    assert run("export", resnet, target) == 0
    assert json.loads((tmp_path / "mine.safetensors.json").read_text())["classes"] == []
    images = ["--images", shapes / "val", "--output", tmp_path / "out", "--device", "cpu"]
    assert run("evaluate", target, *images, "--size", 32) == 0


def test_export_of_a_timm_model_is_loaded_by_timm(shapes: Path, tmp_path: Path) -> None:
    """Trained here, and then by timm's own names, whole, with the logits that the run has."""
    folder, settings = tmp_path / "run", {"train__epochs": 1, "train__warmup_epochs": 0, "train__ema_decay": 0.0}
    assert train_in(folder, debug(shapes, backbone__name="timm/test_resnet", backbone__drop_path=0.0, **settings)) == 0
    target = tmp_path / "theirs.safetensors"
    assert run("export", folder, target, "--layout", "timm") == 0
    theirs = timm.create_model("test_resnet", num_classes=10)
    theirs.load_state_dict(load_file(target), strict=True)
    about = json.loads((tmp_path / "theirs.safetensors.json").read_text())
    assert (about["library"], about["architecture"], about["num_classes"]) == ("timm", "test_resnet", 10)
    ours, x = open_trained(str(folder), torch.device("cpu")).model, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours(x))
    assert run("export", folder, target, "--layout", "container") == 2


def test_export_of_a_run_says_how_good_it_is(trained: Path, shapes: Path, tmp_path: Path) -> None:
    target = tmp_path / "container.pth"
    assert run("export", trained, target) == 0
    content = torch.load(target, weights_only=True)
    about = json.loads((tmp_path / "container.pth.json").read_text())
    assert content["about"] == about
    assert about["top1"] == Run(trained).evaluations()[-1]["top1"]
    assert about["from"].startswith(str(trained))
    assert {"patch_embed1.proj.weight", "norm.weight", "head.bias"} <= content["model"].keys()


@pytest.mark.parametrize("name", ["exported.pth", "exported.safetensors"])
def test_an_exported_file_is_evaluated_as_the_run_is(
    name: str, trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which network it is of, on images of which size, and what its classes are called."""
    assert run("export", trained, tmp_path / name) == 0
    for said in ([], ["--backbone", "container_light_tiny"]):
        assert (
            run(
                "evaluate", tmp_path / name, "--data-root", shapes, "--output", tmp_path / "o", "--device", "cpu", *said
            )
            == 0
        )
        assert "all 10 classes by name" in capsys.readouterr().out
        scores = json.loads((tmp_path / "o" / "scores.json").read_text())
        assert {key: scores[key] for key in ("top1", "loss")} == {
            key: Run(trained).evaluations()[-1][key] for key in ("top1", "loss")
        }
    # Another network is not taken for it because a person says so, nor is a note believed that cannot be.
    assert run("evaluate", tmp_path / name, "--data-root", shapes, "--backbone", "container_light_small") == 2
    assert "does not fit" in capsys.readouterr().err
    note = tmp_path / f"{name}.json"
    if name.endswith("safetensors"):
        note.write_text(note.read_text().replace('"crop_ratio": 0.875', '"crop_ratio": 8.75'))
        assert run("evaluate", tmp_path / name, "--data-root", shapes) == 2
        assert "crop_ratio=8.75" in capsys.readouterr().err


def test_an_export_replaces_no_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    newest = Run(folder).checkpoints().paths()[0]
    content = newest.read_bytes()
    for source, target in ((newest, newest), (folder, newest), (folder, newest.with_name("new.pth"))):
        assert run("export", source, target) == 2
        assert "choose another" in capsys.readouterr().err
    assert newest.read_bytes() == content
    assert not newest.with_name("new.pth").exists()


def test_export_says_how_good_averaged_weights_are_of_these_alone(trained: Path, tmp_path: Path) -> None:
    """Where a run keeps both, its evaluations are of the averaged ones."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = Run(folder).checkpoints().paths()[0]
    state = torch.load(path, weights_only=True)
    torch.save(state | {"ema": state["model"], "ema_updates": state["step"]}, path)
    for which, known in (("ema", True), ("model", False)):
        assert run("export", folder, tmp_path / f"{which}.pth", "--weights", which) == 0
        assert ("top1" in json.loads((tmp_path / f"{which}.pth.json").read_text())) is known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate RUN --images nowhere", "nowhere does not exist: give a folder"),
        ("evaluate RUN --images OTHER", "2 classes, of which 1 are none of the classifier's 10 "),
        ("evaluate RUN --crop-ratio 1.5", "crop_ratio=1.5: it must be"),
        ("evaluate RUN --size 0", "size=0: it must be greater than 0"),
        ("evaluate RUN --coco-json x", "Unrecognized options: --coco-json"),
        ("evaluate RESNET --images OTHER", "has 2 classes, the classifier 10 without names"),
        ("evaluate RESNET", "states no data: name a folder"),
        ("evaluate RESNET --images VAL --backbone timm/resnet18 --experiment deit_s_in1k", "give one of them"),
        ("evaluate RESNET --images VAL --experiment smca_r50_50e", "this is for classification alone"),
        ("evaluate RESNET --images VAL --backbone resnet34", "Name its network with --backbone timm/NAME"),
        ("evaluate BROKEN --images VAL --task classification", "broken.pth is damaged"),
        ("evaluate timm/resnet1888 --images VAL", "timm has no model 'resnet1888'. Near: resnet18"),
        ("evaluate nowhere.pth --task classification", "nowhere.pth: there is no such checkpoint"),
        ("evaluate RUN --task detection", "not a detector's weights"),
        ("predict RUN", "no image is given"),
        ("predict RUN nowhere.jpg", "there is no image nowhere.jpg"),
        ("predict RUN BROKEN", "cannot be read as an image"),
        ("export RUN x.pth --layout torchvision", "torchvision has no container_light_tiny: use --layout container"),
        ("export RUN x.pth --layout timm", "timm has no container_light_tiny"),
        ("export RESNET x.pth --layout container", "resnet18 is no CONTAINER: use --layout torchvision"),
        ("inspect RUN RUN --image VAL", "is of classification, and `inspect` is about objects and boxes: `predict"),
        ("detections RUN x.json", "is of classification, and `detections` is about objects and boxes: `evaluate`"),
        ("data canvases classify_debug", "images all have one size (data.size)"),
        ("benchmark classify_debug debug", "measure each task by itself"),
        ("evaluate RUN --interpolate", "no dense affinities to interpolate: leave out --interpolate"),
        ("benchmark classify_debug --source coco", "source=coco: images of classification all have one size"),
    ],
)
def test_mistakes_are_named_on_one_line(
    arguments: str,
    message: str,
    trained: Path,
    resnet: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 and no more")
    for name in ("star-filled", "unicorn"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "other" / name / "0.png")
    places = {"RUN": trained, "RESNET": resnet, "VAL": shapes / "val", "OTHER": "other", "BROKEN": "broken.pth"}
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(*(places.get(word, word) for word in arguments.split())) == 2
    said = capsys.readouterr().err
    assert str(places.get(message, message)) in " ".join(said.split())
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before
