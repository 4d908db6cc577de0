"""The largest batch that a schedule can draw, the memory that a training step on it takes, and the time of a run.

Run as a program, this is the process in which a step on a CPU is tried: the system ends a process that asks for more
memory than there is, and that had better not be the one that has to tell.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from detr_container.base.files import write_json
from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import out_of_memory
from detr_container.config import settings as config
from detr_container.config.detection import DataConfig, DetectionExperiment, DetectionTrainConfig, detection
from detr_container.datasets.annotations import Annotations, load_json, read_annotations
from detr_container.datasets.batch import Batch, Targets
from detr_container.datasets.dataset import DetectionDataset
from detr_container.datasets.loader import steps_per_epoch
from detr_container.datasets.transforms import LARGEST_ASPECT
from detr_container.engine.peak_memory import GIB
from detr_container.engine.session import Session, session
from detr_container.tasks.detection.build import Data, open_data

from .probe import Probe

Sides = NDArray[np.int64]
SMALL = 64
"""Side in pixels of the pictures on which the optimiser's state comes into being, before the step that is measured."""
_SHIFT = 1 << 24
_KILLED = 128 + signal.SIGKILL


class DoesNotFitError(RuntimeError):
    """A training step needs more memory than there is, or than it may have."""


# -- the largest batch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Largest:
    """The largest micro batch: its padded height and width in pixels, and how many objects each of its pictures has.

    padded: whether its pictures can be smaller than itself, so that the model needs masks.
    """

    height: int
    width: int
    objects: tuple[int, ...]
    padded: bool


