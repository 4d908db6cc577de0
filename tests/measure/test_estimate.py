"""The largest batch, the memory of a step on it, and the time of a run: against naive counts and real processes."""

import io
import json
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import environment, tiny

from detr_container.base import trial_process
from detr_container.base.interrupt import StopRequest
from detr_container.base.trial_process import cgroup_limits
from detr_container.config.detection import DataConfig, DetectionTrainConfig
from detr_container.config.settings import to_dict
from detr_container.datasets.annotations import Annotations, Category, read_annotations
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.transforms import Augmentation
from detr_container.engine.session import open_session
from detr_container.engine.trials import Largest, trials_of
from detr_container.measure import estimate
from detr_container.measure.estimate import DoesNotFitError, run_parts
from detr_container.tasks.detection.build import open_data, training_augmentation
from detr_container.tasks.detection.largest import LargestBatch, few_images, largest_batch, synthetic_batch


def annotations(sizes: list[tuple[int, int]]) -> Annotations:
    """Images of these sizes without objects."""
    none, count = np.zeros(0, np.int64), len(sizes)
    return Annotations(
        path=Path("none"),
        image_dir=Path("none"),
        categories=(Category(1, "thing"),),
        image_ids=np.arange(count),
        file_names=tuple(map(str, range(count))),
        sizes=np.array(sizes, np.int64),
        boxes=np.zeros((0, 4)),
        labels=none,
        crowd=none.astype(bool),
        areas=none.astype(float),
        annotation_ids=none,
        starts=np.zeros(count + 1, np.int64),
    )


