"""Of which evaluations a run keeps the detections: alone, and in real runs that are stopped, killed and resumed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from runs import assert_same_run, tiny, train_in

from detr_container.compare.analysis import analyse
from detr_container.engine.retention import superseded
from detr_container.engine.run import Run
from detr_container.tasks.detection.detections import NAME
from detr_container.tasks.detection.task import DetectionTask


def kept(run: Path) -> set[int]:
    return {int(path.parent.name.removeprefix("epoch-")) for path in run.glob(f"detections/*/{NAME}")}


def line(epoch: int, ap: float | None) -> dict[str, Any]:
    return {"epoch": epoch, "ap": ap}


def best(rows: list[dict[str, Any]]) -> set[int]:
    """The epoch of the highest AP, the first of equals."""
    found, value = set[int](), -1.0
    for row in rows:
        if row["ap"] is not None and row["ap"] > value:
            found, value = {row["epoch"]}, row["ap"]
    return found


def test_the_newest_and_the_best_stay_and_what_a_lost_evaluation_gives_back() -> None:
    rng = random.Random(1)
    for _ in range(300):
        rows = [line(epoch, rng.choice([None, 0.1, 0.2, 0.3])) for epoch in range(1, rng.randrange(1, 9))]
        epochs = {row["epoch"] for row in rows}
        newest = {row["epoch"] for row in rows[-1:]}
        assert superseded(rows, "ap", finished=True) == epochs - newest - best(rows)
        before = {row["epoch"] for row in rows[-2:-1]}
        assert superseded(rows, "ap", finished=False) == epochs - newest - best(rows) - before - best(rows[:-1])


def test_files_follow_from_the_evaluations_whatever_happened_on_the_way() -> None:
    """Step by step with a kill in any removal and a rewind at any time: nothing is missing that is to stay."""
    for seed in range(200):
        rng = random.Random(seed)
        values = [rng.choice([None, 0.1, 0.2, 0.3]) for _ in range(8)]
        files = set[int]()
        rows: list[dict[str, Any]] = []
        while len(rows) < 8:
            rows.append(line(len(rows) + 1, values[len(rows)]))
            files.add(len(rows))
            gone = sorted(superseded(rows, "ap", finished=len(rows) == 8))
            files -= set(gone[: rng.randrange(len(gone) + 1)])  # Killed here.
            if len(rows) < 8 and rng.random() < 0.3:
                rows.pop()  # Its checkpoint was damaged, and the one before has not seen this evaluation.
                assert {row["epoch"] for row in rows[-1:]} | best(rows) <= files
            files -= superseded(rows, "ap", finished=len(rows) == 8)
        assert files == {8} | best(rows)


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_in(folder, tiny(root, train__epochs=4)) == 0
    return folder


def test_a_finished_run_keeps_the_newest_and_the_best(uninterrupted: Path) -> None:
    rows = Run(uninterrupted).evaluations()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert kept(uninterrupted) == {4} | best(rows)
    assert len(list(uninterrupted.glob("detections/*/scores.json"))) == 4
    with pytest.raises(ValueError, match=r"epoch-00\d/detections\.npz is missing.*train\.keep_detections=all"):
        analyse([uninterrupted], epoch=min({1, 2, 3, 4} - kept(uninterrupted)), count=2)


def test_a_run_may_keep_all(root: Path, tmp_path: Path) -> None:
    assert train_in(tmp_path / "run", tiny(root, train__epochs=3, train__keep_detections="all")) == 0
    assert kept(tmp_path / "run") == {1, 2, 3}
    # Its mind may change, also when there is nothing left to train.
    assert train_in(tmp_path / "run", tiny(root, train__epochs=3)) == 0
    assert kept(tmp_path / "run") == {3} | best(Run(tmp_path / "run").evaluations())


def test_a_run_that_was_stopped_keeps_the_same(root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for steps in (6, 2, 5):
        assert train_in(folder, tiny(root, train__epochs=4, train__max_steps=steps)) == 0
        rows = Run(folder).evaluations()
        assert {rows[-1]["epoch"]} | best(rows) <= kept(folder)
    assert train_in(folder, tiny(root, train__epochs=4)) == 0
    assert_same_run(folder, uninterrupted)


class Killed(BaseException):
    """What no handler of errors holds back."""


def test_a_kill_before_or_after_a_removal_changes_nothing(
    root: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, kills = DetectionTask.discard, list[bool]()

    def discard(self: DetectionTask, run: Path, epoch: int) -> None:
        before, present = len(kills) % 2 == 0, epoch in kept(run)
        if not (present and before):
            real(self, run, epoch)
        if present and len(kills) < 4:
            kills.append(before)
            raise Killed

    monkeypatch.setattr(DetectionTask, "discard", discard)
    folder, starts = tmp_path / "run", 1
    while True:
        try:
            assert train_in(folder, tiny(root, train__epochs=4)) == 0
            break
        except Killed:
            starts += 1
            rows = Run(folder).evaluations()
            assert {rows[-1]["epoch"]} | best(rows) <= kept(folder)
    assert starts == len(kills) + 1 > 2
    assert set(kills) == {True, False}
    assert_same_run(folder, uninterrupted)


def test_a_damaged_checkpoint_finds_the_detections_of_the_one_before(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train_in(folder, tiny(root, train__epochs=4, train__max_steps=12)) == 0
    Run(folder).checkpoints().paths()[0].write_bytes(b"damaged")
    assert train_in(folder, tiny(root, train__epochs=4, train__max_steps=1)) == 0
    rows = Run(folder).evaluations()
    assert rows[-1]["epoch"] == 2
    assert {2} | best(rows) <= kept(folder)
