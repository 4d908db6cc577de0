"""The files of a folder that detectron2 wrote: settings of both its kinds, metrics.json and log.txt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2_outputs import (
    BATCH,
    ITERATIONS,
    LAZY,
    LOG,
    SECONDS,
    YACS,
    file_of,
    make_output,
    with_changes,
    write_metrics,
)
from synthetic_runs import make_data

from detr_container.compare import measured
from detr_container.compare.arms import arms_of
from detr_container.compare.detectron2.config_file import read_config
from detr_container.compare.detectron2.folders import read_output


@pytest.mark.parametrize(
    ("config", "head", "backbone"),
    [
        (YACS, "RetinaNet", "resnet50 FPN (detectron2)"),
        (
            with_changes(MODEL__META_ARCHITECTURE="GeneralizedRCNN", MODEL__BACKBONE__NAME="build_resnet_backbone"),
            "Faster R-CNN",
            "resnet50 (detectron2)",
        ),
        (
            with_changes(MODEL__META_ARCHITECTURE="FCOS", MODEL__BACKBONE__NAME="build_vovnet_fpn_backbone"),
            "FCOS",
            "vovnet_fpn (detectron2)",
        ),
        (
            with_changes(
                MODEL__META_ARCHITECTURE="SMCADETR", MODEL__DETR_CONTAINER={"BACKBONE": {"NAME": "container_light"}}
            ),
            "SMCA-DETR",
            "container_light FPN (detectron2)",
        ),
        (LAZY, "Mask R-CNN", "resnet101 FPN (detectron2)"),
        ("", "detectron2", "output (detectron2)"),
        ("- no\n- settings\n", "detectron2", "output (detectron2)"),
        ("a: [1, 2", "detectron2", "output (detectron2)"),
    ],
)
def test_its_settings_name_it(tmp_path: Path, config: dict[str, Any] | str, head: str, backbone: str) -> None:
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path), config=config)
    (arm,), _ = arms_of([read_output(theirs)])
    assert (arm.head, arm.backbone) == (head, backbone)
    assert any("unknown" in fault for fault in arm.runs[0].faults) == (head == "detectron2")


def test_the_settings_of_both_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "yacs.yaml").write_text(yaml.safe_dump(YACS))
    yacs = read_config(tmp_path / "yacs.yaml")
    assert (yacs.batch, yacs.iterations, yacs.seed, yacs.tests) == (BATCH, ITERATIONS, None, ("mine_val",))
    assert yacs.evaluated_with == {"eval_size": 800, "max_size": 1333, "resize": "shortest"}
    assert yacs.settings["SOLVER.STEPS"] == [60, 80]
    assert not {"OUTPUT_DIR", "SEED"} & yacs.settings.keys()
    (tmp_path / "lazy.yaml").write_text(LAZY)
    lazy = read_config(tmp_path / "lazy.yaml")
    assert (lazy.batch, lazy.iterations, lazy.seed, lazy.tests) == (64, 184375, 7, ("mine_val",))
    assert lazy.evaluated_with == {"eval_size": 400, "max_size": 640, "resize": "shortest"}
    assert lazy.settings["model.roi_heads.box_head.input_shape.channels"] == 256


def test_lines_become_steps_and_epochs(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path))
    record = read_output(theirs)
    assert [row["step"] for row in record.metrics] == [20, 40, 60, 80, 100]
    assert [row["epoch"] for row in record.metrics] == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert record.metrics[0]["losses"] == {"class": 2 / 19, "box": 1 / 19}
    assert [(row["step"], row["epoch"]) for row in record.evaluations] == [(50, 1.0), (100, 2.0)]
    assert (record.last, record.best) == (100, 100)
    assert record.logged(50) == pytest.approx((record.logged(100) or 0) / 2)


def test_what_was_done_twice_after_a_resume_counts_once(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path))
    lines = [json.loads(line) for line in (theirs / "metrics.json").read_text().splitlines()]
    again = [{**line, "time": 1.0} for line in lines if line["iteration"] >= 59]
    write_metrics(theirs, [*[line for line in lines if line["iteration"] < 90], *again])
    record = read_output(theirs)
    assert [row["step"] for row in record.metrics] == [20, 40, 60, 80, 100]
    assert [row["step"] for row in record.evaluations] == [50, 100]
    assert measured.measured(record).hours == pytest.approx(2 * (40 * SECONDS + 60 * 1.0) / 3600)


@pytest.mark.parametrize("log", ["", LOG.format(world=2, images=200).replace("World size", "World")])
def test_what_no_log_says_is_unknown(tmp_path: Path, log: str) -> None:
    world = make_data(tmp_path / "data")
    theirs = make_output(tmp_path / "output", world, file_of(tmp_path), log=log)
    record = read_output(theirs)
    assert measured.measured(record).hours is None
    assert measured.measured(record).images_per_second == pytest.approx(BATCH / SECONDS)
    assert "world_size" not in record.provenance[0]
    assert [("epoch" in row) for row in record.metrics] == [bool(log)] * 5
    if not log:
        assert record.provenance[0]["gpus"] == ["unknown"]
