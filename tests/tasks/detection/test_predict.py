"""Prediction: the same boxes as evaluation, JSON and images, and attention maps of the decoder."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import one_thread, tiny, train_in

from detr_container.commands import cli
from detr_container.datasets.given import file_stems, find_images
from detr_container.tasks.detection.coco_results import read_kept, records_of
from detr_container.tasks.detection.predict import over_image, query_maps
from detr_container.tasks.detection.predict import predict as predict_images
from detr_container.tasks.detection.trained import open_trained


@pytest.fixture(scope="session", params=["smca", "detr"])
def run(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    softmax = {"head__kind": "detr", "loss__classification": "softmax"} if request.param == "detr" else {}
    folder = tmp_path_factory.mktemp(request.param) / request.param
    settings: dict[str, Any] = {"data__eval_batch": 1, "data__eval_size": 96, "data__max_size": 96}
    assert train_in(folder, tiny(root, **softmax, **settings, train__epochs=1)) == 0
    return folder


def predict(*arguments: object) -> int:
    with one_thread():
        return cli.main(["predict", *map(str, arguments), "--device", "cpu"])


def records(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "predictions.json").read_text())
    return found


def test_the_boxes_of_evaluation(run: Path, root: Path, tmp_path: Path) -> None:
    """With one image per forward pass, so that nothing is padded."""
    out = tmp_path / "out"
    assert predict(run, root / "val2017", "--output", out, "--threshold", 0) == 0
    evaluated = list(records_of(read_kept(run / "detections" / "epoch-001")))
    found = records(out)
    assert len(found) == 5
    for image in found:
        image_id = int(Path(image["file"]).stem)
        expected = [record for record in evaluated if record["image_id"] == image_id]
        assert len(expected) == len(image["detections"]) == 10
        for mine, other in zip(image["detections"], expected, strict=True):
            assert mine["category_id"] == other["category_id"]
            assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
            assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
        assert (image["width"], image["height"]) == (64, 64)
        with Image.open(out / f"{Path(image['file']).stem}.jpg") as drawn:
            assert min(drawn.size) >= 64


def test_the_threshold(run: Path, root: Path, tmp_path: Path) -> None:
    image = min((root / "val2017").iterdir())
    assert predict(run, image, "--output", tmp_path / "all", "--threshold", 0) == 0
    (every,) = records(tmp_path / "all")
    scores = [row["score"] for row in every["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert predict(run, image, "--output", tmp_path / "some", "--threshold", scores[3]) == 0
    (some,) = records(tmp_path / "some")
    assert some["detections"] == every["detections"][:4]
    assert predict(run, image, "--output", tmp_path / "none", "--threshold", 1) == 0
    assert records(tmp_path / "none")[0]["detections"] == []
    assert (tmp_path / "none" / f"{image.stem}.jpg").exists()


@pytest.mark.parametrize("threshold", [0, 1])
def test_attention_maps(threshold: float, run: Path, root: Path, tmp_path: Path) -> None:
    """One more image per input, also when there is nothing to show; SMCA's has a column more for its Gaussians."""
    image = min((root / "val2017").iterdir())
    assert predict(run, image, "--output", tmp_path, "--maps", "--threshold", threshold) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{image.stem}.jpg", f"{image.stem}_attention.jpg", "predictions.json"]
    if threshold == 0:
        with Image.open(tmp_path / names[1]) as sheet:
            width, height = sheet.size
        assert height > width, "six detections, one below the other"


def test_attention_maps_of_smca_have_the_gaussians(root: Path, tmp_path: Path) -> None:
    image, widths = min((root / "val2017").iterdir()), {}
    for kind, softmax in (("smca", {}), ("detr", {"head__kind": "detr", "loss__classification": "softmax"})):
        run = tmp_path / kind
        assert train_in(run, tiny(root, **softmax, train__max_steps=1)) == 0
        assert predict(run, image, "--output", tmp_path / "out" / kind, "--maps", "--threshold", 0) == 0
        with Image.open(tmp_path / "out" / kind / f"{image.stem}_attention.jpg") as sheet:
            widths[kind] = sheet.size[0]
    assert widths["smca"] > 1.3 * widths["detr"]


