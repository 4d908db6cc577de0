"""The training loop: what is not finite stops it and says where, bf16 trains, and what it writes is all there."""

import copy
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same, final_state, one_thread, tiny, train_in

from detr_container.base.files import read_jsonl
from detr_container.base.interrupt import StopRequest
from detr_container.commands import cli
from detr_container.config.detection import DetectionExperiment
from detr_container.engine.precision import described
from detr_container.engine.run import Run
from detr_container.engine.same import metrics
from detr_container.engine.session import open_session
from detr_container.engine.trainer import Trainer
from detr_container.tasks.detection.build import open_data
from detr_container.tasks.detection.task import DetectionTask
from detr_container.tasks.detection.together import data_on_all


@pytest.fixture
def saved(root: Path, tmp_path: Path) -> Path:
    """A run with a checkpoint of step 3."""
    assert train_in(tmp_path / "run", tiny(root, train__max_steps=3)) == 0
    return tmp_path / "run"


@pytest.fixture
def trainer(root: Path, tmp_path: Path) -> Iterator[Trainer]:
    """A run at step 0, not yet on its way."""
    experiment = tiny(root, train__ema_decay=0.9)
    with one_thread(), open_session("cpu") as session, StopRequest() as stop:
        yield Trainer(
            DetectionTask(experiment, open_data(experiment)), experiment, Run(tmp_path / "run"), session, stop
        )


def poison(folder: Path, name: str, value: float) -> None:
    """Damage one weight in the newest checkpoint of a run, as no training of ours would."""
    path = Run(folder).checkpoints().paths()[0]
    state = torch.load(path, weights_only=True)
    state["model"][name].flatten()[0] = value
    torch.save(state, path)


def image_ids(root: Path) -> set[int]:
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    return {image["id"] for image in content["images"]}


def test_how_a_task_computes_is_logged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(DetectionTask, "prepare", lambda _, device: f"matching on the {device}")
    with caplog.at_level("INFO"):
        assert train_in(tmp_path / "run", tiny(root, train__max_steps=1)) == 0
    assert caplog.messages.count("matching on the cpu") == 1


def test_a_weight_that_is_not_finite(saved: Path, root: Path) -> None:
    wrong = "decoder.layers.1.ffn.linear1.weight"
    poison(saved, wrong, math.nan)
    with pytest.raises(FloatingPointError) as caught:
        train_in(saved, tiny(root))
    message = str(caught.value)
    assert "NaN or Inf in what decoder layer 1 predicts for image" in message
    named = re.search(r"for image (\d+) at step 3", message)
    assert named is not None
    assert int(named[1]) in image_ids(root)
    assert f"first parameter that is not finite: {wrong};" in message
    assert re.search(r"learning rates: head 0\.000\d+, backbone 0\.000\d+; last gradient norm", message)
    assert f"the last good checkpoint is {saved / 'checkpoints' / 'checkpoint-00000003.pt'}" in message


