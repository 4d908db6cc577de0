"""The demo of classification: drawn shapes, told apart from random weights."""

from pathlib import Path

import pytest
from runs import one_thread

from detr_container.commands.cli import main
from detr_container.engine.run import Run


@pytest.mark.long
def test_the_demo_tells_its_shapes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes its own images; a minute of a core."""
    monkeypatch.chdir(tmp_path)
    with one_thread():
        assert main(["train", "classify_demo", "--device", "cpu"]) == 0
    last = Run(Path("runs/classify_demo")).evaluations()[-1]
    assert (last["epoch"], last["images"]) == (15, 400)
    assert last["top1"] >= 0.95
