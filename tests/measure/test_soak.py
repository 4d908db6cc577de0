"""The soak: a run interrupted at random, and what it would report if an interruption had changed something."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from runs import environment, final_state, run_command, settings_of, tiny, train_in

from detr_container.base.alive import mark
from detr_container.engine.same import differences, run_differences
from detr_container.measure.soak import WAYS
from detr_container.tasks.detection.detections import NAME, Detections


@pytest.fixture(scope="module")
def soaked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with an uninterrupted and an interrupted run, and what the command printed."""
    folder = tmp_path_factory.mktemp("soak")
    experiment = tiny(root, train__epochs=60, train__eval_every=30, train__micro_batch=1, head__dropout=0.1)
    line = [sys.executable, "-m", "detr_container", "soak", "debug", "--times", "2", "--within", "5", "--draw", "1"]
    done = subprocess.run(
        [*line, *settings_of(experiment)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "soak", done.stdout


@pytest.mark.long
def test_two_interruptions(soaked: tuple[Path, str]) -> None:
    folder, printed = soaked
    assert "2 interruptions (" in printed
    assert "3 starts" in printed
    assert "equal to the uninterrupted run, bit for bit" in printed
    assert run_differences(folder / "uninterrupted", folder / "interrupted") == []


def test_a_difference_is_seen(root: Path, tmp_path: Path) -> None:
    uninterrupted, changed = tmp_path / "uninterrupted", tmp_path / "changed"
    assert train_in(uninterrupted, tiny(root)) == 0
    shutil.copytree(uninterrupted, changed)
    lines = (changed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (changed / "metrics.jsonl").write_text("".join(lines[:3] + lines[4:]))
    newest = max((changed / "checkpoints").glob("*.pt"))
    state = final_state(changed)
    name = next(iter(state["model"]))
    state["model"][name].view(-1)[0] += 1e-6
    torch.save(state, newest)
    path = max(changed.glob(f"detections/*/{NAME}"))
    whole = Detections.read(path)
    Detections.joined([], whole.category_ids.tolist()).write(path)
    found = "\n".join(run_differences(uninterrupted, changed))
    assert f"checkpoint['model']['{name}'] differs by up to" in found
    assert "metrics: only one of them has ['3']" in found
    assert "detections.npz['scores']: torch.float32" in found
    assert "against torch.float32 (0,)" in found


def test_differences_of_values() -> None:
    a = {"x": torch.tensor([1.0, 2.0]), "y": [1, {"z": 2}]}
    assert list(differences(a, {"x": torch.tensor([1.0, 2.0]), "y": [1, {"z": 2}]}, "v")) == []
    assert list(differences(a, {"x": torch.tensor([1.0, 2.5]), "y": [1, {"z": 3}]}, "v")) == [
        "v['x'] differs by up to 0.5",
        "v['y'][1]['z']: 2 against 3",
    ]
    assert list(differences(torch.zeros(2), torch.zeros(2, dtype=torch.float64), "v")) == [
        "v: torch.float32 (2,) against torch.float64 (2,)"
    ]
    assert list(differences({"a": 1}, {"b": 1}, "v")) == ["v: only one of them has ['a', 'b']"]


@pytest.mark.parametrize("way", sorted(WAYS["local"]))
def test_a_process_that_only_has_the_number_of_the_job_is_left_alone(way: str) -> None:
    """And so are its children; the job's own process is signalled, or its child is."""
    line = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"]
    with subprocess.Popen(line, start_new_session=True) as process:
        try:
            other = psutil.Process(process.pid)
            while not other.children():
                time.sleep(0.01)
            interrupt, facts = WAYS["local"][way], {"job": str(process.pid), "process": mark(process.pid)}
            assert not interrupt(facts | {"process": "another boot:1"}, random.Random(0))
            assert not interrupt({"job": str(process.pid)}, random.Random(0))
            assert len(other.children()) == 1
            assert process.poll() is None
            assert interrupt(facts, random.Random(0))
            assert process.wait(60) is not None
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "uninterrupted").mkdir()
    done = run_command(tmp_path, "soak", "--folder", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/uninterrupted exists" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["uninterrupted"]
