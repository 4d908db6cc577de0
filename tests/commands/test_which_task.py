"""Of which task a model is, from a command's arguments alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detr_container.base.files import write_json
from detr_container.commands.which_task import of_model, task_of
from detr_container.config.experiments import named
from detr_container.config.settings import to_dict

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run of either task, each with a checkpoint that nobody can read."""
    for name, experiment in (("detector", "debug"), ("classifier", "classify_demo")):
        write_json(tmp_path / name / "config.json", to_dict(named(experiment).experiment))
        (tmp_path / name / "checkpoints").mkdir()
        (tmp_path / name / "checkpoints" / "checkpoint-00000001.pt").write_bytes(b"PK\x03\x04 and no more")
    return tmp_path


def published(name: str, path: Path, before: str = "") -> Path:
    """A file of zeros under the names of a published model; they alone decide."""
    shapes = json.loads((GOLDEN / f"{name}_keys.json").read_text())
    torch.save({"model": {f"{before}{key}": torch.zeros(len(shape) * (1,)) for key, shape in shapes.items()}}, path)
    return path


def test_runs_and_their_checkpoints(runs: Path) -> None:
    """The run says it, without its checkpoint being read; files beside nothing say it themselves."""
    assert of_model(str(runs / "classifier")) == "classification"
    assert of_model(str(runs / "detector")) == "detection"
    assert of_model(str(runs / "classifier/checkpoints/checkpoint-00000001.pt")) == "classification"
    checkpoint = {"experiment": to_dict(named("classify_demo").experiment), "model": {"x.weight": torch.zeros(1)}}
    torch.save(checkpoint, runs / "moved.pt")
    assert of_model(str(runs / "moved.pt")) == "classification"
    # Before there was a second task, no experiment said which it was of.
    torch.save({"experiment": {"seed": 0}, "model": {"x.weight": torch.zeros(1)}}, runs / "old.pt")
    assert of_model(str(runs / "old.pt")) == "detection"


@pytest.mark.parametrize(
    ("name", "task"), [("detr_r50", "detection"), ("smca_r50", "detection"), ("container_light", "classification")]
)
def test_published_files(name: str, task: str, tmp_path: Path) -> None:
    assert of_model(str(published(name, tmp_path / "plain.pth"))) == task
    assert of_model(str(published(name, tmp_path / "wrapped.pth", "module."))) == task


def test_other_files(runs: Path) -> None:
    """What says nothing is left to whoever opens it: a damaged file, a backbone alone, an image, nothing at all."""
    save_file({"fc.weight": torch.zeros(3, 2), "conv1.weight": torch.zeros(2)}, runs / "torchvision.safetensors")
    assert of_model(str(runs / "torchvision.safetensors")) == "classification"
    save_file({"conv1.weight": torch.zeros(2)}, runs / "backbone.safetensors")
    (runs / "damaged.pth").write_bytes(b"PK\x03\x04 and no more")
    (runs / "image.jpg").write_bytes(b"\xff\xd8")
    for nothing in ("backbone.safetensors", "damaged.pth", "image.jpg", "absent.pt", "."):
        assert of_model(str(runs / nothing)) == ""
    assert of_model("timm/whatever") == "classification"


def test_arguments(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert task_of([]) == ("detection", [])
    assert task_of(["--help"]) == ("detection", ["--help"])
    assert task_of(["--task", "classification", "--help"]) == ("classification", ["--help"])
    assert task_of(["detector", "--task=classification"]) == ("classification", ["detector"])
    assert task_of(["classifier", "--output", "detector"])[0] == "classification"
    # What stands behind an option is a model only where nothing else is.
    assert task_of(["--output", "detector", "classifier"])[0] == "classification"
    assert task_of(["--no-sheet", "classifier"])[0] == "classification"
    assert task_of(["absent.pth", "--backbone", "timm/resnet18"])[0] == "classification"
    assert task_of(["absent.pth", "--backbone=resnet18"])[0] == "classification"
    assert task_of(["absent.pth", "--experiment", "deit_s_in1k"])[0] == "classification"
    assert task_of(["absent.pth", "--experiment", "detr_r50_50e"])[0] == "detection"
    for wrong, hint in (("classificaton", "did you mean classification?"), ("x", "it is one of detection, classif")):
        with pytest.raises(ValueError, match=f"--task {wrong}: there is no such task, {hint}"):
            task_of(["classifier", "--task", wrong])
    with pytest.raises(ValueError, match=r"--task \(nothing\)"):
        task_of(["classifier", "--task"])


def test_a_run_of_another_version_is_still_of_its_task(tmp_path: Path) -> None:
    config = {"task": "classification", "a_setting_that_is_gone": 1}
    write_json(tmp_path / "config.json", config)
    assert of_model(str(tmp_path)) == "classification"
    write_json(tmp_path / "config.json", config | {"task": "nothing that is known"})
    assert of_model(str(tmp_path)) == ""
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert of_model(str(tmp_path)) == ""
