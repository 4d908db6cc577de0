"""Real images: a tiny CONTAINER-LIGHT learns to tell blood cells apart from 743 crops, from random weights."""

from pathlib import Path

import pytest
from runs import one_thread

from detr_container.commands.cli import main
from detr_container.engine.run import Run

IMAGES = 270


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.parametrize(("options", "least"), [((), 0.97), (("--data.grey",), 0.94)], ids=["colour", "grey"])
def test_the_small_recipe_tells_cells_apart(
    shared_data: Path, tmp_path: Path, options: tuple[str, ...], least: float
) -> None:
    data = ["--data.root", str(shared_data / "cells_imagefolder"), "--device", "cpu"]
    with one_thread():
        assert main(["train", "classify_small", "--runs", str(tmp_path), "--run", "cells", *data, *options]) == 0
    last = Run(tmp_path / "cells").evaluations()[-1]
    assert (last["epoch"], last["images"]) == (30, IMAGES)
    assert last["top1"] >= least
