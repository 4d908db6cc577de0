"""What the processes of a loader are given, and that starting their server costs the training process nothing."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from noisy_images import make_dataset

from detr_container.datasets import workers
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.workers import Sent


def received(sent: Sent) -> Any:
    """What a process gets that is made with it."""
    descriptor = SimpleNamespace(detach=lambda: os.dup(sent._descriptor))
    return workers._received(descriptor, sent._lengths)


def test_a_process_gets_the_data_set_and_arrays_that_all_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path)
    sent = Sent.of(dataset)
    assert len(sent) == len(dataset)
    assert sent[0, 3].image_id == 3
    one, other = received(sent), received(sent)
    assert isinstance(one, DetectionDataset)
    for name, value in vars(dataset.annotations).items():
        mine = getattr(one.annotations, name)
        if isinstance(value, np.ndarray):
            assert np.array_equal(mine, value), name
            assert mine.dtype == value.dtype
            assert mine.flags.aligned
            assert not mine.flags.owndata
        else:
            assert mine == value, name
    one.annotations.boxes[:] = -1
    assert np.array_equal(other.annotations.boxes, dataset.annotations.boxes)
    monkeypatch.delattr(os, "memfd_create")
    assert Sent.of(dataset) is dataset


def test_the_server_can_be_started_before_torch_is_imported(repository: Path) -> None:
    code = (
        "import sys\n"
        "from multiprocessing import forkserver\n"
        "from detr_container.datasets.workers import worker_context\n"
        "worker_context()\n"
        "first = forkserver._forkserver._forkserver_pid\n"
        "worker_context()\n"
        "assert first == forkserver._forkserver._forkserver_pid and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
