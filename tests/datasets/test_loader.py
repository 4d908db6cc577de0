import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noisy_images import IMAGES, assert_same, make_dataset, steps_of

from detr_container.datasets.batch import Batch
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.loader import StepBatches, batches, evaluation_loader, steps_per_epoch, training_loader
from detr_container.datasets.padding import Padding


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    return make_dataset(tmp_path_factory.mktemp("images"))


@given(
    length=st.integers(1, 60),
    seed=st.integers(-3, 2**40),
    micro=st.integers(1, 3),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    start=st.integers(0, 12),
)
def test_ranks_and_micro_batches_divide_the_same_steps(
    length: int, seed: int, micro: int, world: int, accumulation: int, start: int
) -> None:
    batch, total = micro * world * accumulation, 12
    if length < batch:
        with pytest.raises(ValueError, match=f"batch={batch} .* has {length}"):
            StepBatches(length, seed=seed, batch=batch, micro_batch=micro, total_steps=total, world=world)
        return
    whole = list(StepBatches(length, seed=seed, batch=batch, micro_batch=batch, total_steps=total))
    assert len(whole) == total
    samplers = [
        StepBatches(
            length,
            seed=seed,
            batch=batch,
            micro_batch=micro,
            total_steps=total,
            start_step=start,
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]
    shares = [list(sampler) for sampler in samplers]
    for sampler, share in zip(samplers, shares, strict=True):
        assert sampler.accumulation == accumulation
        assert len(share) == len(sampler) == (total - start) * accumulation
        assert all(len(keys) == micro for keys in share)
    for step in range(start, total):
        micro_steps = range((step - start) * accumulation, (step - start + 1) * accumulation)
        keys = [key for share in shares for micro_step in micro_steps for key in share[micro_step]]
        assert sorted(keys) == sorted(whole[step])
    per_epoch = length // batch
    for epoch in range(-(-total // per_epoch)):
        keys = [key for keys in whole[epoch * per_epoch : (epoch + 1) * per_epoch] for key in keys]
        assert {key[0] for key in keys} == {epoch}
        assert len({key[1] for key in keys}) == len(keys)
        assert all(0 <= index < length for _, index in keys)


def test_epochs_and_seeds_have_their_own_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepBatches(100, seed=seed, batch=100, micro_batch=100, total_steps=epoch + 1, start_step=epoch)
        return [index for _, index in next(iter(sampler))]

    assert sorted(order(0, 0)) == list(range(100))
    orders = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_orders_are_those_of_earlier_versions() -> None:
    # A change here changes what every resumed run sees.
    assert list(steps_of(0, 3)) == [
        [(0, 3), (0, 6)],
        [(0, 1), (0, 9)],
        [(0, 5), (0, 8)],
        [(0, 0), (0, 4)],
        [(1, 2), (1, 10)],
        [(1, 8), (1, 5)],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 12}, "train.batch=12 .* has 11: choose train.batch between 1 and 11"),
        ({"micro_batch": 3}, "multiple of 3"),
        ({"micro_batch": 0}, "train.micro_batch=0"),
        ({"world": 4, "batch": 4}, "multiple of 8"),
        ({"rank": 2, "world": 2}, "ranks count from 0 to 1"),
    ],
)
def test_batches_that_cannot_be_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps_of(0, 3, **change)


def test_a_start_after_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="start at step 4 of 3"):
        steps_of(4, 3)
    assert list(steps_of(3, 3)) == []
    with pytest.raises(ValueError, match="between 1 and 5"):
        steps_per_epoch(5, 0)


def test_workers_and_resumption_change_nothing(dataset: DetectionDataset) -> None:
    before = torch.get_rng_state()
    alone = list(batches(training_loader(dataset, steps_of(0, 6), padding=Padding(multiple=8))))
    assert len(alone) == 12
    with_workers = list(batches(training_loader(dataset, steps_of(0, 6), padding=Padding(multiple=8), workers=2)))
    assert_same(with_workers, alone)
    resumed = list(batches(training_loader(dataset, steps_of(3, 6), padding=Padding(multiple=8), workers=2)))
    assert_same(resumed, alone[6:])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(side % 8 == 0 for batch in alone for side in batch.images.shape[2:])