def test_a_learning_rate_that_is_too_high(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line: the weights stay finite and what they predict does not."""
    options = ["--data.root", str(root), "--data.make-shapes", "0", "0", "0", "--device", "cpu"]
    options += ["--runs", str(tmp_path), "--train.clip", "0"]
    with one_thread():
        assert cli.main(["train", "debug", *options, "--train.max-steps", "1"]) == 0
        before = copy.deepcopy(final_state(tmp_path / "debug"))
        assert cli.main(["train", "debug", *options, "--train.lr", "1e30"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: NaN or Inf in what decoder layer 0 predicts for image ")
    assert re.search(
        r"all parameters are finite; learning rates: head \d[.\d]*e\+29, backbone 0\.000\d+; last", message
    )
    assert re.search(r"last gradient norm \d", message)
    assert "checkpoint-00000001.pt" in message
    assert_same(final_state(tmp_path / "debug"), before)


def test_boxes_of_another_convention_are_doubted_before_the_first_step(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(root, tmp_path / "data")
    for split, corners in (("train", False), ("val", True)):
        path = tmp_path / "data" / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        for each in content["annotations"]:
            x, y, w, h = each["bbox"]
            each["bbox"] = [x, y, x + w, y + h] if corners else [side / 128 for side in each["bbox"]]
        path.write_text(json.dumps(content))
    with open_session("cpu") as session:
        data_on_all(session, tiny(root))
        assert not caplog.records
        data_on_all(session, tiny(tmp_path / "data"))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("annotations/instances_train2017.json: all ")
    assert "boxes lie within one pixel" in messages[0]
    assert messages[1].startswith("annotations/instances_val2017.json: ")
    assert "as (left, top, right, bottom)" in messages[1]


def test_a_weight_that_only_the_gradient_feels(saved: Path, root: Path) -> None:
    """Where ReLU hides an infinite product, the predictions are finite and the gradient is not."""
    poison(saved, "decoder.layers.1.ffn.linear1.weight", math.inf)
    with pytest.raises(FloatingPointError) as caught:
        train_in(saved, tiny(root))
    assert "NaN or Inf in " in str(caught.value)
    assert "first parameter that is not finite: decoder.layers.1.ffn.linear1.weight;" in str(caught.value)


@pytest.mark.parametrize("last_step", [False, True])
def test_a_gradient_that_is_not_finite(last_step: bool, trainer: Trainer) -> None:
    """Noticed one step later without an extra synchronisation, or before the checkpoint that would follow."""
    wrong = "decoder.layers.0.ffn.linear2.weight"
    if last_step:
        trainer.total = 3
    weights: dict[str, Any] = {}

    def spoil(gradient: torch.Tensor) -> torch.Tensor | None:
        if trainer.step != 2:
            return None
        weights.setdefault("model", {k: v.clone() for k, v in trainer.model.state_dict().items()})
        return gradient * math.nan

    trainer.model.get_parameter(wrong).register_hook(spoil)
    with pytest.raises(FloatingPointError) as caught:
        trainer.run_to_end()
    message = str(caught.value)
    total = len(trainer.steps.names)
    assert f"NaN or Inf in the gradient at step 2, first in parameter {wrong} (1 of {total} parameters)" in message
    listed = re.search(r"on images ([\d, ]+);", message)
    assert listed is not None
    assert len(set(map(int, listed[1].split(", ")))) == 4
    assert "the update was not made; all parameters are finite; learning rates: head" in message
    assert "last gradient norm nan; no checkpoint was written yet" in message
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, weights["model"][name]), name
    assert trainer.checkpoints.paths() == []


@pytest.mark.parametrize("kind", ["smca", "detr"])
def test_bf16_trains(kind: str, root: Path, tmp_path: Path) -> None:
    softmax = {"head__kind": "detr", "loss__classification": "softmax"} if kind == "detr" else {}
    half = tiny(root, **softmax, train__precision="bf16")
    assert train_in(tmp_path / "half", half) == 0
    assert train_in(tmp_path / "full", tiny(root, **softmax)) == 0
    state = final_state(tmp_path / "half")
    (start,) = read_jsonl(tmp_path / "half" / "provenance.jsonl")
    assert start["arithmetic"] == described("bf16", torch.device("cpu"), DetectionExperiment.in_float32)
    assert all(value.dtype == torch.float32 for value in state["model"].values() if value.is_floating_point())
    left, right = metrics(tmp_path / "half"), metrics(tmp_path / "full")
    assert [row["loss"] for row in left] != [row["loss"] for row in right]
    assert [row["loss"] for row in left] == pytest.approx([row["loss"] for row in right], rel=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_server_of_loader_processes_starts_before_the_data_are_read(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("detr_container.engine.train.worker_context", started.append)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match="instances_train2017"):
        train_in(tmp_path / "run", tiny(tmp_path, data__workers=workers))
    assert len(started) == bool(workers)


def test_what_a_run_leaves(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, tiny(root), images=True) == 0
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json",
        "difference.json",
        "classes.json",
        "provenance.jsonl",
        "metrics.jsonl",
        "evaluations.jsonl",
        "tensorboard",
        "checkpoints",
        "detections",
        "curves.png",
        "predictions.png",
    }
    classes = json.loads((run / "classes.json").read_text())
    assert [entry["id"] for entry in classes] == [1, 2, 4, 5, 9, 13]
    assert final_state(run)["classes"] == [[entry["id"], entry["name"]] for entry in classes]
    assert [path.name for path in Run(run).checkpoints().paths()] == [
        "checkpoint-00000008.pt",
        "checkpoint-00000004.pt",
    ]
    for row in read_jsonl(run / "metrics.jsonl"):
        assert row["images_per_second"] > 0
        assert 0.1 < row["memory_gib"] < 100
        assert set(row["losses"]) == {"class", "l1", "giou"}


def test_metrics_are_means_of_every_step(root: Path, tmp_path: Path) -> None:
    """A line for four steps is the mean of four lines, also where an epoch's end cuts it short."""
    common = {"train__eval_every": 0, "train__epochs": 2}
    assert train_in(tmp_path / "each", tiny(root, **common, train__log_every=1)) == 0
    assert train_in(tmp_path / "three", tiny(root, **common, train__log_every=3)) == 0
    each = {row["step"]: row for row in metrics(tmp_path / "each")}
    rows = metrics(tmp_path / "three")
    assert [row["step"] for row in rows] == [3, 4, 6, 8]
    spans = {3: [1, 2, 3], 4: [4], 6: [5, 6], 8: [7, 8]}
    for row in rows:
        parts = [each[step] for step in spans[row["step"]]]
        for name in ("loss", "grad_norm", "class_error"):
            assert row[name] == pytest.approx(sum(part[name] for part in parts) / len(parts), rel=1e-5)
        assert row["lr"] == parts[-1]["lr"]


def test_the_loss_is_the_weighted_sum_of_its_terms(root: Path, tmp_path: Path) -> None:
    settings = {"loss__auxiliary": False, "train__log_every": 1, "train__eval_every": 0, "train__epochs": 1}
    weights = {"loss__class_weight": 3.0, "loss__l1_weight": 5.0, "loss__giou_weight": 2.0}
    assert train_in(tmp_path / "run", tiny(root, **settings, **weights)) == 0
    for row in metrics(tmp_path / "run"):
        terms = row["losses"]
        assert row["loss"] == pytest.approx(3 * terms["class"] + 5 * terms["l1"] + 2 * terms["giou"], rel=1e-5)


def test_averaged_weights_are_evaluated(root: Path, tmp_path: Path) -> None:
    """With a decay, the average follows the weights behind; it is what `evaluate` and `predict` use."""
    from detr_container.tasks.detection.trained import open_trained

    assert train_in(tmp_path / "run", tiny(root, train__ema_decay=0.5, train__eval_every=0)) == 0
    state = final_state(tmp_path / "run")
    assert state["ema_updates"] == 8
    opened = open_trained(tmp_path / "run", torch.device("cpu")).model.state_dict()
    assert_same(dict(opened), dict(state["ema"]))
    assert not torch.equal(opened["query_embed.weight"], state["model"]["query_embed.weight"])


def test_ema_is_the_recursion(root: Path, tmp_path: Path) -> None:
    """Against the recursion over the weights after every step; the first update copies."""
    folder, name = tmp_path / "run", "query_embed.weight"
    average = None
    for _ in range(4):
        experiment = tiny(root, train__ema_decay=0.75, train__eval_every=0, train__max_steps=1)
        assert train_in(folder, experiment) == 0
        now = final_state(folder)["model"][name].double()
        average = now if average is None else 0.75 * average + 0.25 * now
    torch.testing.assert_close(final_state(folder)["ema"][name].double(), average, rtol=1e-5, atol=1e-7)


def test_the_seed_fixes_the_images_whatever_the_model(root: Path) -> None:
    """Two models see the same images in the same order; another seed changes them."""

    def seen(**changed: Any) -> list[Any]:
        experiment: DetectionExperiment = tiny(
            root, data__augment="detr", data__crop_resize=(48,), data__crop_range=(32, 48), **changed
        )
        with one_thread(), open_session("cpu") as session, StopRequest() as stop:
            trainer = Trainer(
                DetectionTask(experiment, open_data(experiment)), experiment, Run(root / "nowhere"), session, stop
            )
            micro = next(trainer.micro_batches())
        return [(batch.image_ids, batch.images) for batch in micro]

    try:
        base, other, reseeded = seen(), seen(head__kind="detr", head__dropout=0.3), seen(seed=1)
    finally:
        import shutil

        shutil.rmtree(root / "nowhere", ignore_errors=True)
    for (ids, images), (other_ids, other_images) in zip(base, other, strict=True):
        assert ids == other_ids
        assert torch.equal(images, other_images)
    assert [ids for ids, _ in base] != [ids for ids, _ in reseeded]
