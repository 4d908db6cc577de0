"""`data speed` loads the batches of training with each number of processes; its own images are like COCO's."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detr_container.commands import cli
from detr_container.config.classification import FoldersConfig
from detr_container.datasets.check import check_dataset
from detr_container.measure.loading import SIZES, Speed, make_photographs
from detr_container.measure.timm_loading import timm_batches


def test_images_are_as_large_as_cocos(tmp_path: Path) -> None:
    make_photographs(tmp_path, len(SIZES))
    files = sorted((tmp_path / "train2017").iterdir(), key=lambda path: int(path.stem.split("-")[1]))
    bits, pixels = 0, 0
    for path, (height, width) in zip(files, SIZES, strict=True):
        with Image.open(path) as image:
            assert image.size == (width, height)
        bits, pixels = bits + 8 * path.stat().st_size, pixels + height * width
    # COCO's have 4.6.
    assert 4 < bits / pixels < 5.2
    pairs = {
        split: (tmp_path / f"{split}2017", tmp_path / "annotations" / f"instances_{split}2017.json")
        for split in ("train", "val")
    }
    report = check_dataset(pairs, 1)
    assert (report.errors, report.warnings) == (0, 0)
    assert [summary.images for summary in report.summaries] == [len(SIZES), 1]


@pytest.mark.slow
def test_speeds_are_measured_on_images_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    line = f"data speed debug --images 6 --workers 0 1 --seconds 0.2 --device cpu --output {output}"
    assert cli.main(line.split()) == 0
    alone, one = json.loads(output.read_text())["speeds"]
    assert (alone["workers"], alone["worker"]) == (0, 0)
    assert one["workers"] == 1
    assert min(alone["rate"], alone["first"], alone["here"], one["rate"], one["first"], one["worker"], one["here"]) > 0
    assert "CPU, ms" in capsys.readouterr().out


def test_what_the_cores_allow() -> None:
    assert Speed(2, 1.0, 100.0, worker=4.5, here=0.5).most(2) == 400
    # However many processes load, one has to take it all.
    assert Speed(14, 1.0, 100.0, worker=4.5, here=0.5).most(64) == 2000
    assert Speed(0, 1.0, 100.0, worker=0.0, here=5.0).most(4) == 800


def test_a_micro_batch_to_be_found_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["data", "speed", "smca_r50_50e", "--images", "6", "--train.micro-batch", "0", "--device", "cpu"]) == 2
    )
    assert "error: train.micro_batch=0: what fits is found when training starts" in capsys.readouterr().err


@pytest.mark.slow
def test_timms_loader_is_measured_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the same image folders and in turn; ours reads each image once an epoch then, as timm's does."""
    output = tmp_path / "speed.json"
    line = "data speed classify_demo --images 12 --against timm --rounds 3 --workers 0 1 --seconds 0.2 --device cpu"
    settings = f"--train.batch 4 --train.micro-batch 4 --data.size 32 --data.repeats 3 --output {output}"
    assert cli.main([*line.split(), *settings.split()]) == 0
    speeds = json.loads(output.read_text())["speeds"]
    assert [(each["name"], each["workers"]) for each in speeds] == [
        (name, workers) for workers in (0, 1) for name in ("ours", "timm's")
    ]
    for each in speeds:
        assert len(each["rates"]) == 3
        assert each["rate"] == sorted(each["rates"])[1]
        assert min(each["first"], each["here"], *each["rates"]) > 0
    printed = " ".join(capsys.readouterr().out.split())
    ratios = sorted(mine / other for mine, other in zip(speeds[2]["rates"], speeds[3]["rates"], strict=True))
    assert f"with 1 processes, images/s to those of timm's loader: {ratios[1]:.2f}" in printed


def test_only_image_folders_are_measured_against_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "speed", "smca_r50_50e", "--images", "6", "--against", "timm"]) == 2
    assert "is an experiment of detection: this is for classification alone" in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=r"train\.micro_batch=3: .* has 2 images, too few for a batch"):
        next(timm_batches(tmp_path, FoldersConfig(size=32), 3, 0))
