"""Is the comparison fair? Whatever differs beyond backbone and seed is a warning at the top of the page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import EPOCHS, experiment_of, make_data, make_run, read_json

from detr_container.base.files import read_jsonl, write_json, write_jsonl
from detr_container.compare import ranking
from detr_container.compare.analysis import analyse
from detr_container.compare.fairness import Difference, of_strides
from detr_container.compare.options import PLAN, ReportOptions
from detr_container.compare.report import write_report

BACKBONES = ("resnet18", "container_light_tiny")
SETTINGS: dict[str, tuple[str, Any]] = {
    "backbone.norm": ("norm policy", "frozen"),
    "backbone.weights": ("pretraining", "elsewhere.pth"),
    "backbone.frozen_stages": ("frozen stages", 1),
    "backbone.stage": ("backbone settings", -2),
    "init": ("pretraining", "detector.pth"),
    "data.eval_size": ("input size", 96),
    "data.max_size": ("input size", 640),
    "data.scales": ("input size", [96]),
    "data.augment": ("augmentation", "none"),
    "data.eval_batch": ("evaluation batch", 3),
    "data.canvas": ("padding", 320),
    "data.canvases": ("padding", "on"),
    "data.canvas_multiple": ("padding", 64),
    "data.apply_orientation": ("orientation of images", True),
    "train.epochs": ("schedule", EPOCHS - 1),
    "train.lr": ("schedule", 7e-4),
    "train.batch": ("schedule", 6),
    "train.precision": ("precision", "bf16"),
    "train.micro_batch": ("images per forward pass", 1),
    "train.eval_every": ("chances to be the best epoch", 3),
    "head.queries": ("head", 50),
    "loss.l1_weight": ("loss", 4.0),
}
FACTS: dict[str, tuple[str, dict[str, Any]]] = {
    "commit": ("code version", {"git": {"commit": 40 * "f", "dirty": False}}),
    "changes that were not committed": ("code version", {"git": {"commit": 40 * "0", "dirty": True}}),
    "torch": ("code version", {"packages": {"torch": "2.11.0", "torchvision": "0.29.1", "timm": "1.0.31"}}),
    "torchvision": ("code version", {"packages": {"torch": "2.14.1", "torchvision": "0.26.0", "timm": "1.0.31"}}),
    "device": ("device", {"gpus": ["a graphics card"]}),
    "processes": ("device", {"world_size": 8}),
    "found to fit": ("images per forward pass", {"micro_batch": 8}),
    "data": ("data version", {"data": None}),
    "canvases": ("padding", {"canvases": {"training": {"sizes": [[64, 96], [96, 96]], "waste": 0.05}}}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backbones under one head with two seeds each."""
    home = tmp_path_factory.mktemp("whole")
    world = make_data(home / "data", count=4)
    for number, backbone in enumerate(BACKBONES):
        for seed in (0, 1):
            experiment = experiment_of(home / "data", "smca", backbone, seed)
            make_run(home / "runs" / f"{backbone}-seed{seed}", experiment, world, 0.5, draw=2 * number + seed)
    return home / "runs"


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "runs"))


def of(home: Path, backbone: str) -> list[Path]:
    """The runs of one backbone."""
    return sorted(home.glob(f"{backbone}-*"))


def test_maps_of_other_strides_belong_to_heads_that_read_a_pyramid() -> None:
    one, half, pyramid = (32,), (16,), (8, 16, 32, 64, 128)
    labels = ("DETR, a", "DETR, b", "RetinaNet, a", "RetinaNet, b")
    heads = {label: label.split(", ")[0] for label in labels[2:]}

    def of(*strides: tuple[int, ...] | None) -> list[Difference]:
        return of_strides(dict(zip(labels, strides, strict=False)), heads)

    assert of(one, one) == of(one, None) == []
    (found,) = of(one, one, pyramid, pyramid)
    assert found.expected
    assert found.values == dict.fromkeys(labels[:2], "32 pixels") | dict.fromkeys(
        labels[2:], "8, 16, 32, 64, 128 pixels"
    )
    # A head that reads one map, or the same pyramid on two backbones, is told of as before.
    assert not of(one, half)[0].expected
    assert not of(one, half, pyramid, pyramid)[0].expected
    assert not of(one, one, pyramid, pyramid[1:])[0].expected


def differences(home: Path) -> tuple[Difference, ...]:
    found = analyse(sorted(home.iterdir()), count=2)
    warned = [str(one) for one in found.differences if not one.expected]
    assert ranking.warnings(found)[: len(warned)] == warned
    return found.differences


def change(runs: list[Path], name: str, value: Any) -> None:
    """Another value of one setting in all of them."""
    for run in runs:
        values = read_json(run / "config.json")
        *sections, last = name.split(".")
        place = values[sections[0]] if sections else values
        assert place[last] != value
        place[last] = value
        write_json(run / "config.json", values)


def test_backbone_and_seed_are_what_is_compared(home: Path) -> None:
    assert differences(home) == ()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_differs_is_a_warning(name: str, home: Path) -> None:
    topic, value = SETTINGS[name]
    change(of(home, "resnet18"), name, value)
    found = differences(home)
    assert [(one.topic, one.name, one.expected) for one in found] == [(topic, name, False)]
    assert set(found[0].values) == {"SMCA-DETR, resnet18", "SMCA-DETR, container_light_tiny"}
    assert str(found[0]).startswith(f"{topic}: {name} differs: ")


