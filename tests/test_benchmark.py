"""The benchmark command: every part is measured, and the counts are what they should be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detr_container.benchmark import PARTS, BenchmarkOptions, count_flops, measure
from detr_container.build import build_detector
from detr_container.cli import main
from detr_container.experiments import named


def test_made_pictures_measure_every_part_but_loading() -> None:
    debug = named("debug").experiment
    figures = measure(BenchmarkOptions(debug, size=(64, 96), steps=2, warmup=1, classes=3))
    assert list(figures["seconds"]) == [part for part in PARTS if part != "data"]
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    assert figures["images_per_second"] == pytest.approx(2 / figures["step_seconds"])
    assert 0.05 < figures["peak_memory_gib"] < 64
    model = build_detector(debug, 3)
    assert figures["parameters"]["total"] == sum(p.numel() for p in model.parameters())


def test_own_pictures_measure_loading_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = tmp_path / "figures.json"
    options = ["--source", "data", "--images", "4", "--steps", "1", "--warmup", "1", "--output", str(written)]
    assert main(["benchmark", "debug", "--data.make-shapes", "8", "4", "64", *options]) == 0
    figures = json.loads(written.read_text())
    assert list(figures["seconds"]) == list(PARTS)
    assert figures["images"] == 4


def test_flops_are_those_of_the_layers() -> None:
    """Of a ResNet-50 they are 4.09 billion multiply-adds at 224 pixels without its classifier (He et al. 2016)."""
    model = build_detector(named("detr_r50_50e").experiment, 3, weights=False)
    small = replace(named("detr_r50_50e").experiment.head, encoder_layers=1, decoder_layers=1)
    shallow = build_detector(replace(named("detr_r50_50e").experiment, head=small), 3, weights=False)
    with torch.no_grad():
        full, less = count_flops(model, (224, 224)), count_flops(shallow, (224, 224))
    cells, width, queries, hidden = 49, 256, 100, 2048
    encoder = cells * (4 * width**2 + 2 * cells * width + 2 * width * hidden)
    decoder = queries * (4 * width**2 + 2 * queries * width + 2 * width * hidden)
    decoder += queries * (2 * width**2 + 2 * cells * width) + cells * 2 * width**2
    # Every layer but one more of each, and the heads are applied to every decoder layer.
    heads = queries * (width * 4 + 2 * width**2 + width * 4)
    assert full - less == pytest.approx(2 * 5 * (encoder + decoder + heads) / 1e9, rel=1e-6)
    rest = encoder + decoder + heads + cells * 2048 * width
    assert less - 2 * rest / 1e9 == pytest.approx(2 * 4.09, rel=0.01)
