"""Detections as arrays: joined from ranks, on disk and back, damaged, those that count, and as they were kept."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated
import synthetic_runs
import torch

from detr_container.commands import cli
from detr_container.compare.analysis import analyse
from detr_container.datasets.batch import Batch, Targets
from detr_container.engine.same import run_differences
from detr_container.models.device import Fetched
from detr_container.models.postprocess import Ranked
from detr_container.tasks.detection.coco_results import OLD_NAME, read_kept, records_of
from detr_container.tasks.detection.detections import NAME, Detections, starts_of
from detr_container.tasks.detection.finding import _packed, _Rows
from detr_container.tasks.detection.scoring import score

WORLD = simulated.scene(12, 4, seed=3)
FOUND = simulated.detections(simulated.detect(WORLD, 0.5, seed=4, per_image=9))


def some(found: Detections, places: list[int]) -> Detections:
    """The detections of some images, in this order."""
    rows = [np.arange(found.starts[place], found.starts[place + 1]) for place in places]
    every = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    counts = np.array([len(one) for one in rows], dtype=np.int64)
    return Detections(
        found.image_ids[places],
        starts_of(counts),
        found.scores[every],
        found.labels[every],
        found.boxes[every],
        found.category_ids,
    )


def assert_equal(a: Detections, b: Detections) -> None:
    for (name, one), other in zip(vars(a).items(), vars(b).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None), name


def test_parts_of_ranks_become_one_each_image_once_and_in_order() -> None:
    ids = FOUND.category_ids.tolist()
    parts = [some(FOUND, places) for places in ([0, 3, 6, 9], [1, 4, 7, 10, 0], [], [2, 5, 8, 11, 3, 1])]
    assert_equal(Detections.joined(parts, ids), FOUND)
    nothing = Detections.joined([], ids)
    assert (len(nothing.scores), nothing.starts.tolist()) == (0, [0])
    assert_equal(Detections.joined([FOUND, nothing], ids), FOUND)
    image = int(FOUND.image_ids[4])
    np.testing.assert_array_equal(FOUND.boxes[FOUND.rows_of(image)], some(FOUND, [4]).boxes)
    assert [len(FOUND.scores[FOUND.rows_of(other)]) for other in (image + 1, 10**9, -1)] == [0, 0, 0]


def test_the_file_holds_them_to_the_last_bit_and_the_same_make_the_same_file(tmp_path: Path) -> None:
    for found in (FOUND, Detections.joined([], [7])):
        for name in "ab":
            found.write(tmp_path / name)
        assert_equal(Detections.read(tmp_path / "a"), found)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def packed(**changed: Any) -> bytes:
    """A file with other columns."""
    columns: dict[str, Any] = {**vars(FOUND), "counts": np.diff(FOUND.starts)}
    del columns["starts"]
    file = io.BytesIO()
    np.savez_compressed(file, **{k: v for k, v in {**columns, **changed}.items() if v is not None})
    return file.getvalue()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "labels.npy"),
    "scores of another type": ({"scores": FOUND.scores.astype(np.float64)}, "scores is float64 of shape"),
    "boxes of three sides": ({"boxes": FOUND.boxes[:, :3]}, "boxes is float32 of shape"),
    "boxes by columns": ({"boxes": np.asfortranarray(FOUND.boxes)}, "boxes is float32 of shape"),
    "a single score": ({"scores": np.float32(1)}, r"scores is float32 of shape \(\)"),
    "any objects": ({"scores": np.array([{}, []], dtype=object)}, "scores is object of shape"),
    "a score less": ({"scores": FOUND.scores[1:]}, "not of the same length"),
    "counts of another sum": ({"counts": np.diff(FOUND.starts) + 1}, "counts do not add up to"),
    "counts that overflow": ({"counts": np.full(12, 2**62)}, "counts do not add up to"),
    "a negative count": ({"counts": np.array([-1, 1 + len(FOUND.scores), *[0] * 10])}, "counts do not add up to"),
    "labels of no class": ({"labels": FOUND.labels + 4}, "labels are not those of 4 classes"),
    "images that do not rise": ({"image_ids": FOUND.image_ids[::-1]}, "image ids do not rise"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named_with_its_file(what: str, tmp_path: Path) -> None:
    changed, message = WRONG[what]
    simulated.assert_refused(tmp_path / NAME, packed(**changed), message)


def _read(path: Path, content: bytes) -> Detections:
    path.write_bytes(content)
    return Detections.read(path)


def test_no_damage_is_a_traceback_or_passes_for_detections(tmp_path: Path) -> None:
    whole, path, rng = packed(), tmp_path / NAME, random.Random(5)
    assert_equal(_read(path, whole), FOUND)
    refused = harmless = 0
    for _ in range(400):
        at = rng.randrange(len(whole))
        new = rng.choice([b"", bytes([rng.randrange(256)]), bytes(rng.randrange(256) for _ in range(4))])
        content = whole[:at] + new + whole[at + rng.randrange(5) :] if rng.random() < 0.8 else whole[:at]
        try:
            found = _read(path, content)
        except ValueError as error:
            refused += str(path) in str(error)
        else:
            # The change is in what nothing depends on, such as the time of a member.
            assert_equal(found, FOUND)
            harmless += 1
    assert refused + harmless == 400
    assert refused > 300


def test_a_header_that_claims_more_than_there_is_sets_nothing_aside(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    for content in (header.getvalue(), header.getvalue()[:-40], b"\x93NUMPY\x09\x00", b""):
        with zipfile.ZipFile(io.BytesIO(packed())) as old, zipfile.ZipFile(tmp_path / NAME, "w") as new:
            for name in old.namelist():
                new.writestr(name, content if name == "scores.npy" else old.read(name))
        with pytest.raises(ValueError, match="no file of detections"):
            Detections.read(tmp_path / NAME)


def _kept(ids: list[int], found: Ranked, categories: list[int]) -> Detections:
    """What an evaluation keeps of a batch whose boxes are in pixels already."""
    none = Targets.of_images([torch.zeros(0, dtype=torch.int64)] * len(ids), [torch.zeros(0, 4)] * len(ids))
    images, sizes = torch.zeros(len(ids), 3, 1, 1, dtype=torch.uint8), ((1, 1),) * len(ids)
    batch = Batch(images, torch.tensor(sizes), none, tuple(ids), sizes)
    return _Rows(batch, Fetched(_packed(found))).detections(categories)


def test_a_batch_keeps_what_can_count_and_scores_as_if_it_kept_all(tmp_path: Path) -> None:
    """The hundred best of each class in an image, of three hundred, most of one class and many of equal scores."""
    world = simulated.scene(4, 3, seed=1, objects=40)
    generator = np.random.default_rng(2)
    count, ids = 300, world.ground.images.tolist()
    scores = np.sort(generator.random((4, count)).round(2).astype(np.float32))[:, ::-1].copy()
    labels = generator.choice(3, (4, count), p=[0.8, 0.15, 0.05])
    boxes = np.empty((4, count, 4), dtype=np.float32)
    for place in range(4):
        objects = world.ground.box[world.ground.image == place]
        near = objects[generator.integers(0, len(objects), count)] * generator.normal(1, 0.05, (count, 4))
        boxes[place] = np.concatenate([near[:, :2], near[:, :2] + near[:, 2:]], axis=1)
    found = Ranked(*map(torch.from_numpy, (scores, labels, boxes)), torch.zeros(4, count, dtype=torch.int64))
    categories = world.ground.categories.tolist()
    kept = _kept(ids, found, categories)
    counts = [sum(min(100, int((row == label).sum())) for label in range(3)) for row in labels]
    assert np.diff(kept.starts).tolist() == counts
    assert sum(counts) < 4 * count
    everything: Any = [
        {"image_id": ids[i], "category_id": categories[labels[i, k]], "score": float(scores[i, k])}
        | {"bbox": [x, y, right - x, bottom - y]}
        for i in range(4)
        for k in range(count)
        for x, y, right, bottom in [boxes[i, k].astype(np.float64).tolist()]
    ]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(simulated.annotation_file(world)))
    assert score(path, kept, "faster") == score(path, everything, "faster")
    assert score(path, kept, "pycocotools") == score(path, everything, "pycocotools")
    few = Ranked(*(part[:, :100] for part in (found.scores, found.labels, found.boxes, found.queries)))
    assert np.diff(_kept(ids, few, categories).starts).tolist() == [100] * 4


def test_a_run_of_an_earlier_version_is_read_as_one_of_this(tmp_path: Path) -> None:
    """Its detections are COCO's JSON; the metrics of a report are equal, alone and among runs of this version."""
    world = synthetic_runs.make_data(tmp_path / "data", count=8)
    runs = []
    for seed, old in enumerate((False, True, False, True)):
        experiment = synthetic_runs.experiment_of(tmp_path / "data", "smca", "resnet18", seed)
        runs.append(synthetic_runs.make_run(tmp_path / str(seed), experiment, world, 0.5, draw=seed // 2, old=old))
    last = f"detections/epoch-{synthetic_runs.EPOCHS:03d}"
    assert [[(run / last / name).is_file() for name in (NAME, OLD_NAME)] for run in runs[:2]] == [[1, 0], [0, 1]]
    for one, other in zip(read_kept(runs[0] / last), read_kept(runs[1] / last), strict=True):
        np.testing.assert_array_equal(one, other)
    found = analyse(runs, count=5)
    assert not found.left_out
    results = {result.record.folder: result for arm in found.arms for result in arm.results}
    for new, old_run in ((runs[0], runs[1]), (runs[2], runs[3])):
        np.testing.assert_array_equal(results[new].plain, results[old_run].plain)
        np.testing.assert_array_equal(results[new].resampled, results[old_run].resampled)
        assert results[new].errors == results[old_run].errors
    assert list(records_of(read_kept(runs[0] / last))) == json.loads((runs[1] / last / OLD_NAME).read_text())
    for run in runs[:2]:
        for chosen, epoch in (((), 3), (("--epoch", "2"), 2)):
            assert cli.main(["detections", str(run), str(tmp_path / "out.json"), *chosen]) == 0
            assert json.loads((tmp_path / "out.json").read_text()) == synthetic_runs.records(run, epoch)
        assert cli.main(["detections", str(run / last), str(tmp_path / "out.json")]) == 0
        assert json.loads((tmp_path / "out.json").read_text()) == synthetic_runs.records(run)
        assert cli.main(["detections", str(run), str(tmp_path / "out.json"), "--epoch", "9"]) == 2
    assert cli.main(["detections", str(tmp_path), str(tmp_path / "out.json")]) == 2
    for run in runs:
        (run / "checkpoints").mkdir()
        torch.save({"step": 1, "experiment": {}}, run / "checkpoints" / "checkpoint-00000001.pt")
    assert any("only one of them has" in difference for difference in run_differences(runs[0], runs[1]))