def largest_batch(annotations: Annotations, data: DataConfig, micro_batch: int, multiple: int = 1) -> Largest:
    """The micro batch with most pixels that training on these pictures can draw; it may be a rare one.

    multiple: what the model pads to, in pixels. Raises ValueError when a picture can come out larger than the canvas.
    """
    sizes, counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    tall, wide, joint = (each.repeat(counts.clip(max=2)) for each in _reach(sizes, data, multiple))
    if max(tall.max(), wide.max()) > data.canvas > 0:
        raise ValueError(
            f"pictures can come out {tall.max()} pixels high and {wide.max()} wide, which does not fit "
            f"data.canvas={data.canvas}: raise data.canvas, or lower data.max_size or data.scales"
        )
    area, height = divmod(int(joint.max()), _SHIFT)
    shapes = [(height, area // height)]
    if micro_batch > 1:
        # Height and width of a batch can come from two pictures.
        highest, widest = np.argsort(-tall)[:2].tolist(), np.argsort(-wide)[:2].tolist()
        shapes += [(int(tall[i]), int(wide[j])) for i in highest for j in widest if i != j]
    if data.canvas:
        shapes = [(data.canvas, data.canvas)]
    padded = [(-(-height // multiple) * multiple, -(-width // multiple) * multiple) for height, width in shapes]
    shape = max(padded, key=lambda size: size[0] * size[1])
    alike = len(set(data.scales)) == 1 and (data.resize == "square" or (data.augment != "detr" and len(sizes) == 1))
    loose = micro_batch > 1 or multiple > 1 or data.canvas > 0
    masked = loose and not (alike and shape == (tall.max(), wide.max()))
    return Largest(*shape, _fullest(annotations, micro_batch), masked)


def _fullest(annotations: Annotations, pictures: int) -> tuple[int, ...]:
    """How many objects the pictures with most of them have, counted as in training."""
    image = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.starts))
    single = ~annotations.crowd & np.all(annotations.boxes[:, 2:] > 0, axis=1)
    counts = np.bincount(image[single], minlength=max(pictures, len(annotations.image_ids)))
    return tuple(np.sort(counts)[::-1][:pictures].tolist())


def _reach(sizes: Sides, data: DataConfig, multiple: int) -> tuple[Sides, Sides, Sides]:
    """What can come out of pictures of these sizes [P, 2]: see `_most`, [P] each."""
    heights, widths = sizes.T
    found = [_most(heights, widths, data, multiple)]
    if data.augment == "detr":
        before = [_resized(heights, widths, scale, LARGEST_ASPECT * scale) for scale in set(data.crop_resize)]
        least = data.crop_range[0]
        side = min(data.crop_range[1], max(int(max(high.max(), broad.max())) for high, broad in before))
        # Every crop of up to this side; then, along both sides, the best of all crops that the same picture can have.
        lengths = np.arange(1, side + 1)
        crop_heights, crop_widths = np.meshgrid(lengths, lengths, indexing="ij")
        tables = _most(crop_heights, crop_widths, data, multiple)
        for table in tables:
            for axis in (0, 1):
                choice = table.swapaxes(0, axis)[least - 1 :]
                np.maximum.accumulate(choice, axis=0, out=choice)
        for high, broad in before:
            at = np.minimum(high, side) - 1, np.minimum(broad, side) - 1
            found.append((tables[0][at], tables[1][at], tables[2][at]))
    tall, wide, joint = (np.maximum.reduce(each) for each in zip(*found, strict=True))
    return tall, wide, joint


def _most(heights: Sides, widths: Sides, data: DataConfig, multiple: int) -> tuple[Sides, Sides, Sides]:
    """The greatest height and width in pixels over all scales, and the greatest size after padding.

    The last is one number, so that it can be compared: the area times `_SHIFT`, plus the height.
    """
    tall, wide, joint = (np.zeros(heights.shape, np.int64) for _ in range(3))
    for scale in set(data.scales):
        if data.resize == "square":
            height, width = np.full_like(heights, scale), np.full_like(widths, scale)
        else:
            height, width = _resized(heights, widths, scale, data.max_size)
        np.maximum(tall, height, out=tall)
        np.maximum(wide, width, out=wide)
        height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        np.maximum(joint, height * width * _SHIFT + height, out=joint)
    return tall, wide, joint


def _resized(heights: Sides, widths: Sides, shorter: int, max_size: int) -> tuple[Sides, Sides]:
    """`transforms.shortest_size` of arrays."""
    short, long = np.minimum(heights, widths), np.maximum(heights, widths)
    limited = np.maximum(1, np.rint(max_size * short / long)).astype(np.int64)
    small = np.where(long / short * shorter > max_size, limited, shorter)
    large = (small * long / short).astype(np.int64)
    return np.where(heights <= widths, small, large), np.where(widths <= heights, small, large)


def few_pictures(dataset: DetectionDataset, count: int, path: Path) -> DetectionDataset:
    """So many pictures of a data set, those that make its largest batch in front; `path` gets their annotation file."""
    every = range(len(dataset))
    sizes = [dataset.plan((0, index)).size for index in every]
    highest, widest = (max(every, key=lambda index: sizes[index][side]) for side in (0, 1))
    chosen = dataset.annotations.image_ids[list(dict.fromkeys([highest, widest, *every]))[:count]].tolist()
    # Pictures are read in the order of their ids.
    renamed = {image_id: place for place, image_id in enumerate(chosen)}
    content = load_json(dataset.annotations.path)
    content["images"] = [{**image, "id": renamed[image["id"]]} for image in content["images"] if image["id"] in renamed]
    content["annotations"] = [
        {**record, "image_id": renamed[record["image_id"]]}
        for record in content["annotations"]
        if record["image_id"] in renamed
    ]
    write_json(path, content)
    annotations = read_annotations(path, dataset.annotations.image_dir)
    return DetectionDataset(annotations, dataset.augmentation, dataset.seed, dataset.apply_orientation)


# -- time -------------------------------------------------------------------------------------------------------------


def run_parts(
    train: DetectionTrainConfig, pictures: int, step: float, evaluation: float = 0.0, save: float = 0.0
) -> dict[str, tuple[int, float]]:
    """How often a whole run does what, and for how many seconds in all; what takes 0 seconds is left out.

    pictures: of the training set; step, evaluation, save: seconds that each takes once.
    """
    epoch_steps = steps_per_epoch(pictures, train.batch)
    every = train.epochs * epoch_steps
    steps = min(every, train.max_steps or every)
    epochs = steps // epoch_steps
    evaluations = epochs // train.eval_every if train.eval_every else 0
    # The last epoch is always evaluated.
    evaluations += bool(train.eval_every and steps == every and epochs % train.eval_every)
    busy = steps * step + evaluations * evaluation
    saves = epochs + (int(busy / 60 / train.checkpoint_minutes) if train.checkpoint_minutes else 0)
    saves += bool(steps % epoch_steps)
    parts = {"steps": (steps, step), "evaluations": (evaluations, evaluation), "checkpoints": (saves, save)}
    return {name: (count, count * seconds) for name, (count, seconds) in parts.items() if seconds}


# -- memory -----------------------------------------------------------------------------------------------------------


def step_memory(
    experiment: DetectionExperiment,
    data: Data,
    largest: Largest,
    folder: Path,
    here: Session,
    stop: StopRequest,
    limit: float = 0.0,
) -> tuple[float, float]:
    """Bytes that a training step on the largest batch takes at most, and bytes that there are for it.

    limit: let it have so many bytes; 0: what is free. On a GPU the step is made here; on a CPU in a process of its own,
    where what the interpreter and the annotations take counts as well. Raises DoesNotFitError, and InterruptedError
    when a stop was requested while that process was at work.
    """
    if here.device.type == "cpu":
        room = limit or free_memory()
        return _in_process(experiment, largest, folder, room, stop), room
    free, whole = torch.cuda.mem_get_info()
    room = min(limit or free, free)
    torch.cuda.set_per_process_memory_fraction(room / whole)
    try:
        _take_step(experiment, data, largest, folder, here)
        return torch.cuda.max_memory_reserved(), room
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(room) from error
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def _does_not_fit(room: float) -> DoesNotFitError:
    return DoesNotFitError(f"more than the {room / GIB:.2f} GiB that there are")


def made_batch(largest: Largest, classes: int, seed: int = 0) -> Batch:
    """A micro batch of random pixels and objects."""
    generator = torch.Generator().manual_seed(seed)
    count, height, width = len(largest.objects), largest.height, largest.width
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[height, width]] * count)
    sizes[0] -= int(largest.padded)
    objects = sum(largest.objects)
    boxes = torch.rand(objects, 4, generator=generator) * 0.4 + 0.1
    labels = torch.randint(0, classes, (objects,), generator=generator)
    targets = Targets(labels, boxes, largest.objects)
    shapes = tuple((height, width) for _ in range(count))
    return Batch(pixels.permute(0, 3, 1, 2), sizes, targets, tuple(range(count)), shapes, largest.padded)


def _take_step(experiment: DetectionExperiment, data: Data, largest: Largest, folder: Path, here: Session) -> None:
    """One step as `train` makes it, after one on small pictures."""
    probe = Probe(with_random_weights(experiment), folder, data, here)
    multiple = probe.size_multiple
    side = -(-SMALL // multiple) * multiple
    classes, turns = len(data.classes), min(2, probe.sampler.accumulation)
    small = made_batch(replace(largest, height=side, width=side), classes)
    large = made_batch(largest, classes)
    probe.step_on([small])
    if here.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # With a second micro batch there are gradients beside the features, as in every later one.
    probe.step_on([large] * turns)


def with_random_weights(experiment: DetectionExperiment) -> DetectionExperiment:
    """The same experiment, which then needs no file of weights."""
    return replace(experiment, init="", backbone=replace(experiment.backbone, weights="none"))


def free_memory() -> int:
    """Bytes that can still be taken on this machine, of what this process may take at most."""
    return int(min(psutil.virtual_memory().available, *cgroup_limits(), sys.maxsize))


def cgroup_limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that this process's control groups let it have, as Slurm and containers set them; old and new kind."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            # Where there is no limit the file says `max`; where a container shows only its own groups there is none.
            with suppress(OSError, ValueError):
                yield int((folder / name).read_text())
            if folder == top:
                break


def _in_process(experiment: DetectionExperiment, largest: Largest, folder: Path, room: float, stop: StopRequest) -> int:
    """Take the step in another process, which is ended when it has more than `room` bytes. Returns its peak.

    An interrupt must be a request: as an exception it could come between the start of the process and the care for it.
    """
    folder.mkdir(parents=True)
    said = folder / "said"
    request = {"experiment": config.to_dict(experiment), "largest": asdict(largest), "folder": str(folder / "run")}
    command = [sys.executable, "-m", __name__]
    with (
        said.open("wb") as output,
        subprocess.Popen(command, 0, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):
                # Left open: that it closes tells the other process that this one is gone.
                process.stdin.write(json.dumps(request).encode() + b"\n")
            _wait(process, room, stop)
        finally:
            process.kill()
            process.wait()
    if stop.requested is not None:
        raise InterruptedError(stop.requested)
    last = (said.read_text(errors="replace").splitlines() or [""])[-1]
    if process.returncode == 0 and last.isdigit():
        return int(last)
    if process.returncode in (-signal.SIGKILL, _KILLED):
        raise _does_not_fit(room)
    raise RuntimeError(f"the process that tried a step ended with status {process.returncode}: {last}")


def _wait(process: subprocess.Popen[bytes], room: float, stop: StopRequest) -> None:
    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(process.pid)
        while process.poll() is None and stop.requested is None:
            if other.memory_info().rss > room:
                process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


def main() -> int:
    """Take the step that standard input describes, and print its peak memory."""
    _first_to_go()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    experiment = detection(config.from_dict(request["experiment"]))
    largest = Largest(**{**request["largest"], "objects": tuple(request["largest"]["objects"])})
    with session("cpu") as here:
        try:
            _take_step(experiment, open_data(experiment), largest, Path(request["folder"]), here)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return _KILLED
    sys.stdout.write(f"{round(here.peak_memory() * GIB)}\n")
    return 0


def _first_to_go() -> None:
    """Be the process that the system ends when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
