"""An interrupted and resumed run is the uninterrupted run, bit for bit; one process (two: test_parallel.py)."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import (
    HARD,
    assert_same_run,
    final_state,
    settings_of,
    start,
    tiny,
    train_in,
    wait_for,
    when,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_container.base.files import read_jsonl
from detr_container.config.detection import DetectionExperiment
from detr_container.engine.progress import Progress
from detr_container.engine.run import Run
from detr_container.engine.same import metrics


@pytest.fixture(scope="session")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others of this file must equal: eight steps without a break."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_in(folder, tiny(root, **HARD), images=True) == 0
    return folder


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a tag, after it has dropped what a restart repeats."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize(("first", "workers"), [(3, 0), (4, 0), (3, 2), (5, 1)])
def test_a_stop_and_a_resume_change_nothing(
    first: int, workers: int, root: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert train_in(folder, tiny(root, **HARD, data__workers=workers, train__max_steps=first)) == 0
    assert final_state(folder)["step"] == first
    assert train_in(folder, tiny(root, **HARD, data__workers=workers)) == 0
    assert_same_run(folder, uninterrupted)


def test_stopping_after_every_step_changes_nothing(root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    for _ in range(8):
        assert train_in(tmp_path / "run", tiny(root, **HARD, train__max_steps=1)) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_the_reference_run_is_hard_enough(uninterrupted: Path, root: Path, tmp_path: Path) -> None:
    """The settings that carry a state are in force: each changes the weights when it is turned off."""
    base = final_state(uninterrupted)["model"]
    easier = {"head__dropout": 0.0, "backbone__drop_path": 0.0, "data__augment": "none", "train__warmup_steps": 0}
    for name, value in easier.items():
        folder = tmp_path / name
        assert train_in(folder, tiny(root, **{**HARD, name: value, "train__eval_every": 0})) == 0
        other = final_state(folder)["model"]
        assert any(not base[key].equal(other[key]) for key in base), f"{name} has no effect"
    state = final_state(uninterrupted)
    assert any(not state["model"][key].equal(state["ema"][key]) for key in state["model"])


def test_sigterm_saves_at_the_next_step_and_the_same_command_resumes(
    root: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    caplog.set_level("INFO")
    watcher = when(
        lambda: (folder / "metrics.jsonl").exists() and bool(read_jsonl(folder / "metrics.jsonl")),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    assert train_in(folder, tiny(root, **HARD)) == 143
    watcher.join()
    step = final_state(folder)["step"]
    assert 2 <= step < 8
    assert f"interrupted (SIGTERM): saved at step {step} of 8. The same command resumes from here" in caplog.text
    assert train_in(folder, tiny(root, **HARD)) == 0
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_evaluation_evaluates_again(
    number: signal.Signals,
    root: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    real = Progress.evaluating

    def evaluating(self: Progress, done: int, total: int) -> None:
        real(self, done, total)
        os.kill(os.getpid(), number)

    caplog.set_level("INFO")
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "evaluating", evaluating)
        assert train_in(folder, tiny(root, **HARD)) == 128 + number
    assert "interrupted" in caplog.text
    assert final_state(folder)["step"] == 4
    assert Run(folder).evaluations() == []
    assert train_in(folder, tiny(root, **HARD)) == 0
    assert_same_run(folder, uninterrupted)


def test_a_kill_in_the_middle_of_an_epoch(root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL of the command itself, with loader processes; the checkpoint may be any number of steps behind."""
    folder = tmp_path / "runs" / "debug"
    experiment = tiny(root, **HARD, data__workers=1, train__checkpoint_minutes=1e-6)
    process = start(["train", "debug", "--runs", tmp_path / "runs", *settings_of(experiment)], tmp_path)
    try:
        # Any from the second on: each is there for a moment only, which a busy machine may miss.
        wait_for(
            lambda: any(path.name >= "checkpoint-00000002" for path in (folder / "checkpoints").glob("c*")), process
        )
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
    assert 2 <= final_state(folder)["step"] < 8
    assert train_in(folder, experiment) == 0
    assert_same_run(folder, uninterrupted)


def test_a_kill_before_the_first_checkpoint_leaves_no_trace(root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train_in(folder, tiny(root, **HARD, train__max_steps=2)) == 0
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    assert train_in(folder, tiny(root, **HARD)) == 0
    assert_same_run(folder, uninterrupted)
    assert curve(folder, "train/loss") == curve(uninterrupted, "train/loss")


def test_logs_have_one_line_a_step_after_going_back(root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The newest checkpoint is lost, so the metrics ran ahead of the one before it."""
    folder = tmp_path / "run"
    assert train_in(folder, tiny(root, **HARD, train__max_steps=3)) == 0
    assert train_in(folder, tiny(root, **HARD, train__max_steps=3)) == 0
    Run(folder).checkpoints().paths()[0].unlink()
    assert [row["step"] for row in metrics(folder)] == [2, 4, 6]
    assert train_in(folder, tiny(root, **HARD)) == 0
    assert [row["step"] for row in metrics(folder)] == [2, 4, 6, 8]
    assert_same_run(folder, uninterrupted)
    rows = {row["step"]: row for row in metrics(folder)}
    for tag, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("train/lr_backbone", "lr_backbone")):
        shown = curve(folder, tag)
        assert [step for step, _ in shown] == [2, 4, 6, 8]
        assert [value for _, value in shown] == pytest.approx([rows[step][key] for step in rows])
    assert [step for step, _ in curve(folder, "val/ap")] == [4, 8]


def test_a_finished_run_says_so_and_stays_as_it_is(
    root: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").iterdir()}
    rows = metrics(uninterrupted)
    caplog.set_level("INFO")
    assert train_in(uninterrupted, tiny(root, **HARD)) == 0
    assert "finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").iterdir()} == before
    assert metrics(uninterrupted) == rows


def test_a_longer_schedule_resumes_and_a_shorter_one_is_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings: dict[str, Any] = {"train__eval_every": 0, "train__schedule": "step"}
    assert train_in(folder, tiny(root, **settings)) == 0
    assert train_in(folder, tiny(root, **settings, train__epochs=3)) == 0
    assert final_state(folder)["step"] == 12
    with pytest.raises(ValueError, match=r"step 12.*8.*train\.epochs"):
        train_in(folder, tiny(root, **settings))


def test_provenance_and_difference_are_kept(uninterrupted: Path) -> None:
    difference = json.loads((uninterrupted / "difference.json").read_text())
    assert difference["head.dropout"] == {"named": 0.0, "here": 0.1}
    assert "train.lr" not in difference
    assert len(read_jsonl(uninterrupted / "provenance.jsonl")) >= 1
    assert isinstance(Run(uninterrupted).experiment(), DetectionExperiment)