@pytest.mark.parametrize("seeds", [1, 2], ids=["of one run", "of all runs of a backbone"])
@pytest.mark.parametrize("name", FACTS)
def test_code_devices_and_data_that_differ_are_warnings(name: str, seeds: int, home: Path) -> None:
    topic, values = FACTS[name]
    for run in of(home, "resnet18")[:seeds]:
        write_jsonl(run / "provenance.jsonl", [{**line, **values} for line in read_jsonl(run / "provenance.jsonl")])
    found = differences(home)
    assert {one.topic for one in found} == {topic}
    assert not any(one.expected for one in found)


def test_code_that_changed_alike_under_all_backbones_is_a_warning_too(home: Path) -> None:
    """Each backbone has a seed of either commit: which seed is which may decide."""
    for backbone in BACKBONES:
        run = of(home, backbone)[0]
        lines = [{**line, "git": {"commit": 40 * "f", "dirty": False}} for line in read_jsonl(run / "provenance.jsonl")]
        write_jsonl(run / "provenance.jsonl", lines)
    (found,) = differences(home)
    assert found.name == "commit"
    assert set(found.values.values()) == {"0123456789ab, ffffffffffff"}


@pytest.mark.parametrize("backbones", [BACKBONES[:1], BACKBONES], ids=["one backbone", "all"])
def test_evaluations_that_were_made_otherwise_are_warnings(backbones: tuple[str, ...], home: Path) -> None:
    """What an evaluation noted counts, whatever the settings are now."""
    for backbone in backbones:
        for scores in of(home, backbone)[0].glob("detections/*/scores.json"):
            content = read_json(scores)
            content["evaluated_with"]["eval_batch"] = 7
            write_json(scores, content)
    (found,) = differences(home)
    assert (found.topic, found.name, found.expected) == ("evaluation", "eval_batch", False)


def test_a_head_and_its_loss_are_listed_and_are_no_warning(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "runs")
    for run in list((tmp_path / "runs").iterdir()):
        other = Path(shutil.copytree(run, tmp_path / "runs" / f"detr-{run.name}"))
        change([other], "head.kind", "detr")
        change([other], "loss.classification", "softmax")
    found = differences(tmp_path / "runs")
    assert [(one.name, one.expected) for one in found] == [("head.kind", True), ("loss.classification", True)]
    change([run for run in (tmp_path / "runs").iterdir() if run.name.startswith("detr-resnet")], "loss.l1_weight", 1.0)
    assert [one.name for one in differences(tmp_path / "runs") if not one.expected] == ["loss.l1_weight"]


@pytest.mark.parametrize(
    ("theirs", "origin"),
    [
        ("timm/convnext_tiny", "imagenet (timm's in12k_ft_in1k)"),
        ("timm/convnext_tiny.fb_in1k", "imagenet (timm's fb_in1k)"),
        ("resnet50", None),
    ],
)
def test_imagenet_weights_of_another_kind_are_a_warning(theirs: str, origin: str | None, home: Path) -> None:
    """ "imagenet" in both settings, but not the same pretraining."""
    for backbone, name in zip(BACKBONES, ("resnet18", theirs), strict=True):
        change(of(home, backbone), "backbone.weights", "imagenet")
        if backbone != name:
            change(of(home, backbone), "backbone.name", name)
    found = differences(home)
    if origin is None:
        assert found == ()
    else:
        (one,) = found
        assert one.topic == "pretraining"
        assert list(one.values.values()) == [origin, "imagenet (torchvision's IMAGENET1K_V1)"]


def test_warnings_are_at_the_top_of_the_page(home: Path, tmp_path: Path) -> None:
    change(of(home, "resnet18"), "train.precision", "bf16")
    page = write_report(ReportOptions((str(home),), output=tmp_path / "report", resamples=2)).read_text()
    top, _, rest = page.partition("<main>")
    message = "precision: train.precision differs: fp32 (SMCA-DETR, container_light_tiny); bf16 (SMCA-DETR, resnet18)"
    assert message in top.replace("<wbr>", "")
    assert "WARNING" in rest


def test_feature_maps_of_another_stride_are_a_warning(home: Path, tmp_path: Path) -> None:
    """CONTAINER-LIGHT's tiny version ends at stride 16, a ResNet at 32 unless one stride is asked for."""
    message = (
        "feature map: stride differs: 16 pixels (SMCA-DETR, container_light_tiny); 32 pixels (SMCA-DETR, resnet18)"
    )
    for number, warned in enumerate((True, False)):
        output = tmp_path / str(number)
        write_report(ReportOptions((str(home),), output=output, resamples=2))
        assert read_json(output / "report.json")["warnings"] == ([message] if warned else [])
        if warned:
            for backbone in BACKBONES:
                change(of(home, backbone), "backbone.stride", 16)


def test_the_page_shows_how_to_make_it_again(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "a report"
    options = ReportOptions((str(home / "*-seed?"),), output=output, epoch=2, resamples=3, title="Two seeds")
    first = write_report(options).read_bytes()
    code = next(one["code"] for one in read_json(output / "report.json")["sections"] if one["code"])
    command = f"detr-container report '{home}/*-seed?' --output '{output}' --epoch 2 --resamples 3 --title 'Two seeds'"
    assert code == command
    # A folder's plan names what trained its runs.
    write_json(home / PLAN, {"command": "detr-container compare --name two-seeds", "members": None})
    write_report(ReportOptions((str(home),), output=tmp_path / "another", resamples=3))
    code = next(one["code"] for one in read_json(tmp_path / "another" / "report.json")["sections"] if one["code"])
    assert code.splitlines() == [
        "detr-container compare --name two-seeds",
        f"detr-container report {home} --output {tmp_path / 'another'} --resamples 3",
    ]
    assert first == write_report(options).read_bytes()
