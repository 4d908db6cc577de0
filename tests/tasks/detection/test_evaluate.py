"""Evaluation: both evaluators, within training and afterwards, on other data, in COCO's result format."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from runs import one_thread, tiny, train_in

from detr_container.commands import cli
from detr_container.engine.run import Run
from detr_container.tasks.detection.coco_results import OLD_NAME, read_kept, records_of
from detr_container.tasks.detection.detections import NAME


@pytest.fixture(scope="session")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained long enough on its own validation images that its metrics are not all zero."""
    data = tmp_path_factory.mktemp("data") / "shapes"
    shutil.copytree(root, data)
    shutil.rmtree(data / "train2017")
    shutil.copytree(data / "val2017", data / "train2017")
    annotations = data / "annotations"
    shutil.copy(annotations / "instances_val2017.json", annotations / "instances_train2017.json")
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings: dict[str, Any] = {
        "train__batch": 5,
        "train__micro_batch": 5,
        "train__epochs": 150,
        "train__lr": 2e-3,
        "train__lr_backbone": 2e-3,
        "train__log_every": 150,
        "train__eval_every": 0,
    }
    assert train_in(folder, tiny(data, **settings)) == 0
    # One epoch more, to have an evaluation within training.
    assert train_in(folder, tiny(data, **{**settings, "train__epochs": 151, "train__eval_every": 1})) == 0
    return folder


def evaluate(*arguments: object) -> int:
    with one_thread():
        return cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])


def scores(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return found


def test_the_metrics_logged_in_training(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged = Run(run).evaluations()[-1]
    assert logged["epoch"] == 151
    assert logged["ap50"] > 0.02, "the run has learnt nothing, so the metrics show nothing"
    assert evaluate(run, "--output", tmp_path) == 0
    found = scores(tmp_path)
    assert {name: found[name] for name in logged if name in found} == {k: v for k, v in logged.items() if k in found}
    assert {"ap", "ap50", "ap75"} <= logged.keys() & found.keys()
    assert (tmp_path / NAME).read_bytes() == (run / "detections" / "epoch-151" / NAME).read_bytes()
    printed = capsys.readouterr().out
    assert f"{100 * found['ap50']:.1f}" in printed
    assert all(name in printed for name in ("circle", "triangle", "star"))


def test_both_evaluators_and_pycocotools_itself(run: Path, tmp_path: Path) -> None:
    for name in ("faster", "pycocotools"):
        path = tmp_path / f"{name}.json"
        assert evaluate(run, "--output", tmp_path / name, "--evaluator", name, "--coco-json", path) == 0
    one, other = scores(tmp_path / "faster"), scores(tmp_path / "pycocotools")
    for mine, theirs in zip(one.pop("per_class"), other.pop("per_class"), strict=True):
        assert mine == pytest.approx(theirs)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), name
    # And straight from the files, as anybody would.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(one["evaluated_with"]["annotations"])
        reference = COCOeval(truth, truth.loadRes(str(tmp_path / "faster.json")), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    named = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    expected = {
        name: None if value < 0 else value for name, value in zip(named, reference.stats[:6].tolist(), strict=True)
    }
    assert {name: one[name] for name in named} == pytest.approx(expected)


def test_detections_are_exported_in_cocos_result_format(run: Path, tmp_path: Path) -> None:
    assert evaluate(run, "--output", tmp_path, "--coco-json", tmp_path / "detections.json") == 0
    found = json.loads((tmp_path / "detections.json").read_text())
    assert found == list(records_of(read_kept(tmp_path)))
    truth = json.loads(Path(scores(tmp_path)["evaluated_with"]["annotations"]).read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    assert len(found) == 10 * len(sizes)
    for record in found:
        assert record.keys() == {"image_id", "category_id", "bbox", "score"}
        assert record["category_id"] in {1, 2, 4, 5, 9, 13}
        assert 0 < record["score"] < 1
        assert record["bbox"][2] >= 0
        assert record["bbox"][0] < sizes[record["image_id"]][0]


def test_the_batch_is_recorded_and_makes_no_difference_without_padding(run: Path, tmp_path: Path) -> None:
    for batch in (1, 5):
        assert evaluate(run, "--output", tmp_path / str(batch), "--eval-batch", batch) == 0
    one, five = scores(tmp_path / "1"), scores(tmp_path / "5")
    assert (one["evaluated_with"]["eval_batch"], five["evaluated_with"]["eval_batch"]) == (1, 5)
    assert one["ap50"] == pytest.approx(five["ap50"], abs=1e-6)


def test_other_data(run: Path, root: Path, tmp_path: Path) -> None:
    """The same images from another place, as a root and as a pair, give the same; a checkpoint file does too."""
    assert evaluate(run, "--output", tmp_path / "own") == 0
    checkpoint = Run(run).checkpoints().paths()[0]
    assert evaluate(checkpoint, "--output", tmp_path / "root", "--data-root", root) == 0
    pair = ["--images", root / "val2017", "--annotations", root / "annotations" / "instances_val2017.json"]
    assert evaluate(run, "--output", tmp_path / "pair", *pair) == 0
    own = (tmp_path / "own" / NAME).read_bytes()
    assert (tmp_path / "root" / NAME).read_bytes() == own
    assert (tmp_path / "pair" / NAME).read_bytes() == own


def test_the_usual_place(run: Path) -> None:
    """What an earlier version left there gives way, since the metrics beside it are no longer its."""
    (run / "evaluation").mkdir()
    (run / "evaluation" / OLD_NAME).write_text("[]")
    assert evaluate(run) == 0
    assert {path.name for path in (run / "evaluation").iterdir()} == {NAME, "scores.json"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"name": "hexagon"}, "'hexagon' (id 4)"), ({"id": 44}, "'triangle' (id 44)")],
)
def test_classes_that_the_model_does_not_know(
    changed: dict[str, Any], message: str, run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    content["categories"] = [{**c, **changed} if c["name"] == "triangle" else c for c in content["categories"]]
    for row in content["annotations"]:
        if row["category_id"] == 4:
            row["category_id"] = changed.get("id", 4)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    assert evaluate(run, "--images", root / "val2017", "--annotations", path, "--output", tmp_path / "out") == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert "fine-tune first" in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("nowhere", "there is no such checkpoint"), (".", "is not a run: it has no config.json")],
)
def test_no_such_run(model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / model) == 2
    assert message in capsys.readouterr().err
