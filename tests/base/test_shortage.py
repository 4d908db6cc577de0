"""Memory and open files that run out: one line with the settings that ask for them, exit status 2, no traceback."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import environment, settings_of, tiny

from detr_container.base.files import write_json
from detr_container.base.shortage import ShortageError, asking, out_of_memory
from detr_container.config.settings import to_dict
from detr_container.engine.run import Run

ROOM = 1_200_000_000
"""Bytes that a process may have beside those which its libraries take."""
# In one process, since importing torch takes longest: each command line of a JSON list, then its status and errors.
CHILD = """
import contextlib, io, json, resource, sys
import psutil, torch
from detr_container.commands import cli
from detr_container.engine import train
torch.set_num_threads(1)
room, lines = json.loads(sys.argv[1])
room += psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for line in lines:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(sys.stderr):
        status = cli.main(line)
    print(json.dumps([status, stderr.getvalue()]), flush=True)
"""


def test_settings_that_no_memory_suffices_for(root: Path, tmp_path: Path) -> None:
    base = ["train", "debug", "--runs", str(tmp_path / "runs"), *settings_of(tiny(root))]
    cases = {
        "head.width=8192": [*base, "--head.width", "8192", "--run", "a"],
        "head.feedforward=65536": [*base, "--head.feedforward", "65536", "--head.width", "4096", "--run", "b"],
        "data.scales=[8192]": [*base, "--data.scales", "8192", "--data.max-size", "8192", "--run", "c"],
        "train.micro_batch=2, data.scales=[64], data.max_size=64, data.canvas=16384": [
            *(*base, "--data.canvas", "16384", "--run", "d")
        ],
    }
    command = [sys.executable, "-c", CHILD, json.dumps([ROOM, list(cases.values())])]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), done.stderr
    for named, (status, stderr) in zip(cases, answers, strict=True):
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert status == 2, stderr
        assert len(errors) == 1
        assert errors[0].startswith("error: not enough memory for ")
        assert named in errors[0]
        assert "Traceback" not in stderr


ONE_RUN = """
import json, resource, sys
import psutil, torch
from detr_container.engine import train
from detr_container.compare import one_run
torch.set_num_threads(1)
room = 250_000_000 + psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (room, room))
sys.exit(one_run.main())
"""


def test_annotations_that_no_memory_suffices_for(root: Path, tmp_path: Path) -> None:
    """As a run of a comparison reads them, outside any command."""
    shutil.copytree(root, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_train2017.json"
    path.write_text('{"info": [' + "[], " * 8_000_000 + "[]]," + path.read_text()[1:])
    write_json(Run(tmp_path / "run").config_path, to_dict(tiny(tmp_path / "data")))
    standing_in, held = os.pipe()
    try:
        command = [sys.executable, "-c", ONE_RUN, str(tmp_path / "run")]
        done = subprocess.run(
            command, env=environment(), stdin=standing_in, capture_output=True, text=True, check=False, timeout=120
        )
    finally:
        os.close(standing_in)
        os.close(held)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: not enough memory for the annotation files (")
    assert "ulimit -v" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_open_files(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detr_container", "train", "debug", *settings_of(tiny(root, data__workers=8))]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 2, done.stderr
    assert "ulimit -n 4096" in done.stderr
    assert "data.workers" in done.stderr
    assert "Traceback" not in done.stderr


def numpy_array() -> Any:
    return np.ones((2**40, 2**10))


def size_without_number() -> Any:
    return torch.empty(2**62, 2**62)


def allocator() -> Any:
    return torch.empty(2**50)


def no_files() -> Any:
    raise OSError(24, os.strerror(24), "x")


@pytest.mark.parametrize("take", [numpy_array, size_without_number, allocator, no_files])
def test_what_libraries_raise(take: Any) -> None:
    lack = "too many open files" if take is no_files else "not enough memory"
    with (
        pytest.raises(
            ShortageError, match=rf"{lack} for the whole \(.+\): lower what asks for it, a\.b=3, or"
        ) as raised,
        asking("outer", {}),
        asking("the whole", {"a.b": 3}),
    ):
        take()
    assert out_of_memory(raised.value) is (take is not no_files)
    assert "\n" not in str(raised.value)


def test_other_errors_pass() -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(2, "x"), ValueError("no"), KeyError("no")):
        with pytest.raises(type(error)) as passed, asking("it", {}):
            raise error
        assert passed.value is error
