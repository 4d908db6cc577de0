"""A task that the engine has never heard of: trained, interrupted, resumed, submitted and listed as detection is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import environment, final_state, free_port, start, wait_for
from torch import Tensor
from toy_task import ToyBatch, ToyTask, synthetic, toy

from detr_container.base.processes import ProcessInfo
from detr_container.config.settings import to_dict
from detr_container.config.tasks import GROUP
from detr_container.engine.run import Run
from detr_container.engine.same import run_differences
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an installed package would bring: its modules, and the entry point that names its task."""
    installed = tmp_path_factory.mktemp("installed")
    about = installed / "toy-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\ntoy = toy_task:ToyExperiment\n")
    return {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "toy", installed)))}


def two_ranks(folder: Path, jobs: list[tuple[str, int]], surroundings: dict[str, str]) -> list[subprocess.Popen[str]]:
    """Two processes that train runs one after the other. jobs: the name of each and the status to end with."""
    path = folder / f"{jobs[-1]}.json"
    shared = {"do": "train", "experiment": to_dict(toy())}
    each = [{**shared, "folder": str(folder / name), "port": free_port(), "status": status} for name, status in jobs]
    path.write_text(json.dumps(each))
    command = [sys.executable, str(TESTS / "two_ranks.py"), str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, rank], env=environment(**surroundings), **pipes) for rank in ("0", "1")]


def end(processes: list[subprocess.Popen[str]]) -> None:
    """Wait for both, which must have ended each run as expected."""
    for process in processes:
        _, output = process.communicate(timeout=120)
        assert process.returncode == 0, output


def test_two_ranks_resume_it_bit_for_bit(tmp_path: Path, surroundings: dict[str, str]) -> None:
    parts = Run(tmp_path / "parts")
    processes = two_ranks(tmp_path, [("whole", 0), ("parts", 143)], surroundings)
    wait_for(lambda: parts.metrics_path.exists() and len(parts.metrics()) > 2, processes[0])
    for process in processes:
        process.send_signal(signal.SIGTERM)
    end(processes)
    assert 0 < final_state(parts.folder)["step"] < 300
    end(two_ranks(tmp_path, [("parts", 0)], surroundings))
    assert len((parts.folder / "provenance.jsonl").read_text().splitlines()) == 2
    assert run_differences(tmp_path / "whole", parts.folder) == []
    assert [row["accuracy"] > 0.8 for row in parts.evaluations()] == [True] * 3


def test_the_local_executor_runs_it_and_status_lists_it(tmp_path: Path, surroundings: dict[str, str]) -> None:
    def detr_container(*arguments: str) -> str:
        process = start(arguments, tmp_path, **surroundings)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out

    detr_container("submit", "toy", "--cluster", "local", "--run", "job")
    end = time.monotonic() + 90
    while "finished" not in (listed := detr_container("status", "runs/job")):
        assert time.monotonic() < end, listed
        assert "failed" not in listed, listed
    header, row = listed.splitlines()[:2]
    assert "accuracy" in header.split()
    assert "AP" not in header.split()
    assert (tmp_path / "runs" / "job" / "curves.png").stat().st_size > 10_000
    score = json.loads((tmp_path / "runs" / "job" / "evaluations.jsonl").read_text().splitlines()[-1])["accuracy"]
    assert f"{100 * score:.1f}" in row.split()


class Asking(ToyTask):
    """Its host is to know the scores, of which it has nothing to say."""

    def question(self, output: Tensor, batch: ToyBatch) -> Tensor:
        return output.detach()

    def loss(self, scores: Tensor, answer: Any, batch: ToyBatch, divisors: Tensor, share: float) -> Any:
        assert torch.equal(answer, scores.detach())
        return super().loss(scores, None, batch, divisors, share)


def test_a_question_is_its_own_answer_unless_the_task_has_another() -> None:
    found = []
    for kind in (ToyTask, Asking):
        torch.manual_seed(0)
        task, session = kind(), Session(ProcessInfo(), torch.device("cpu"))
        steps = Stepper(task, task.build(weights=False), toy().train, 0, session)
        steps.begin()
        steps.take([synthetic([0, 1, 2])], 0, 1.0)
        found.append(steps.meters)
    assert torch.equal(*found)
