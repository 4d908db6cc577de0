"""One process, gradient accumulation and two ranks: the same training, the same evaluation, and one stop for all."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from packed_criterion import Packed, Pairs, pack, pairs_of
from runs import (
    HARD,
    assert_same_run,
    environment,
    final_state,
    free_port,
    one_thread,
    settings_of,
    tiny,
    train_in,
    train_job,
    two_ranks,
    wait_for,
)
from torchvision.ops import box_convert, generalized_box_iou

from detr_container.base.files import read_jsonl
from detr_container.base.interrupt import StopRequest
from detr_container.commands import cli
from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.loader import permutation
from detr_container.engine.run import Run
from detr_container.engine.same import metrics
from detr_container.engine.session import open_session
from detr_container.engine.trainer import Trainer
from detr_container.models.detector import Output
from detr_container.tasks.detection.build import build_matcher, open_data
from detr_container.tasks.detection.coco_results import read_kept, records_of
from detr_container.tasks.detection.task import DetectionTask

SMCA: dict[str, Any] = {"backbone__norm": "frozen", "train__epochs": 1, "train__eval_every": 0, "train__log_every": 1}
DETR: dict[str, Any] = {
    **SMCA,
    "head__kind": "detr",
    "loss__classification": "softmax",
    "loss__class_weight": 1.0,
    "loss__cost_class": 1.0,
}
KINDS = {"smca": SMCA, "detr": DETR}
PUBLISHED = {**DETR, "loss__normalise": "process", "train__micro_batch": 2}
ACCUMULATED = {**HARD, "train__micro_batch": 1}


@pytest.fixture(scope="session")
def pair(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that two ranks have done, in one pair of processes."""
    folder = tmp_path_factory.mktemp("pair")
    jobs: list[dict[str, Any]] = []

    def train(name: str, recorded: bool = False, **changed: Any) -> None:
        jobs.append(train_job(folder / name, tiny(root, **changed), recorded))

    for kind, settings in KINDS.items():
        train(f"{kind}-pair", **settings, train__micro_batch=1)
        train(f"{kind}-lonely", **settings, train__micro_batch=1, train__batch=2)
    train("half", **SMCA, train__micro_batch=1, train__precision="bf16")
    train("detr-published", **PUBLISHED)
    train("shared-norms", **(SMCA | {"backbone__norm": "sync"}), train__micro_batch=2)
    train("whole", **ACCUMULATED)
    train("replayed", **ACCUMULATED, recorded=True)
    train("broken", **ACCUMULATED, train__max_steps=3, data__workers=1)
    train("broken", **ACCUMULATED, data__workers=1)
    train("shrunk", **{**SMCA, "train__log_every": 4}, train__max_steps=3)
    evaluate = ["evaluate", str(folder / "whole"), "--output", str(folder / "evaluated"), "--device", "cpu"]
    jobs.append({"do": "evaluate", "arguments": evaluate, "port": free_port()})
    two_ranks(folder, jobs)
    return folder


def assert_close_run(a: Path, b: Path) -> None:
    """The same losses, gradient norms and weights to rounding."""
    left, right = metrics(a), metrics(b)
    assert [row["step"] for row in left] == [row["step"] for row in right]
    for mine, other in zip(left, right, strict=True):
        for name in ("loss", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3), f"{name} of step {mine['step']}"
        assert mine["losses"] == pytest.approx(other["losses"], rel=1e-3)
    ours, theirs = final_state(a)["model"], final_state(b)["model"]
    for name, value in ours.items():
        # Adam moves by the learning rate (5e-4) whatever the gradient's size, so elements whose gradient is nothing but
        # rounding differ by as much: the key's bias always, and now and then another.
        if not name.endswith("in_proj_bias"):
            off = ~torch.isclose(value, theirs[name], rtol=1e-3, atol=2e-5)
            assert off.sum() <= max(2, 0.005 * off.numel()), f"{name}: {int(off.sum())} of {off.numel()} differ"


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_one_batch(kind: str, root: Path, tmp_path: Path) -> None:
    for micro in (4, 2, 1):
        assert train_in(tmp_path / str(micro), tiny(root, **KINDS[kind], train__micro_batch=micro)) == 0
    assert_close_run(tmp_path / "4", tmp_path / "2")
    assert_close_run(tmp_path / "4", tmp_path / "1")


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_with_accumulation_equal_one_process(kind: str, pair: Path, root: Path, tmp_path: Path) -> None:
    assert train_in(tmp_path / "one", tiny(root, **KINDS[kind], train__micro_batch=4)) == 0
    assert_close_run(tmp_path / "one", pair / f"{kind}-pair")


