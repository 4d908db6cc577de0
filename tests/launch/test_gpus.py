"""Which GPUs there are, and who has them."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from detr_container.launch.gpus import claimed, visible


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", ["0"]),
        (" 2 , 0", ["2", "0"]),
        ("1,-1,2", ["1"]),
        ("GPU-8932f937-d72c,MIG-GPU-1/2/0", ["GPU-8932f937-d72c", "MIG-GPU-1/2/0"]),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(given: str, expected: list[str]) -> None:
    assert visible({"CUDA_VISIBLE_DEVICES": given}) == expected


def test_the_least_taken_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environ = {"CUDA_VISIBLE_DEVICES": "4,5,6"}
    with ExitStack() as held:
        a = held.enter_context(claimed(1, environ))
        with claimed(2, environ) as b, claimed(2, environ) as c:
            assert [a, b, c] == [(["4"], 0), (["5", "6"], 0), (["4", "5"], 1)]
        assert held.enter_context(claimed(9, environ)) == (["4", "5", "6"], 1)
    with claimed(1, environ) as again:
        assert again == (["4"], 0)


def test_a_killed_process_has_let_go(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hold = "import os; from detr_container.launch.gpus import claimed\n"
    hold += "with claimed(1, os.environ) as mine:\n    print(*mine.devices, flush=True)\n    input()"
    environ = {**os.environ, "PYTHONPATH": str(repository), "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"}
    line = [sys.executable, "-c", hold]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        with claimed(1, environ) as mine:
            assert mine == (["1"], 0)
        other.kill()
        other.wait()
        with claimed(1, environ) as mine:
            assert mine == (["0"], 0)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"detr-container-gpus-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is not a folder of yours"), claimed(1, {"CUDA_VISIBLE_DEVICES": "0"}):
        pass
