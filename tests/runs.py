"""What the tests of whole runs share: one small data set, one tiny experiment, and ways to run, stop and compare it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch

from detr_container.commands.cli import main
from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named
from detr_container.config.settings import Experiment, to_dict
from detr_container.datasets.shapes import make_shapes
from detr_container.engine.checkpoint import load
from detr_container.engine.run import Run
from detr_container.engine.same import differences, run_differences
from detr_container.engine.train import train

E = TypeVar("E", bound=Experiment)
REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN, VAL, SIDE = 16, 5, 64
"""Four steps of four images an epoch; image 6 (at index 5) has no object, images 4 and 12 have a crowd."""
DRAWING = {
    "detr_container.tasks.detection.task": "draw_validation",
    "detr_container.tasks.classification.task": "draw_predictions",
}
"""What draws the images of an evaluation, by the task's module."""

# Whatever could carry a state from one step to the next: dropout, drop-path, accumulation, averages, batch statistics.
HARD: dict[str, Any] = {
    "head__dropout": 0.1,
    "backbone__drop_path": 0.1,
    "backbone__norm": "batch",
    "train__ema_decay": 0.9,
    "train__warmup_steps": 2,
    "data__augment": "detr",
    "data__crop_resize": (48, 64),
    "data__crop_range": (32, 60),
    "data__scales": (48, 64),
}


def shapes_folder(factory: pytest.TempPathFactory) -> Path:
    """The data set of all runs, made once in a test session."""
    folder = factory.getbasetemp() / "shapes"
    if not folder.exists():
        make_shapes(folder, TRAIN, VAL, SIDE, workers=0)
    return folder


def tiny(root: Path, **changed: Any) -> DetectionExperiment:
    """`debug` made smaller: two epochs of four steps. changed: settings as `train__epochs=1` or `seed=3`."""
    experiment = named("debug").experiment
    settings: dict[str, Any] = {
        "data__root": root,
        "data__make_shapes": (0, 0, 0),
        "data__workers": 0,
        "data__eval_batch": 2,
        "train__log_every": 2,
        "train__checkpoint_minutes": 0.0,
        "device": "cpu",
        **changed,
    }
    return with_settings(experiment, **settings)


def with_settings(experiment: E, **changed: Any) -> E:
    """The same experiment under other settings, named as for `tiny`."""
    for name, value in changed.items():
        section, _, key = name.partition("__")
        new = replace(getattr(experiment, section), **{key: value}) if key else value
        experiment = replace(experiment, **{section: new})
    return experiment


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine, threads with so little to do wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_in(folder: Path, experiment: Experiment, images: bool = False) -> int:
    """`train` on one thread; returns its exit status. images: also draw, which costs more than all the steps."""
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        if not images:
            patch.setattr("detr_container.engine.trainer.plot_curves", lambda *_: None)
            if drawing := DRAWING.get(experiment.module):
                patch.setattr(f"{experiment.module}.{drawing}", lambda *_: None)
        return train(experiment, folder)


def final_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run, which must be readable."""
    return load(Run(folder).checkpoints().paths()[0])


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal to the last bit, tensors within dicts and lists included."""
    found = list(differences(a, b, where))
    assert not found, "\n".join(found)


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs ended with the same weights, optimizer, averages, metrics, evaluations and detections, bit for bit."""
    found = run_differences(a, b)
    assert not found, "\n".join(found)


def when(condition: Callable[[], bool], act: Callable[[], None], seconds: float = 60) -> threading.Thread:
    """Watch for a condition from another thread, then act once."""

    def watch() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                act()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def environment(**changed: str) -> dict[str, str]:
    """The environment of a process that runs the repository's code on one thread."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")]))
    wide = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "COLUMNS": "200"}
    return {**os.environ, **wide, **changed}


def start(arguments: Sequence[str | Path], folder: Path, **changed: str) -> subprocess.Popen[str]:
    """A process of the command line, in a group of its own, with its output piped; changed: environment variables."""
    command = [sys.executable, "-m", "detr_container", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**changed),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_command(folder: Path, *arguments: str | Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """One command as `start` starts it, in this process, where nothing has to be imported anew.

    For commands that no signal and no limit is to meet; what they start are processes of their own.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        pytest.MonkeyPatch.context() as patch,
        one_thread(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.chdir(folder)
        for name, value in environment(**changed).items():
            patch.setenv(name, value)
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        outputs = []
        for stream in (out, err):
            stream.seek(0)
            outputs.append(stream.read())
    return subprocess.CompletedProcess(arguments, status, *outputs)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait until a condition holds; fails when the process ends before, or after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            out, err = process.communicate()
            pytest.fail(f"the process ended with status {process.returncode} too early:\n{out}\n{err}")
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.005)


def environment_of(pid: int) -> dict[str, str]:
    """A process's environment as the system shows it, which for an instant after the start is none."""
    while not (found := psutil.Process(pid).environ()):
        time.sleep(0.01)
    return found


def settings_of(experiment: DetectionExperiment) -> list[str]:
    """The options that turn `debug` into this experiment on the command line."""
    from detr_container.config.settings import difference

    options = []
    for name, (_, value) in difference(named("debug").experiment, experiment).items():
        values = value if isinstance(value, list) else [value]
        options += [f"--{name.replace('_', '-')}", *(str(entry) for entry in values)]
    return options


def train_job(folder: Path, experiment: Experiment, recorded: bool = False) -> dict[str, Any]:
    """What `two_ranks` takes to train a run in a folder; recorded: with steps that are recorded and replayed."""
    return {
        "do": "train",
        "folder": str(folder),
        "experiment": to_dict(experiment),
        "port": free_port(),
        "recorded": recorded,
    }


def two_ranks(folder: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """Do jobs one after the other in one pair of processes; see two_ranks.py. folder: for their logs."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(REPOSITORY / "tests" / "two_ranks.py"), str(folder / "jobs.json")]
    logs = [(folder / f"rank-{rank}.txt").open("w+") for rank in range(2)]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=folder, env=environment(), stdout=logs[rank], stderr=logs[rank])
        for rank in range(2)
    ]
    end = time.monotonic() + 300
    try:
        # One that has failed leaves the other waiting for it.
        while any(process.poll() is None for process in ranks) and not any(process.poll() for process in ranks):
            assert time.monotonic() < end
            time.sleep(0.05)
        statuses = [process.poll() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    texts = [log.seek(0) or log.read() for log in logs]
    assert statuses == [0, 0], "\n--- rank 1 ---\n".join(texts)


def free_port() -> int:
    """A port that nobody listens to, below those that systems give to whoever asks for any: it may be used later."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
