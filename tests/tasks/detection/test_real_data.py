"""Real images, where they are at hand: blood cells, and COCO with crowds, a grey image and empty ones."""

from dataclasses import replace
from pathlib import Path

import pytest
from runs import one_thread

from detr_container.commands.cli import main
from detr_container.config.detection import DataConfig
from detr_container.config.experiments import named
from detr_container.engine.run import Run
from detr_container.engine.train import train
from detr_container.tasks.detection.detections import NAME, Detections

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(("name", "errors", "warnings"), [("bccd", 0, 0), ("coco_permissive", 0, 46)])
def test_the_checker_reads_them(
    shared_data: Path, name: str, errors: int, warnings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(shared_data / name)]) == 0
    assert f"{errors} errors, {warnings} warnings" in capsys.readouterr().out


def test_coco_trains_resumes_evaluates_and_predicts(shared_data: Path, tmp_path: Path) -> None:
    """The published transforms and every kind of annotation, on a small model: a whole epoch, in two parts."""
    base = named("debug").experiment
    data = DataConfig(
        root=shared_data / "coco_permissive", scales=(96, 128), max_size=192, crop_resize=(128, 160),
        crop_range=(64, 96), eval_size=96, eval_batch=3, workers=0,
    )  # fmt: skip
    head = replace(base.head, queries=60)
    steps = replace(base.train, batch=6, micro_batch=3, epochs=1, lr_drop=1, max_steps=4)
    experiment = replace(base, data=data, head=head, train=steps)
    run = Run(tmp_path / "run")
    with one_thread():
        assert train(experiment, run.folder) == 0
        assert run.evaluations() == []
        assert train(replace(experiment, train=replace(steps, max_steps=0)), run.folder) == 0
    (evaluation,) = run.evaluations()
    assert evaluation["images"] == 45
    assert evaluation["step"] == 54 // 6
    detections = Detections.read(run.folder / "detections" / "epoch-001" / NAME)
    assert len(detections.image_ids) == 45
    assert len(detections.scores) == 45 * 60
    image = shared_data / "coco_permissive" / "val2017"
    out = tmp_path / "out"
    assert main(["predict", str(run.folder), str(image), "--output", str(out), "--threshold", "0.9"]) == 0
    assert len(list(out.glob("*.jpg"))) == 45
