"""Reports of folders that detectron2 wrote, beside runs of ours: of some made by hand, and of one by itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2_outputs import BATCH, ITERATIONS, SECONDS, ap_of, file_of, make_output, with_changes, write_metrics
from synthetic_runs import experiment_of, make_data, make_run, read_json

from detr_container.compare import measured
from detr_container.compare.analysis import Analysis, analyse
from detr_container.compare.detectron2.folders import Detectron2Run, is_output, outputs_in, read_output
from detr_container.compare.options import ReportOptions
from detr_container.compare.reading import read_runs
from detr_container.compare.report import folders_of, write_report


def analysed(*folders: Path, annotations: Path | None = None) -> Analysis:
    return analyse(folders, annotations, count=2)


def test_a_report_has_both(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data")
    ours = [
        make_run(tmp_path / "runs" / head, experiment_of(tmp_path / "data", head, "resnet18"), world, 0.2)
        for head in ("detr", "retinanet")
    ]
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path))
    options = ReportOptions((str(tmp_path / "runs"), str(theirs)), output=tmp_path / "report", resamples=8)
    page = write_report(options)
    report = read_json(page.parent / "report.json")
    tables = {name: table for section in report["sections"] for name, table in section["tables"].items()}
    label = "RetinaNet, resnet50 FPN (detectron2)"
    run = report["runs"][str(theirs)]
    assert run["cell"] == label
    assert run["ap"] == pytest.approx(ap_of(theirs, file_of(tmp_path)), abs=1e-6)
    row = next(row for row in tables["results"] if "detectron2" in row["backbone"])
    assert row["head"] == "RetinaNet"
    assert row["parameters, M"] is None
    assert row["images/s"] == pytest.approx(BATCH / SECONDS)
    assert row["device-hours"] == pytest.approx(2 * ITERATIONS * SECONDS / 3600)
    assert row["memory, GiB"] == pytest.approx(2.0)
    assert row["best-epoch AP"] == pytest.approx(100 * run["ap"], abs=1e-4)
    # The same head, so the two are compared.
    assert any(label.partition(", ")[2] in row["difference"] for row in tables["differences"])
    fair = {row["setting"]: row for row in tables["fair"]}
    assert fair["program"][label] == "trained by detectron2 (settings not compared)"
    assert fair["program"]["DETR, resnet18"] == "trained here"
    assert fair["program"]["verdict"] == "WARNING"
    assert fair["torch"][label] == "2.1.0+cu121"
    assert fair["device"][label] == "Tesla V100-SXM2-16GB"
    assert fair["commit"][label] == "unknown"
    # What is set in ours is not taken for theirs.
    assert {row[label] for name, row in fair.items() if "." in name} == {"not compared"}
    listed = next(row for row in tables["runs"] if row["run"] == str(theirs))
    assert (listed["seed"], listed["state"], listed["evaluated after epoch"]) == (None, "finished", "100 iterations")
    assert not listed["remarks"]
    assert any("detectron2 trained it, and its model is not built here" in each for each in report["warnings"])
    assert sorted(report["runs"]) == sorted(map(str, [*ours, theirs]))


def test_alone_it_needs_the_annotations_that_it_does_not_name(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path))
    with pytest.raises(ValueError, match="name the file with --annotations FILE"):
        analysed(theirs)
    options = ReportOptions((str(theirs),), output=tmp_path / "report", annotations=file_of(tmp_path), resamples=2)
    text = (write_report(options).parent / "report.md").read_text()
    assert "detectron2's folders do not say where they lie" in text
    measuring = ReportOptions((str(theirs),), tmp_path / "report", file_of(tmp_path), resamples=2, measure=True)
    with pytest.raises(ValueError, match="--measure: there is no model"):
        write_report(measuring)


def test_masks_are_evaluated(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", masks=True)
    config = with_changes(MODEL__META_ARCHITECTURE="GeneralizedRCNN", MODEL__MASK_ON=True)
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path), 1.0, config, masks=True)
    analysis = analysed(theirs, annotations=file_of(tmp_path))
    (arm,) = analysis.by_masks
    assert arm.head == "Mask R-CNN"
    assert arm.results[0].headline > 0
    # What it logged of masks is what they give.
    assert analysis.notes[theirs] == ()
    assert analysis.records[0].evaluations[-1]["mask_ap"] == pytest.approx(arm.results[0].headline, abs=1e-6)


def test_an_ap_that_its_detections_do_not_give_is_said(tmp_path: Path) -> None:
    """As of an annotation file of other images whose ids are the same."""
    world = make_data(tmp_path / "data")
    other = make_data(tmp_path / "other" / "data", seed=8)
    theirs = make_output(tmp_path / "output", other, file_of(tmp_path / "other"))
    run = make_run(tmp_path / "run", experiment_of(tmp_path / "data", "detr", "resnet18"), world, 0.2)
    analysis = analysed(run, theirs)
    assert any("but it logged" in note and "after that iteration" in note for note in analysis.notes[theirs])
    assert not any("but it logged" in note for note in analysis.notes[run])


def test_images_that_the_annotations_lack_leave_it_out(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", count=12)
    more = make_data(tmp_path / "more" / "data", count=24)
    theirs = make_output(tmp_path / "output", more, file_of(tmp_path / "more"))
    run = make_run(tmp_path / "run", experiment_of(tmp_path / "data", "detr", "resnet18"), world, 0.2)
    assert "detections on images that" in analysed(run, theirs).left_out[theirs]


@pytest.mark.parametrize(("seeds", "used"), [((-1, -1), 2), ((1, 2), 2), ((1, 1), 1)])
def test_runs_of_the_same_settings_are_seeds(tmp_path: Path, seeds: tuple[int, int], used: int) -> None:
    """Seeds that were drawn, and are noted nowhere, are different ones."""
    world = make_data(tmp_path / "data")
    folders = [
        make_output(
            tmp_path / f"output{number}",
            world,
            file_of(tmp_path),
            config=with_changes(SEED=seed, OUTPUT_DIR=f"./output{number}"),
            draw=number,
        )
        for number, seed in enumerate(seeds)
    ]
    analysis = analysed(*folders, annotations=file_of(tmp_path))
    (arm,) = analysis.arms
    assert len(arm.results) == used
    assert len(analysis.left_out) == 2 - used
    assert arm.seeds == [seed for seed in seeds if seed >= 0][:used]


def test_settings_of_two_of_theirs_are_compared(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data")
    config = with_changes(SOLVER__BASE_LR=0.02, MODEL__RESNETS__DEPTH=101)
    folders = [
        make_output(tmp_path / "one", world, file_of(tmp_path)),
        make_output(tmp_path / "two", world, file_of(tmp_path), config=config, draw=1),
    ]
    analysis = analysed(*folders, annotations=file_of(tmp_path))
    found = {one.name: one for one in analysis.differences}
    assert set(found) == {"SOLVER.BASE_LR", "MODEL.RESNETS.DEPTH"}
    assert list(found["SOLVER.BASE_LR"].values.values()) == ["0.01", "0.02"]
    assert not found["SOLVER.BASE_LR"].expected
    assert found["MODEL.RESNETS.DEPTH"].expected
    assert len(analysis.evaluated) == 2


def _without_results(folder: Path) -> None:
    (folder / "inference" / "coco_instances_results.json").unlink()


def _without_ap(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    write_metrics(folder, [line for line in lines if "total_loss" in line])


def _damaged(folder: Path) -> None:
    with (folder / "metrics.json").open("a") as file:
        file.write('not JSON\n{"time": 1.0}\n{"iteration": 120, "total_')


def _two_sets(folder: Path) -> None:
    (folder / "inference" / "other").mkdir()
    (folder / "inference" / "other" / "coco_instances_results.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "remark"),
    [
        (_without_results, "give detectron2's COCOEvaluator an output_dir"),
        (_without_ap, "it logged no AP"),
        (_damaged, "line 8: not an object with a whole iteration"),
        (_two_sets, "of which inference/coco_instances_results.json was taken"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
        (
            lambda folder: (folder / "inference" / "coco_instances_results.json").write_text('[{"image_id": "a"}]'),
            "not in COCO's result format",
        ),
    ],
)
def test_what_is_wrong_or_missing_is_named(tmp_path: Path, damage: Callable[[Path], object], remark: str) -> None:
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path))
    run = make_run(tmp_path / "run", experiment_of(tmp_path / "data", "detr", "resnet18"), world, 0.2)
    damage(theirs)
    analysis = analysed(run, theirs)
    said = [analysis.left_out.get(theirs, ""), *analysis.notes.get(theirs, ())]
    assert any(remark in each for each in said), said


def test_a_training_that_has_not_ended_is_used_and_said_so(tmp_path: Path) -> None:
    """Runs of ours are then evaluated as they are without it."""
    world = make_data(tmp_path / "data")
    config = with_changes(SOLVER__MAX_ITER=1000)
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path), config=config)
    experiment = experiment_of(tmp_path / "data", "detr", "resnet18")
    run = make_run(tmp_path / "run", experiment, world, 0.2, epochs=2)
    analysis = analysed(run, theirs)
    assert "it was evaluated after 101 of 1,000 iterations" in analysis.notes[theirs]
    assert analysis.level_epoch == 2
    assert {result.record.folder: result.epoch for arm in analysis.arms for result in arm.results} == {
        run: 2,
        theirs: 101,
    }


def test_classes_that_detectron2_has_numbered_are_known_by_their_names(tmp_path: Path) -> None:
    """Of a data set that was no file, its evaluator makes one, with ids from 0, and results have those."""
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path))
    expected = ap_of(theirs, file_of(tmp_path))
    results = theirs / "inference" / "coco_instances_results.json"
    ids = {int(number): place for place, number in enumerate(world.ground.categories)}
    results.write_text(
        json.dumps([{**each, "category_id": ids[each["category_id"]]} for each in json.loads(results.read_text())])
    )
    content = json.loads(file_of(tmp_path).read_text())
    for key, name in (("categories", "id"), ("annotations", "category_id")):
        content[key] = [{**each, name: ids[each[name]]} for each in content[key]]
    made = {"info": {"date_created": "2026-01-01"}, "licenses": None, **content}
    (theirs / "inference" / "mine_val_coco_format.json").write_text(json.dumps(made))
    for folders, given in (
        ([theirs], None),
        ([theirs], file_of(tmp_path)),
        ([theirs, make_run(tmp_path / "run", experiment_of(tmp_path / "data", "smca", "resnet18"), world, 0.2)], None),
    ):
        analysis = analysed(*folders, annotations=given)
        (result,) = analysis.arms[0].results
        assert result.headline == pytest.approx(expected, abs=1e-6)
        assert analysis.notes[theirs] == ()
    # The same made at another time.
    again = make_output(tmp_path / "again", world, file_of(tmp_path), config=with_changes(SEED=1))
    made["info"] = {"date_created": "2026-01-02"}
    (again / "inference" / "mine_val_coco_format.json").write_text(json.dumps(made))
    (again / "inference" / "coco_instances_results.json").write_text(results.read_text())
    assert len(analysed(theirs, again).arms[0].results) == 2


def test_folders_are_told_from_runs_of_ours(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data")
    run = make_run(tmp_path / "all" / "ours", experiment_of(tmp_path / "data", "detr", "resnet18"), world, 0.2)
    theirs = make_output(tmp_path / "all" / "theirs", world, file_of(tmp_path))
    (tmp_path / "all" / "neither").mkdir()
    evaluated_only = tmp_path / "all" / "evaluated"
    (evaluated_only / "inference").mkdir(parents=True)
    (evaluated_only / "inference" / "coco_instances_results.json").write_text("[]")
    assert not is_output(run)
    assert is_output(theirs)
    assert outputs_in(tmp_path / "all") == [evaluated_only, theirs]
    assert sorted(folders_of([str(tmp_path / "all")])) == sorted([run, theirs, evaluated_only])
    assert not isinstance(read_runs([run])[0], Detectron2Run)


def test_what_detectron2_writes_is_read(tmp_path: Path) -> None:
    """A folder of its own trainer, hooks, writers and evaluator."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")
    import torch
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.engine import SimpleTrainer, default_setup, hooks
    from detectron2.engine.defaults import default_writers
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
    from detectron2.structures import Boxes, Instances

    from detr_container.d2.catalog import register

    class Guess(torch.nn.Module):
        """Finds some objects, whatever it learns."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.known = {record["image_id"]: record["annotations"] for record in records}

        def forward(self, inputs: list[dict[str, Any]]) -> Any:
            if self.training:
                return {"loss_cls": self.weight**2, "loss_box_reg": self.weight**2 / 2}
            return [{"instances": self.found(one)} for one in inputs]

        def found(self, one: dict[str, Any]) -> Instances:
            objects = self.known[one["image_id"]][::2]
            instances = Instances((one["height"], one["width"]))
            boxes = torch.tensor([each["bbox"] for each in objects]).reshape(-1, 4)
            boxes[:, 2:] = boxes[:, :2] + 1.1 * boxes[:, 2:]
            instances.pred_boxes = Boxes(boxes)
            instances.pred_classes = torch.tensor([each["category_id"] for each in objects], dtype=torch.int64)
            instances.scores = torch.linspace(0.9, 0.5, len(objects))
            return instances

    make_data(tmp_path / "data")
    names = register(tmp_path / "data", f"real{np.random.default_rng().integers(1 << 40)}")
    records = DatasetCatalog.get(names[1])
    output = tmp_path / "output"
    config = get_cfg()
    config.merge_from_list(["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", 25, "SOLVER.IMS_PER_BATCH", 2, "SEED", 3])
    config.merge_from_list(["MODEL.META_ARCHITECTURE", "RetinaNet", "DATASETS.TEST", (names[1],)])
    default_setup(config, argparse.Namespace(config_file="", eval_only=False))
    model = Guess()
    trainer = SimpleTrainer(model, [[{}, {}]] * 1000, torch.optim.SGD(model.parameters(), 0.1))

    def evaluate() -> Any:
        evaluator = COCOEvaluator(names[1], ("bbox",), False, str(output / "inference"))
        found = inference_on_dataset(model, [[record] for record in records], evaluator)
        print_csv_format(found)
        return found

    every = [hooks.IterationTimer(), hooks.EvalHook(12, evaluate)]
    trainer.register_hooks([*every, hooks.PeriodicWriter(default_writers(str(output), 25), 10)])
    trainer.train(0, 25)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    record = read_output(output)
    assert record.faults == ()
    assert (record.seed, record.iterations, record.devices, record.state) == (3, 25, 1, "finished")
    assert [row["step"] for row in record.metrics] == [10, 20, 25]
    assert record.metrics[-1]["losses"]["box"] > 0
    assert [row["step"] for row in record.evaluations] == [12, 24, 25]
    assert record.provenance[0]["packages"].keys() == {"torch", "torchvision", "detectron2"}
    assert (measured.measured(record).hours or 0) > 0
    analysis = analysed(output, annotations=file_of(tmp_path))
    (arm,) = analysis.arms
    assert arm.label == "RetinaNet, resnet50 (detectron2)"
    assert 0 < arm.results[0].headline < 1
    # Without a remark, the AP that detectron2 logged is the one that is computed here.
    assert analysis.notes[output] == ()
