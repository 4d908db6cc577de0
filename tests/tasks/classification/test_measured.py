"""`preflight` and `benchmark` of a classifier, whole, as a person types them."""

import json
import re
from pathlib import Path

import pytest
from runs import one_thread

from detr_container.commands import cli
from detr_container.config.classification import classification
from detr_container.config.experiments import named
from detr_container.engine.classifiers import build_classifier
from detr_container.measure import preflight

CHECKS = {
    "settings": r"classify_debug: batch 8 = 1 x 2 x 4 .*, 2 epochs, 0 warnings",
    "data": r"train read 24 of 24 images, val read 20 of 20 images; 10 classes; no errors, 10 warnings",
    "memory": r"4 x 32 x 32 pixels: 0\.\d+ GiB of \d+\.\d\d GiB",
    "step": r"[\d.]+ s \(median of 3 after 2\), [\d.]+ images/s, \d+ % of it waiting for data",
    "learning": r"loss [\d.]+ -> [\d.]+ in 20 steps on one batch",
    "saving": r"resumed after 2 of 4 steps, the run is the same bit for bit; .* GiB free",
    "evaluation": r"8 images, [\d.]+ images/s; top-1 [\d.]+, before training",
    "time": r"about \d+s \(6 steps \d+s, 2 evaluations \d+s, 2 checkpoints \d+s\): .*",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_preflight(shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(preflight, "STEPS", 3)
    with one_thread():
        assert cli.main(["preflight", "classify_debug", "--data.root", str(shapes), "--device", "cpu"]) == 0
    found = dict(re.findall(r"^ok +(\w+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert list(found) == list(CHECKS)
    for name, pattern in CHECKS.items():
        assert re.fullmatch(pattern, found[name]), found[name]
    before, after = map(float, re.findall(r"[\d.]+(?= ->)|(?<=-> )[\d.]+", found["learning"]))
    assert after < before
    assert list(Path().iterdir()) == []


def test_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    line = "benchmark classify_debug --sizes 32x32 --seconds 0 --rounds 2 --classes 7 --output found.json --device cpu"
    assert cli.main(line.split()) == 0
    shown = capsys.readouterr().out
    (measured,) = json.loads(Path("found.json").read_text())["experiments"].values()
    figures = {name: each["value"] for name, each in measured["figures"].items()}
    assert measured["failure"] is None
    backbone = classification(named("classify_debug").experiment).backbone
    model = build_classifier(backbone, 7, 32)
    assert figures["parameters/total"] == sum(each.numel() for each in model.parameters())
    # Of 64 features for each of 7 classes; the norm before them has no products.
    assert figures["gflops/32x32/head"] == pytest.approx(2 * 64 * 7 / 1e9)
    assert figures["training/2/values"] == 2 * 3 * 32 * 32
    for name in ("forward/32x32/1/total", "training/2/step", "training/2/images_per_second", "memory/training/2"):
        assert figures[name] > 0
    assert "images/s" in shown
