"""Loader processes that find no room in /dev/shm: waited for, reported, and ended when a run is asked to stop.

Batches go there only where they do not fit into the slots made for them, of which there are none here but where stated.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LITTLE_ROOM = """
import pathlib, sys, time
from detr_container.datasets import handover, loader
from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.transforms import Augmentation

loader.WAIT = 2
if sys.argv[3] == "no slots":
    handover.MOST = 0

if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    augmentation = Augmentation((int(sys.argv[2]),), int(sys.argv[2]), resize="square")
    file = root / "annotations" / "instances_train2017.json"
    dataset = DetectionDataset(read_annotations(file, root / "train2017"), augmentation)
    steps = loader.StepBatches(len(dataset), seed=0, batch=4, micro_batch=4, total_steps=12)
    try:
        for _ in loader.batches(loader.training_loader(dataset, steps, workers=2)):
            time.sleep(0.05)
    except OSError as error:
        sys.exit(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "slots", "full"),
    [
        pytest.param(300, "no slots", False, marks=pytest.mark.long),
        (1100, "no slots", True),
        (1100, "slots", False),
    ],
)
def test_little_shared_memory_is_waited_for_and_none_is_reported(
    root: Path, repository: Path, tmp_path: Path, side: int, slots: str, full: bool
) -> None:
    """With 8 MiB of it: batches of 1 MiB fit one after the other, and one of 14 MiB never does; slots need none."""
    mount = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small /dev/shm")
    (tmp_path / "run.py").write_text(LITTLE_ROOM)
    command = [sys.executable, str(tmp_path / "run.py"), str(root), str(side), slots]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == int(full), done.stderr[-2000:]
    if full:
        assert "shared memory (/dev/shm) is full, where 8 MiB are free" in done.stderr
        assert "docker run --shm-size" in done.stderr


ASKED_TO_STOP = """
import os, signal, sys
import psutil
from detr_container.commands import cli
from detr_container.engine.trainer import Trainer
from detr_container.datasets import handover, loader

handover.MOST, loader.WAIT = 0, 600
asked = Trainer._ends


def ends(self, short):
    if short:
        os.kill(os.getpid(), signal.SIGTERM)
    return asked(self, short)


Trainer._ends = ends
if __name__ == "__main__":
    status = cli.main(sys.argv[1:])
    left = [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    print(status, len(left))
"""


@pytest.mark.long
def test_a_run_without_shared_memory_is_saved_when_asked_to_stop(repository: Path, tmp_path: Path) -> None:
    """Sooner than it gives up by itself, and its loader processes end with it."""
    mount = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small /dev/shm")
    (tmp_path / "run.py").write_text(ASKED_TO_STOP)
    line = "train debug --data.make-shapes 4 1 64 --data.scales 1100 --data.max-size 1100 --data.workers 2 --device cpu"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "run.py", *line.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "143 0\n", done.stderr[-2000:]
    assert "interrupted (SIGTERM): saved at step 0 of 2" in done.stderr
    assert len(list((tmp_path / "runs" / "debug" / "checkpoints").iterdir())) == 1