def test_two_ranks_that_share_batch_statistics_equal_one_process(pair: Path, root: Path, tmp_path: Path) -> None:
    alone = SMCA | {"backbone__norm": "batch"}
    assert train_in(tmp_path / "one", tiny(root, **alone, train__micro_batch=4)) == 0
    assert_close_run(tmp_path / "one", pair / "shared-norms")


def test_two_ranks_that_replay_recorded_steps_add_up_the_same_gradients(pair: Path) -> None:
    """Without DDP: their gradients are one buffer, which is summed between what is recorded."""
    assert_close_run(pair / "whole", pair / "replayed")


def test_two_ranks_in_bfloat16(pair: Path, root: Path, tmp_path: Path) -> None:
    """Gradients are cast before they are averaged: as one process to bfloat16's rounding."""
    assert train_in(tmp_path / "one", tiny(root, **SMCA, train__micro_batch=1, train__precision="bf16")) == 0
    one, two = metrics(tmp_path / "one"), metrics(pair / "half")
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=0.02)
    assert [row["grad_norm"] for row in two] == pytest.approx([row["grad_norm"] for row in one], rel=0.1)
    assert [row["loss"] for row in two] != [row["loss"] for row in metrics(pair / "smca-pair")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_objects(kind: str, pair: Path, root: Path, tmp_path: Path) -> None:
    """Two images a step, one per rank: in one of the steps a rank sees the image without objects alone."""
    experiment = tiny(root, **KINDS[kind], train__micro_batch=2, train__batch=2)
    counts = open_data(experiment).train.annotations.starts
    empty = [index for index in range(len(counts) - 1) if counts[index] == counts[index + 1]]
    assert set(empty) & set(permutation(16, experiment.seed, 0))
    assert train_in(tmp_path / "one", experiment) == 0
    assert_close_run(tmp_path / "one", pair / f"{kind}-lonely")


def published_loss(output: Output, targets: Packed, matches: Pairs, boxes: float) -> torch.Tensor:
    """DETR's loss on one process, layer by layer; boxes: what the box losses are divided by."""
    no_object = output.logits.shape[-1] - 1
    weight = torch.ones(no_object + 1)
    weight[no_object] = 0.1
    total = torch.zeros(())
    for layer, (logits, found) in enumerate(zip(output.logits, output.boxes, strict=True)):
        at = matches.layer == layer
        image, query, target = matches.image[at], matches.query[at], matches.target[at]
        labels = torch.full(logits.shape[:2], no_object)
        labels[image, query] = targets.labels[target]
        ours, true = found[image, query], targets.boxes[target]
        corners = (box_convert(each, "cxcywh", "xyxy") for each in (ours, true))
        overlap = generalized_box_iou(*corners).diag()
        total = total + F.cross_entropy(logits.transpose(1, 2), labels, weight)
        total = total + (5 * (ours - true).abs().sum() + 2 * (1 - overlap).sum()) / boxes
    return total


def test_losses_divided_by_each_process_as_published(pair: Path, root: Path, tmp_path: Path) -> None:
    """Two ranks with unequal numbers of objects, and one process that accumulates: the mean of two published losses."""
    experiment = tiny(root, **PUBLISHED)
    with one_thread(), open_session("cpu") as session, StopRequest() as stop:
        trainer = Trainer(
            DetectionTask(experiment, open_data(experiment)), experiment, Run(tmp_path / "naive"), session, stop
        )
        micro = next(trainer.micro_batches())
        counts = [sum(batch.targets.counts) for batch in micro]
        assert len(set(counts)) == len(counts) == 2
        losses = []
        for batch in micro:
            output = trainer.model(batch.images, batch.sizes, batch.padded)
            matches = build_matcher(experiment)(output, batch.targets)
            pairs = pairs_of(matches, batch.targets)
            losses.append(published_loss(output, pack(batch.targets), pairs, max(sum(counts) / 2, 1)))
        expected = sum(losses) / 2
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), math.inf)
    first = metrics(pair / "detr-published")[0]
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    ours = metrics(pair / "detr-pair")[0]
    assert first["loss"] != pytest.approx(ours["loss"], rel=1e-4)
    assert train_in(tmp_path / "one", experiment) == 0
    assert_close_run(tmp_path / "one", pair / "detr-published")


