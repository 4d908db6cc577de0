"""RetinaNet and Mask R-CNN trained by our engine: resumed to the bit, and the same however a step is divided."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anchored import KINDS, anchored, needs_detectron2
from runs import assert_same_run, final_state, train_in, train_job, two_ranks

from detr_container.base.files import read_jsonl
from detr_container.commands.cli import main
from detr_container.engine.run import Run, evaluation_of
from detr_container.tasks.detection.detections import Detections

needs_detectron2()


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run of each kind without a break; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert train_in(folder, anchored(root, request.param), images=True) == 0
    return request.param, folder


def test_a_stop_and_a_resume_change_nothing(trained: tuple[str, Path], root: Path, tmp_path: Path) -> None:
    kind, whole = trained
    folder = tmp_path / "run"
    for steps in (3, 0):
        assert train_in(folder, anchored(root, kind, train__max_steps=steps)) == 0
    assert_same_run(folder, whole)


def test_what_a_run_leaves(trained: tuple[str, Path]) -> None:
    kind, folder = trained
    losses = read_jsonl(Run(folder).metrics_path)[-1]["losses"]
    expected = {"class", "box"} | ({"proposal_class", "proposal_box", "mask"} if kind == "mask_rcnn" else set())
    assert set(losses) == expected
    assert all(np.isfinite(value) for value in losses.values())
    found = Detections.read(evaluation_of(folder, 2) / "detections.npz")
    assert (found.masks is not None) == (kind == "mask_rcnn")
    scores = json.loads((evaluation_of(folder, 2) / "scores.json").read_text())
    assert ("mask_ap" in scores) == (kind == "mask_rcnn")
    assert (folder / "predictions.png").is_file()


def test_retinanets_losses_do_not_depend_on_the_micro_batch(root: Path, tmp_path: Path) -> None:
    states = []
    for micro in (4, 2):
        folder = tmp_path / f"{micro}"
        settings: dict[str, Any] = {"train__micro_batch": micro, "train__max_steps": 3, "backbone__norm": "frozen"}
        assert train_in(folder, anchored(root, "retinanet", **settings, train__epochs=1)) == 0
        states.append(final_state(folder)["model"])
    assert states[0]["per_image"] != 50
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def assert_close(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The same weights to rounding, where Adam makes much of a gradient that is nothing but rounding."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        off = ~torch.isclose(b[name], value, atol=2e-5, rtol=1e-3)
        assert off.sum() <= max(2, 0.005 * off.numel()), f"{name}: {int(off.sum())} of {off.numel()} differ"


def test_two_ranks_equal_one_process_and_resume(root: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backbone__norm": "frozen", "train__epochs": 1, "train__micro_batch": 2}
    retinanet, masks = (anchored(root, kind, **settings) for kind in KINDS)
    part = anchored(root, "mask_rcnn", **settings, train__max_steps=2)
    jobs = [
        train_job(tmp_path / "retinanet", retinanet),
        train_job(tmp_path / "masks", masks),
        *(train_job(tmp_path / "broken", each) for each in (part, masks)),
    ]
    two_ranks(tmp_path, jobs)
    assert train_in(tmp_path / "one", retinanet) == 0
    assert_close(final_state(tmp_path / "one")["model"], final_state(tmp_path / "retinanet")["model"])
    # What Mask R-CNN learns from is drawn by each process, as dropout is.
    assert_same_run(tmp_path / "broken", tmp_path / "masks")
    found = Detections.read(evaluation_of(tmp_path / "masks", 1) / "detections.npz")
    assert found.masks is not None
    assert len(found.masks) == len(found.scores)


def test_commands_take_them(trained: tuple[str, Path], root: Path, tmp_path: Path) -> None:
    kind, folder = trained
    out = tmp_path / "evaluated"
    assert main(["evaluate", str(folder), "--output", str(out), "--device", "cpu"]) == 0
    kept, again = (json.loads((each / "scores.json").read_text()) for each in (evaluation_of(folder, 2), out))
    assert again["ap"] == kept["ap"]
    images = sorted((root / "val2017").iterdir())[:2]
    told = ["predict", str(folder), *map(str, images), "--output", str(tmp_path / "p"), "--threshold", "0.001"]
    assert main([*told, "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "p" / "predictions.json").read_text())
    records = [record for row in rows for record in row["detections"]]
    assert all(("segmentation" in record) == (kind == "mask_rcnn") for record in records)
    assert main([*told, "--maps"]) == 2


def test_attention_maps_are_refused_in_one_line(
    trained: tuple[str, Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, folder = trained
    image = next((root / "val2017").iterdir())
    assert main(["predict", str(folder), str(image), "--maps", "--device", "cpu"]) == 2
    assert f"{kind} has no queries" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_computes_the_same(kind: str, root: Path, tmp_path: Path) -> None:
    rows = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        settings: dict[str, Any] = {"device": device, "train__epochs": 1, "data__canvases": "off"}
        assert train_in(folder, anchored(root, kind, **settings, train__log_every=1)) == 0
        rows[device] = read_jsonl(Run(folder).metrics_path)
    first = [rows[device][0]["losses"] for device in rows]
    # What is learnt from is drawn by each device in its own way, and so differs where there is a choice.
    assert first[1] == pytest.approx(first[0], rel=0.05 if kind == "mask_rcnn" else 1e-3)