def test_ranks_see_the_images_of_one_process(dataset: DetectionDataset) -> None:
    def images(**division: int) -> dict[tuple[int, int], torch.Tensor]:
        seen = {}
        for rank in range(division.get("world", 1)):
            sampler = steps_of(0, 5, **division, rank=rank)
            for number, batch in enumerate(training_loader(dataset, sampler, padding=Padding(canvas=80))):
                for image_id, image in zip(batch.image_ids, batch.images, strict=True):
                    seen[number // sampler.accumulation, image_id] = image
        return seen

    one = images(micro_batch=4)
    assert len(one) == 20
    for division in ({"micro_batch": 1}, {"micro_batch": 2, "world": 2}, {"micro_batch": 1, "world": 2}):
        others = images(**division)
        assert others.keys() == one.keys()
        assert all(torch.equal(others[key], one[key]) for key in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_every_image_once_in_the_same_company(dataset: DetectionDataset, workers: int) -> None:
    alone = [batch.image_ids for batch in evaluation_loader(dataset, batch=2)]
    assert [image_id for image_ids in alone for image_id in image_ids] == list(range(IMAGES))
    for world in (2, 3, 7):
        shares = []
        for rank in range(world) if workers == 0 else range(1):
            loader = evaluation_loader(dataset, batch=2, rank=rank, world=world, workers=workers)
            share = [batch.image_ids for batch in batches(loader)]
            assert share == alone[rank::world]
            assert [batch.image_ids for batch in batches(loader)] == share
            shares += share
        assert workers or sorted(shares) == alone
    with pytest.raises(ValueError, match=r"data\.eval_batch=0"):
        evaluation_loader(dataset, batch=0)


def test_an_unreadable_image_is_reported_plainly_through_a_worker(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    content = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(content[: len(content) // 2])
    messages = []
    for workers in (0, 1):
        loader = training_loader(dataset, steps_of(0, 6), workers=workers)
        with pytest.raises(ValueError, match="image id 7") as caught:
            list(batches(loader))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(str(tmp_path / "7.png"))
    assert "\n" not in messages[0]


def test_other_errors_of_a_worker_keep_their_traceback(dataset: DetectionDataset) -> None:
    loader = training_loader(dataset, steps_of(0, 6), padding=Padding(multiple=0), workers=1)
    with pytest.raises(ZeroDivisionError, match="in collate"):
        list(batches(loader))


def test_negative_workers_are_refused(dataset: DetectionDataset) -> None:
    with pytest.raises(ValueError, match=r"data\.workers=-1"):
        training_loader(dataset, steps_of(0, 6), workers=-1)


def stream_and_worker(dataset: DetectionDataset, steps: int) -> tuple[Generator[Batch, None, None], Any]:
    """A stream of batches of which one was taken, and the process that loads them."""
    before = set(multiprocessing.active_children())
    stream = batches(training_loader(dataset, steps_of(0, steps), workers=1))
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - before
    return stream, worker


def test_workers_leave_signals_to_the_training_process(dataset: DetectionDataset) -> None:
    stream, worker = stream_and_worker(dataset, 60)
    for name in ("INT", "TERM", "USR1", "USR2"):
        # As a terminal or a scheduler would: from a process that is not the worker's parent.
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert len(list(stream)) == 119
    assert worker.is_alive() or worker.exitcode == 0


def test_a_worker_obeys_its_parent(dataset: DetectionDataset) -> None:
    stream, worker = stream_and_worker(dataset, 60)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    stream.close()


def test_workers_end_when_the_stream_is_closed(dataset: DetectionDataset) -> None:
    stream, worker = stream_and_worker(dataset, 60)
    stream.close()
    worker.join(10)
    assert worker.exitcode == 0


def test_nothing_of_a_closed_stream_is_left_to_the_interpreters_exit(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = vars(Queue)["_feed"].__func__

    def slowly(*arguments: Any) -> None:
        feed(*arguments)
        time.sleep(0.2)

    monkeypatch.setattr(Queue, "_feed", staticmethod(slowly))
    stream, _ = stream_and_worker(dataset, 60)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "QueueFeederThread"]


def test_a_killed_worker_is_explained(dataset: DetectionDataset) -> None:
    stream, worker = stream_and_worker(dataset, 600)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"ended unexpectedly .* lower data\.workers"):
        list(stream)


SCRIPT = """
import multiprocessing, os, pathlib, signal, sys
from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.loader import StepBatches, batches, training_loader
from detr_container.datasets.transforms import Augmentation

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    dataset = DetectionDataset(read_annotations(folder / "instances.json", folder), Augmentation((32,), 64))
    steps = StepBatches(len(dataset), seed=0, batch=2, micro_batch=2, total_steps=1000)
    stream = batches(training_loader(dataset, steps, workers=2))
    next(stream)
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_run(dataset: DetectionDataset, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "run.py"), str(dataset.annotations.image_dir)]
    with open(tmp_path / "pids", "w") as output:
        killed = subprocess.run(command, stdout=output, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert killed.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(psutil.pid_exists, workers))
