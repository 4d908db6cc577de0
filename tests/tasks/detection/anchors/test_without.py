"""Without detectron2 everything else works, and what needs it says in one line how to install it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from runs import tiny

from detr_container.base.optional import INSTALL
from detr_container.commands.cli import main
from detr_container.config.settings import validate
from detr_container.tasks.detection.build import build_detector, size_multiple

NO_DATA = ("--data.root", "None", "--data.make-shapes", "0", "0", "0")


@pytest.fixture
def _missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python does where a package is not installed."""
    monkeypatch.setitem(sys.modules, "detectron2", None)
    for name in [name for name in sys.modules if name.startswith(("detr_container.d2", "detectron2."))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("_missing")
@pytest.mark.parametrize(
    "words",
    [
        ["train", "retinanet_demo"],
        ["train", "debug", *NO_DATA, "--data.d2-dataset", "coco_2017"],
        ["d2", "train", "detr_r50_50e"],
        ["d2", "submit", "detr_r50_50e"],
        ["compare", "--heads", "retinanet", "--backbones", "resnet18", "--base", "retinanet_demo", "--dry-run"],
    ],
)
def test_a_command_that_needs_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert INSTALL in told
    assert [line for line in told.splitlines() if line.startswith("error:")] == told.splitlines()[-1:]


@pytest.mark.usefixtures("_missing")
def test_the_package_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match=r"detectron2 is not installed: .*git clone"):
        importlib.import_module("detr_container.d2")


@pytest.mark.usefixtures("_missing")
def test_the_rest_does_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tiny(tmp_path)
    assert validate(experiment) == []
    assert build_detector(experiment, 3, weights=False).size_multiple == size_multiple(experiment)
    assert main(["experiments"]) == 0
    assert "mask_rcnn_container_light_1x" in capsys.readouterr().out


def test_nothing_else_imports_it() -> None:
    """Whoever trains a DETR pays nothing for detectron2, installed or not."""
    script = (
        "import sys; from detr_container.config.experiments import named; "
        "from detr_container.tasks.detection import task, trials, evaluate, predict, trained, export; "
        "from detr_container.tasks.detection.build import build_detector; "
        "build_detector(named('debug').experiment, 3, weights=False); "
        "print([name for name in sys.modules if name.split('.')[0] in ('detectron2', 'fvcore', 'omegaconf')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
