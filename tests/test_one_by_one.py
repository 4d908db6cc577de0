from pathlib import Path

import pytest

from detr_container.one_by_one import found_of

WORKER = """
import os, signal, sys, time
from detr_container.one_by_one import answer_each
def work(name, item):
    print("said by a library")
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


def test_what_ends_its_process_ends_neither_us_nor_the_others(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    monkeypatch.setattr("detr_container.one_by_one.STARTING", 3.0)
    environment = {"PYTHONPATH": f"{tmp_path}:{repository}", "PATH": "/usr/bin:/bin"}
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


def test_what_cannot_start_says_so() -> None:
    found = list(found_of("no_such_module", {"a": 1}, 1.0))
    assert [(name, value) for name, value, _ in found] == [("a", None)]
    assert "No module named no_such_module" in found[0][2]