def settings(draw: random.Random) -> DataConfig:
    least = draw.randint(5, 40)
    return DataConfig(
        augment=draw.choice(("detr", "detr", "flip", "none")),
        resize=draw.choice(("shortest", "shortest", "square")),
        scales=tuple(draw.sample(range(20, 60), draw.randint(1, 3))),
        max_size=draw.randint(40, 90),
        crop_resize=tuple(draw.sample(range(15, 50), draw.randint(1, 2))),
        crop_range=(least, least + draw.randint(0, 15)),
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_largest_batch_is_reached_and_never_exceeded(seed: int) -> None:
    """By drawing what the augmentation makes of a few images, thousands of times."""
    draw = random.Random(seed)
    sizes = [(draw.randint(4, 120), draw.randint(4, 120)) for _ in range(draw.randint(2, 4))]
    sizes = [sizes[0], *sizes] if seed % 2 else [sizes[0], sizes[0]] if seed % 4 == 0 else sizes
    data, multiple = settings(draw), draw.choice((1, 8, 32))
    augmentation = training_augmentation(data)
    drawn = [{augmentation.draw(draw, size).size for _ in range(4000)} for size in sizes]

    def area(height: int, width: int) -> int:
        return (-(-height // multiple) * multiple) * (-(-width // multiple) * multiple)

    one = max(area(*size) for each in drawn for size in each)
    two = max(
        area(max(a[0] for a in drawn[i]), max(b[1] for b in drawn[j]))
        for i in range(len(sizes))
        for j in range(len(sizes))
        if i != j
    )
    for micro_batch, seen in ((1, one), (2, max(one, two))):
        largest = largest_batch(annotations(sizes), data, micro_batch, multiple)
        assert largest.height * largest.width >= seen
        assert seen >= 0.97 * largest.height * largest.width
        assert largest.height % multiple == largest.width % multiple == 0


def test_the_largest_batch_of_the_published_schedule() -> None:
    mixed = annotations([(480, 640), (640, 480)])
    assert largest_batch(mixed, DataConfig(), 2) == LargestBatch(1250, 1250, (0, 0), True)
    assert largest_batch(annotations([(480, 640)] * 2), DataConfig(augment="none"), 2).height == 800
    assert largest_batch(annotations([(480, 640)] * 2), DataConfig(), 2) == LargestBatch(1250, 1250, (0, 0), True)
    one = largest_batch(annotations([(480, 640)]), DataConfig(), 1)
    assert (sorted((one.height, one.width)), one.padded) == ([800, 1250], False)


@pytest.mark.parametrize(
    ("changed", "multiple", "padded"),
    [
        ({"scales": (64,), "augment": "flip"}, 1, False),
        ({"scales": (64,), "augment": "flip"}, 48, True),
        ({"scales": (64, 32), "augment": "flip"}, 1, True),
        ({"scales": (64,), "augment": "detr", "crop_resize": (80,), "crop_range": (40, 60)}, 1, True),
        ({"scales": (64,), "augment": "flip", "canvas": 100}, 1, True),
    ],
)
def test_masks_are_needed_where_images_differ(changed: dict[str, Any], multiple: int, padded: bool) -> None:
    largest = largest_batch(annotations([(100, 100)] * 3), DataConfig(**changed), 2, multiple)
    assert largest.padded == padded
    assert synthetic_batch(largest, 3).padded == padded


def test_a_canvas_is_the_largest_batch_if_everything_fits() -> None:
    images = annotations([(60, 80), (60, 120)])
    canvas = DataConfig(scales=(50,), augment="none", canvas=100)
    assert largest_batch(images, canvas, 2, 32) == LargestBatch(128, 128, (0, 0), True)
    with pytest.raises(ValueError, match=r"50 pixels high and 100 wide, which does not fit data\.canvas=99"):
        largest_batch(images, replace(canvas, canvas=99), 2, 32)


def test_the_largest_batch_has_the_fullest_images(root: Path) -> None:
    experiment = tiny(root)
    train = open_data(experiment).train
    counts = sorted((len(train.objects(index)[0]) for index in range(len(train))), reverse=True)
    largest = largest_batch(train.annotations, experiment.data, 3, 32)
    assert largest == LargestBatch(64, 64, tuple(counts[:3]), False)
    batch = synthetic_batch(largest, 6)
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.targets.counts == tuple(counts[:3])


def test_few_images_start_with_the_largest_batch(root: Path, tmp_path: Path) -> None:
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    for image, (height, width) in zip(
        content["images"], [(99, 99), (80, 99), (99, 99), (99, 70), (99, 99)], strict=True
    ):
        image.update(height=height, width=width)
    for record in content["annotations"]:
        record["bbox"] = [1, 1, 5, 5]
    (tmp_path / "val.json").write_text(json.dumps(content))
    whole = DetectionDataset(read_annotations(tmp_path / "val.json", root), Augmentation((50,), 1000, augment="none"))
    few = few_images(whole, 3, tmp_path / "few.json")
    assert [few.plan((0, index)).size for index in range(3)] == [(70, 50), (50, 61), (50, 50)]
    for place, old in enumerate((3, 1, 0)):
        assert few.annotations.file_names[place] == whole.annotations.file_names[old]
        assert torch.equal(few.objects(place)[1], whole.objects(old)[1])


def test_memory_grows_with_the_batch(root: Path, tmp_path: Path) -> None:
    program = f"""
import json, sys
from pathlib import Path
from detr_container.config import settings as config
from detr_container.measure import estimate
from detr_container.engine.session import open_session
from detr_container.base import trial_process
from detr_container.base.interrupt import StopRequest
from detr_container.base.trial_process import cgroup_limits
from detr_container.engine.trials import Largest, trials_of
trials = trials_of(config.from_dict(json.loads(sys.argv[1])["experiment"]))
with open_session("cpu") as session:
    for side in (64, 512):
        large = {{"height": side, "width": side, "objects": (9, 2), "padded": True}}
        largest = Largest("", "", large, {{**large, "height": 64, "width": 64}})
        estimate._take_step(trials, largest, Path({str(tmp_path)!r}, str(side)), session)
        print(round(session.peak_memory() * 2**30))
"""
    command = [sys.executable, "-c", program, request(root, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    small, large = map(int, done.stdout.split())
    assert small > 100 * 2**20
    assert large - small > 50 * 2**20


@pytest.mark.parametrize(
    ("script", "error", "why"),
    [
        ("kill -KILL $$", DoesNotFitError, "more than the 1.00 GiB that there are"),
        (f"exit {128 + signal.SIGKILL}", DoesNotFitError, "more than"),
        ("echo hm; echo 'ValueError: odd'; exit 3", RuntimeError, "ended with status 3: ValueError: odd"),
        ("exit 0", RuntimeError, "ended with status 0: $"),
    ],
)
def test_a_process_that_does_not_come_back(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[Exception], why: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    largest = Largest("", "", {}, {})
    with open_session("cpu") as session, pytest.raises(error, match=why):
        estimate.step_memory(trials_of(tiny(root)), largest, tmp_path / "x", session, StopRequest(), float(2**30))


def test_the_process_that_tries_reports_that_it_could_not_allocate(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(estimate, "_take_step", full)
    monkeypatch.setattr(trial_process, "_end_with_parent", lambda: None)
    monkeypatch.setattr(trial_process, "_first_to_go", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(request(root, tmp_path) + "\n"))
    assert estimate.main() == 128 + signal.SIGKILL


def request(root: Path, folder: Path) -> str:
    batch = asdict(LargestBatch(64, 64, (1, 1), padded=False))
    largest = Largest("", "", batch, batch)
    return json.dumps({"experiment": to_dict(tiny(root)), "largest": asdict(largest), "folder": str(folder / "run")})


def test_the_process_that_tries_ends_with_its_parent(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detr_container.measure.estimate"]
    done = subprocess.run(
        command, input=request(root, tmp_path) + "\n", capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_limits_of_control_groups_old_and_new(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "groups"
    membership.write_text("4:memory:/job/step\n3:cpuset:/\n0::/slurm/job\n")
    files = {
        "memory/job/step/memory.limit_in_bytes": "9223372036854771712",
        "memory/job/memory.limit_in_bytes": "3000",
        "memory.limit_in_bytes": "1",
        "slurm/job/memory.max": "max",
        "slurm/memory.max": "2000",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    assert sorted(cgroup_limits(membership, root)) == [2000, 3000, 9223372036854771712]
    assert list(cgroup_limits(tmp_path / "absent", root)) == []


@pytest.mark.parametrize("epochs", [1, 4, 5])
@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("most", [0, 9])
def test_the_parts_of_a_run_are_counted_as_the_loop_makes_them(epochs: int, every: int, most: int) -> None:
    train = DetectionTrainConfig(epochs=epochs, batch=4, eval_every=every, max_steps=most, checkpoint_minutes=0.0)
    steps = evaluations = 0
    saves = set()
    for step in range(1, (most or epochs * 4) + 1):
        if step > epochs * 4:
            break
        steps = step
        if step % 4 == 0:
            saves.add(step)
            evaluations += bool(every and ((step // 4) % every == 0 or step == epochs * 4))
    saves.add(steps)
    parts = run_parts(train, 18, 2.0, 3.0, 5.0)
    assert parts.pop("steps") == (steps, 2.0 * steps)
    assert parts.pop("evaluations") == (evaluations, 3.0 * evaluations)
    assert parts == {"checkpoints": (len(saves), 5.0 * len(saves))}