def test_attention_maps_are_of_the_query_and_of_the_image(run: Path, root: Path) -> None:
    """Means over heads of the last layer; what is laid over an image leaves out the canvas's padding."""
    trained = open_trained(run, torch.device("cpu"))
    small = replace(trained.experiment.data, eval_size=72, max_size=72, canvas=96)
    trained = replace(trained, experiment=replace(trained.experiment, data=small))
    with one_thread():
        (prediction,) = predict_images(trained, [min((root / "val2017").iterdir())], attention_maps=True)
    output = prediction.output
    assert output.attention is not None
    sources = [output.attention, *([] if output.gaussians is None else [output.gaussians])]
    maps = query_maps(prediction, 3)
    assert maps.shape == (len(sources), 6, 6)
    for found, source in zip(maps, sources, strict=True):
        heads = source[16][-1, 0, :, 3]
        torch.testing.assert_close(found, (heads[0] + heads[1]) / 2)
    assert not torch.equal(maps, query_maps(prediction, 4))
    marked = torch.zeros(1, 6, 6)
    marked[0, 1, 3] = 1
    shown = over_image(marked, prediction)
    assert shown.shape == (1, 72, 72)
    row, column = divmod(int(shown[0].argmax()), 72)
    assert (row // 16, column // 16) == (1, 3)


def test_images_are_turned_as_the_run_has_them(run: Path, tmp_path: Path) -> None:
    trained = open_trained(run, torch.device("cpu"))
    turning = replace(trained.experiment.data, apply_orientation=True)
    other = replace(trained, experiment=replace(trained.experiment, data=turning))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((60, 40)).save(tmp_path / "tagged.png", exif=exif)
    with one_thread():
        ((stored,), (turned,)) = (list(predict_images(one, [tmp_path / "tagged.png"])) for one in (trained, other))
    assert torch.equal(turned.image, stored.image.rot90(-1, (1, 2)))


def test_file_names_without_endings() -> None:
    paths = [Path("a/x.png"), Path("b/x.jpg"), Path("x_.gif"), Path("x"), Path("y.tar.png")]
    assert file_stems(paths) == ["x", "x_", "x__", "x___", "y.tar"]
    assert file_stems([Path("x.png"), Path("x_attention.png")], ("", "_attention")) == ["x", "x_attention_"]


@pytest.mark.parametrize("options", [[], ["--maps"]])
def test_no_image_is_overwritten_by_what_is_found_in_it(
    options: list[str], run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither one that lies where predictions go, nor the drawing of another."""
    name = "x_attention.jpg" if options else "x.jpg"
    for place in (name, "x.png"):
        shutil.copy(min((root / "val2017").iterdir()), tmp_path / place)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = [run, tmp_path / "x.png", *([tmp_path / name] if not options else [tmp_path]), *options]
    (tmp_path / "linked").symlink_to(tmp_path)
    assert predict(*command, "--output", tmp_path / "linked") == 2
    assert "is one of the images to be read, and would be overwritten" in capsys.readouterr().err
    (tmp_path / "linked").unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert predict(*command, "--output", tmp_path / "out") == 0
    drawn = [path.name for path in (tmp_path / "out").glob("*.jpg")]
    assert len(drawn) == len(records(tmp_path / "out")) * (2 if options else 1)


def test_images_of_the_same_name_and_of_other_kinds(run: Path, root: Path, tmp_path: Path) -> None:
    """Grey, transparent, turned by EXIF, very long; two files of one name do not overwrite each other."""
    source = Image.open(min((root / "val2017").iterdir()))
    folders: Sequence[Path] = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        folder.mkdir()
    source.convert("L").save(folders[0] / "x.png")
    source.convert("RGBA").save(folders[1] / "x.png")
    source.resize((300, 20)).save(folders[1] / "long.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    source.resize((80, 40)).save(folders[1] / "turned.jpg", exif=turned)
    assert predict(run, *folders, "--output", tmp_path / "out", "--threshold", 0.0) == 0
    found = records(tmp_path / "out")
    assert [Path(row["file"]).name for row in found] == ["x.png", "long.jpg", "turned.jpg", "x.png"]
    assert [(row["width"], row["height"]) for row in found[:2]] == [(64, 64), (300, 20)]
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4
    for row in found:
        for detection in row["detections"]:
            x, y, w, h = detection["bbox"]
            assert -1 <= x + w / 2 <= row["width"] + 1
            assert -1 <= y + h / 2 <= row["height"] + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jpg", "there is no image"),
        ("empty", "holds no image: no file"),
        ("broken.jpg", "broken.jpg cannot be read as an image"),
    ],
)
def test_what_is_no_image(
    name: str, message: str, run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(min((root / "val2017").iterdir()).read_bytes()[:600])
    assert predict(run, tmp_path / name, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_folders_and_files_in_order(root: Path, tmp_path: Path) -> None:
    shutil.copy(min((root / "val2017").iterdir()), tmp_path / "b.JPG")
    shutil.copy(tmp_path / "b.JPG", tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub").mkdir()
    assert find_images([tmp_path / "b.JPG", tmp_path]) == [tmp_path / "b.JPG", tmp_path / "a.png", tmp_path / "b.JPG"]


def test_subfolders_are_searched_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    names = ("b.png", "._b.png", "sub/a.tif", "sub/deep/c.JPG", ".cache/d.png", "sub/notes.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "b.png", tmp_path / "sub" / "a.tif", tmp_path / "sub/deep/c.JPG"]
    with pytest.raises(ValueError, match="no image is given"):
        find_images([])


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_predicted(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = sorted((root / "val2017").iterdir())[:3]
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(first, folder / "a.jpg")
    (folder / "b.jpg").write_bytes(second.read_bytes()[:300])
    os.mkfifo(folder / "c.png")
    shutil.copy(third, folder / "d.jpg")
    assert predict(run, folder, "--output", tmp_path / "out", "--threshold", 0) == 1
    assert [Path(row["file"]).name for row in records(tmp_path / "out")] == ["a.jpg", "d.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "d.jpg", "predictions.json"]
    errors = capsys.readouterr().err.splitlines()
    assert errors[-2].startswith(f"error: {folder / 'b.jpg'}")
    assert errors[-1].startswith(f"error: {folder / 'c.png'}")
    assert "pipe" in errors[-1]
