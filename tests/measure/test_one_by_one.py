import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from detr_container.measure.one_by_one import found_of

WORKER = """
import os, signal, sys, time
from detr_container.measure.one_by_one import answer_each
wounds = []
def work(name, item):
    if wounds:
        os.kill(os.getpid(), signal.SIGABRT)
    if item == "wound":
        wounds.append(name)
        return 0
    print("printed by a library")
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(600)
    if item == "leave":
        sys.exit("left")
    if item == "odd":
        raise KeyError("a key")
    if item == "fail":
        raise ValueError("two\\nlines")
    return 2 * item
sys.exit(answer_each(work, (ValueError,)))
"""


@pytest.fixture
def environment(tmp_path: Path, repository: Path) -> dict[str, str]:
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    return {"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": "/usr/bin:/bin"}


def test_what_ends_its_process_ends_neither_us_nor_the_others(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_container.measure.one_by_one.STARTING", 3.0)
    items = {"a": 1, "b": "crash", "c": 2, "d": "fail", "e": "hang", "f": "leave", "g": "odd", "h": 3}
    found = {name: (value, why) for name, value, why in found_of("worker_of_test", items, 1.0, environment)}
    assert found == {
        "a": (2, ""),
        "b": (None, "it ended the process by SIGSEGV"),
        "c": (4, ""),
        "d": (None, "two lines"),
        "e": (None, "it took more than 1 seconds"),
        "f": (None, "left"),
        "g": (None, "KeyError: 'a key'"),
        "h": (6, ""),
    }


def test_several_processes_share_the_items(environment: dict[str, str]) -> None:
    items = {str(number): number for number in range(7)} | {"bad": "crash", "odd": "fail"}
    found = {name: (value, why) for name, value, why in found_of("worker_of_test", items, 60.0, environment, 3)}
    assert found == {str(number): (2 * number, "") for number in range(7)} | {
        "bad": (None, "it ended the process by SIGSEGV"),
        "odd": (None, "two lines"),
    }


def test_an_item_that_dies_of_what_others_did_is_tried_alone(environment: dict[str, str]) -> None:
    """`wound` leaves its process so that the next item ends it."""
    items = {"a": 1, "first": "wound", "next": 2, "b": 3}
    found = {name: (value, why) for name, value, why in found_of("worker_of_test", items, 60.0, environment)}
    assert found == {"a": (2, ""), "first": (0, ""), "next": (4, ""), "b": (6, "")}


def test_who_stops_asking_leaves_no_process(environment: dict[str, str]) -> None:
    others = psutil.Process().children()
    answers = found_of("worker_of_test", {"a": 1, "b": "hang", "c": "hang"}, 60.0, environment, 2)
    assert next(answers) == ("a", 2, "")
    assert any(process not in others for process in psutil.Process().children())
    began = time.monotonic()
    answers.close()
    assert time.monotonic() - began < 30
    assert [process for process in psutil.Process().children() if process not in others] == []


def test_what_cannot_start_says_so() -> None:
    found = list(found_of("no_such_module", {"a": 1}, 1.0))
    assert [(name, value) for name, value, _ in found] == [("a", None)]
    assert "No module named no_such_module" in found[0][2]


def test_no_process_outlives_one_that_was_killed(environment: dict[str, str]) -> None:
    asks = """if True:
        import os
        from detr_container.measure.one_by_one import found_of
        for answer in found_of("worker_of_test", {"a": 1, "b": "hang"}, 60.0, dict(os.environ)):
            print(answer, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        started = psutil.Process(process.pid).children()
        assert started
        process.kill()
    assert not psutil.wait_procs(started, timeout=20)[1]
