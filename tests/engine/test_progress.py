"""The share of time spent waiting for data is in each line of metrics, and a person is told once when it is large."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from detr_container.config.settings import TrainConfig
from detr_container.engine import progress
from detr_container.engine.run import Run
from detr_container.engine.run_files import MetricsLine
from detr_container.engine.same import metrics

VALUES = {"loss": 1.0, "losses": {"class": 1.0}, "lr": 1e-4}


def logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, waits: list[float], workers: int = 2
) -> list[float]:
    """`data_wait` of one line a step, each of so many seconds, of which it waits some."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slowly() -> Iterator[int]:
        for step, wait in enumerate(waits):
            now[0] += wait
            yield step

    settings, supply = TrainConfig(batch=4, epochs=2), slowly()
    with progress.Progress(Run(folder), True, 0, len(waits), len(waits), settings, workers) as shown:
        for step, wait in enumerate(waits, 1):
            assert shown.next_of(supply) == step - 1
            now[0] += seconds - wait
            shown.advance(step)
            shown.log(VALUES, 0.5)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["data_wait"] for line in lines]


def test_the_share_is_of_each_interval_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "cores", lambda: 16)
    (tmp_path / "run").mkdir()
    assert logged(tmp_path / "run", monkeypatch, 20.0, [16.0, 2.0, 8.0, 10.0]) == pytest.approx([0.8, 0.1, 0.4, 0.5])
    (told,) = caplog.messages
    assert told == (
        "40 % of the time of steps 3 to 3 was spent waiting for data: raise data.workers=2, since this process may use "
        "16 cores"
    )
    assert all("data_wait" not in row for row in metrics(tmp_path / "run"))


@pytest.mark.parametrize(("seconds", "wait", "told"), [(20.0, 6.1, True), (20.0, 5.9, False), (5.0, 4.0, False)])
def test_little_waiting_and_short_intervals_are_not_told(
    seconds: float,
    wait: float,
    told: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "cores", lambda: 3)
    logged(tmp_path, monkeypatch, seconds, [0.0, wait])
    assert len(caplog.messages) == told
    assert all("data.workers=2 keep all 3 cores busy" in text for text in caplog.messages)


def test_lines_of_older_runs_have_no_share() -> None:
    assert MetricsLine(step=1, epoch=0.5).data_wait is None