def test_no_objects_at_all(root: Path, tmp_path: Path) -> None:
    """A data set whose images are all empty trains: every micro batch lacks objects."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    path = data / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    for kind, settings in KINDS.items():
        assert train_in(tmp_path / kind, tiny(data, **settings)) == 0
        rows = metrics(tmp_path / kind)
        assert all(row["losses"]["l1"] == row["losses"]["giou"] == 0 < row["losses"]["class"] for row in rows)


def test_two_ranks_resume_bit_for_bit(pair: Path) -> None:
    assert [row["step"] for row in metrics(pair / "broken")] == [2, 4, 6, 8]
    assert_same_run(pair / "broken", pair / "whole")


def test_a_run_resumes_with_fewer_ranks(pair: Path, root: Path, tmp_path: Path) -> None:
    """Stopped by two ranks between two lines of metrics, resumed by one: as if one process had done it all."""
    shutil.copytree(pair / "shrunk", tmp_path / "shrunk")
    settings = {**SMCA, "train__log_every": 4}
    assert train_in(tmp_path / "shrunk", tiny(root, **settings)) == 0
    assert train_in(tmp_path / "one", tiny(root, **settings)) == 0
    assert [row["step"] for row in metrics(tmp_path / "shrunk")] == [4]
    assert_close_run(tmp_path / "shrunk", tmp_path / "one")


def test_two_ranks_evaluate_every_image_once(pair: Path, tmp_path: Path) -> None:
    """The same files from two ranks within training, two ranks afterwards, and one process: batch statistics agree."""
    alone = tmp_path / "alone"
    with one_thread():
        assert cli.main(["evaluate", str(pair / "whole"), "--output", str(alone), "--device", "cpu"]) == 0

    def read(folder: Path) -> list[dict[str, Any]]:
        return list(records_of(read_kept(folder)))

    expected = read(alone)
    images = [record["image_id"] for record in expected]
    assert {images.count(image_id) for image_id in images} == {10}
    assert len(set(images)) == 5
    assert read(pair / "evaluated") == expected
    assert read(pair / "whole" / "detections" / "epoch-002") == expected
    scores = json.loads((alone / "scores.json").read_text())
    assert json.loads((pair / "evaluated" / "scores.json").read_text()) == scores
    logged = Run(pair / "whole").evaluations()[-1]
    assert {name: scores[name] for name in logged if name in scores} == {
        name: value for name, value in logged.items() if name in scores
    }


def test_only_the_main_rank_speaks(pair: Path) -> None:
    assert "step 2/4" in (pair / "rank-0.txt").read_text()
    assert "parameters:" not in (pair / "rank-1.txt").read_text()
    assert "step " not in (pair / "rank-1.txt").read_text()


def torchrun(experiment: DetectionExperiment, runs: Path) -> subprocess.Popen[str]:
    """`train debug` as two processes under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "detr_container", "train", "debug", "--runs", str(runs)]
    command += settings_of(experiment)
    return subprocess.Popen(
        command, cwd=runs.parent, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rank_process(parent: int, rank: str) -> psutil.Process:
    """The child that computes a rank."""
    for child in psutil.Process(parent).children(recursive=True):
        if child.environ().get("RANK") == rank and child.ppid() == parent:
            return child
    raise AssertionError(f"no process of rank {rank}")


def test_a_signal_to_one_rank_stops_both(root: Path, tmp_path: Path) -> None:
    experiment = tiny(root, train__epochs=200, train__eval_every=0)
    run = tmp_path / "runs" / "debug"
    process = torchrun(experiment, tmp_path / "runs")
    try:
        logged = run / "metrics.jsonl"
        wait_for(lambda: logged.exists() and bool(read_jsonl(logged)), process)
        os.kill(rank_process(process.pid, "1").pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    state = final_state(run)
    assert 2 <= state["step"] < 800
    assert f"interrupted (another process): saved at step {state['step']} of 800" in stderr
    assert len(state["meters"]) == 2
    assert "exitcode  : 143" in stderr


def test_a_failure_of_the_main_rank_is_reported_once(root: Path, tmp_path: Path) -> None:
    """The first checkpoint cannot be written; the other rank does not add a traceback of its own."""
    run = tmp_path / "runs" / "debug"
    run.mkdir(parents=True)
    (run / "checkpoints").write_text("a file where a folder belongs")
    process = torchrun(tiny(root, train__max_steps=1, train__eval_every=0), tmp_path / "runs")
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert f"error: {run / 'checkpoints'}" in stderr
    assert "[rank 1] error: another process of this job has ended" in stderr
    assert "[rank1]: Traceback" not in stderr
