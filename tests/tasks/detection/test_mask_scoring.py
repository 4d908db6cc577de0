"""Mask AP: both evaluators against each other and COCO's own tools, by hand, in tables, and in bounded memory."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated
from numpy.typing import NDArray
from pycocotools import mask as coco
from rich.console import Console

from detr_container.base.checked import mistakes
from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.run_lengths import RunLengths
from detr_container.engine.run_files import EvaluationLine, ScoresFile
from detr_container.tasks.detection.coco_results import records_of
from detr_container.tasks.detection.detections import Columns, Detections
from detr_container.tasks.detection.scores import MASK_METRICS, METRICS, MaskScores, Scores, markdown, table
from detr_container.tasks.detection.scoring import Evaluator, read_truth, score, truth_of

EVALUATORS: tuple[Evaluator, ...] = ("faster", "pycocotools")


def save(folder: Path, content: object) -> Path:
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def masks_of(scores: Scores) -> MaskScores:
    assert scores.masks is not None
    return scores.masks


def original(content: dict[str, Any], records: list[Any], chosen: list[int] | None = None) -> list[float]:
    """pycocotools as detectron2 uses it for masks: without boxes, so that a detection is as large as its mask."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content, records = copy.deepcopy((content, records))
    for record in records:
        del record["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        whole = COCO()
        whole.dataset = content
        whole.createIndex()
        evaluation = COCOeval(whole, whole.loadRes(records), "segm")
        if chosen:
            evaluation.params.imgIds = chosen
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: list[float] = evaluation.stats[:6].tolist()
    return stats


@pytest.mark.parametrize("seed", range(6))
def test_both_evaluators_and_cocos_own_tools_agree(tmp_path: Path, seed: int) -> None:
    world = simulated.with_masks(simulated.scene(6, 3, seed, crowds=0.15), seed)
    found = simulated.detect(world, 1.5, seed, per_image=30)
    found = found._replace(masks=simulated.outlines(found.boxes, seed + 50))
    content = simulated.annotation_file(world)
    path, detections = save(tmp_path, content), simulated.detections(found)
    records: Any = list(records_of(detections.columns()))
    fast, reference = (score(path, detections, evaluator) for evaluator in EVALUATORS)
    for name in METRICS:
        assert getattr(fast, name) == pytest.approx(getattr(reference, name), abs=1e-12), name
    expected = [None if value == -1 else value for value in original(content, records)]
    assert list(masks_of(fast).to_dict().values()) == pytest.approx(expected, abs=1e-12)
    assert masks_of(fast).to_dict() == pytest.approx(masks_of(reference).to_dict(), abs=1e-12)
    assert 0.05 < (masks_of(fast).ap or 0) < 0.95
    mean = np.mean([row.ap for row in masks_of(fast).per_class if row.ap is not None])
    assert masks_of(fast).ap == pytest.approx(mean, abs=1e-12)
    # Boxes are scored as they are without masks, and all forms of the same give the same.
    boxes = Detections(**{**vars(detections), "masks": None})
    assert Scores(**{**vars(fast), "masks": None}) == score(path, boxes)
    read = read_annotations(path, tmp_path, segmentations=True)
    assert score(read, detections) == score(path, records) == fast
    assert score(read_annotations(path, tmp_path), detections) == score(path, boxes)
    chosen = world.ground.images[:3].tolist()
    expected = [None if value == -1 else value for value in original(content, records, chosen)]
    some = masks_of(score(path, detections, image_ids=chosen))
    assert list(some.to_dict().values()) == pytest.approx(expected, abs=1e-12)


def block(rows: slice, columns: slice, size: tuple[int, int] = (100, 200)) -> NDArray[np.uint8]:
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[rows, columns] = 1
    return pixels


def truth(masks: list[NDArray[np.uint8]], crowd: tuple[int, ...] = ()) -> dict[str, Any]:
    """One class (id 7), every object on image 1, boxes that are wrong."""
    codes = [coco.encode(np.asfortranarray(one)) for one in masks]
    return {
        "images": [{"id": index, "height": 100, "width": 200} for index in (1, 2)],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "area": float(coco.area(code))}
            | {"iscrowd": int(index in crowd), "segmentation": {**code, "counts": code["counts"].decode()}}
            for index, code in enumerate(codes)
        ],
    }


def found_of(masks: list[NDArray[np.uint8]], scores: list[float]) -> Columns:
    """Detections of that class, with boxes that no object has."""
    count = len(masks)
    return Columns(
        np.ones(count, dtype=np.int64),
        np.full(count, 7),
        np.tile([150.0, 50, 9, 9], (count, 1)),
        np.array(scores),
        RunLengths.of([coco.encode(np.asfortranarray(one)) for one in masks]),
    )


def scored(path: Path, found: Columns, evaluator: Evaluator) -> Scores:
    return score(path, simulated.detections(found), evaluator)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_case_worked_by_hand(tmp_path: Path, evaluator: Evaluator) -> None:
    # Two objects of 50 x 50; the better score is exact, then a miss, then a mask with IoU 40 / 50 = 0.8.
    first, second = block(slice(0, 50), slice(0, 50)), block(slice(0, 50), slice(100, 150))
    near, miss = block(slice(0, 40), slice(100, 150)), block(slice(60, 100), slice(0, 50))
    scores = scored(save(tmp_path, truth([first, second])), found_of([first, miss, near], [0.9, 0.8, 0.7]), evaluator)
    high, low = (51 + 50 * 2 / 3) / 101, 51 / 101
    masks = masks_of(scores)
    assert masks.ap50 == masks.ap75 == pytest.approx(high, abs=1e-9)
    assert masks.ap == pytest.approx((7 * high + 3 * low) / 10, abs=1e-9)
    assert masks.ap_medium == pytest.approx(masks.ap, abs=1e-9)
    assert (masks.ap_small, masks.ap_large) == (None, None)
    assert masks.per_class == ((masks.ap, masks.ap50),)
    assert scores.ap == 0.0


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_crowds_count_for_nothing_and_a_detection_is_as_large_as_its_mask(tmp_path: Path, evaluator: Evaluator) -> None:
    one, crowd = block(slice(0, 50), slice(0, 50)), block(slice(0, 100), slice(100, 200))
    within = [block(slice(10 * k, 10 * k + 9), slice(110, 190)) for k in range(5)]
    path = save(tmp_path, truth([one, crowd], crowd=(1,)))
    masks = masks_of(scored(path, found_of([*within, one], [0.9, 0.8, 0.7, 0.6, 0.55, 0.5]), evaluator))
    assert masks.ap == pytest.approx(1.0)
    # By its box it would be small, and not count among those of medium size.
    stray = block(slice(60, 100), slice(0, 40))
    masks = masks_of(scored(path, found_of([stray, one], [0.9, 0.8]), evaluator))
    assert masks.ap_medium == pytest.approx(0.5)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detections_are_zeros_and_empty_masks_miss(tmp_path: Path, evaluator: Evaluator) -> None:
    one = block(slice(0, 50), slice(0, 50))
    path = save(tmp_path, truth([one]))
    nothing = Detections.joined([simulated.detections(found_of([one], [0.5]))], [7])
    nothing = Detections(
        nothing.image_ids[:0], np.zeros(1, dtype=np.int64), nothing.scores[:0], nothing.labels[:0], nothing.boxes[:0],
        nothing.category_ids, RunLengths.of([]),
    )  # fmt: skip
    assert masks_of(score(path, nothing, evaluator)).to_dict() == {
        **dict.fromkeys(MASK_METRICS, 0.0), "mask_ap_small": None, "mask_ap_large": None,
    }  # fmt: skip
    assert masks_of(scored(path, found_of([np.zeros_like(one)], [0.5]), evaluator)).ap == 0.0
    assert masks_of(scored(save(tmp_path, truth([])), found_of([one], [0.5]), evaluator)).ap is None


def test_polygons_and_both_kinds_of_codes_are_the_same_truth(tmp_path: Path) -> None:
    pixels = block(slice(10, 60), slice(20, 90))
    codes = truth([pixels])
    runs, polygons = copy.deepcopy(codes), copy.deepcopy(codes)
    flat = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=0))
    runs["annotations"][0]["segmentation"]["counts"] = np.diff(flat, prepend=0, append=pixels.size).tolist()
    polygons["annotations"][0]["segmentation"] = [[20, 10, 90, 10, 90, 60, 20, 60]]
    assert len({json.dumps(one) for one in (codes, runs, polygons)}) == 3
    masks = [read_truth(save(tmp_path, one), masks=True).masks for one in (codes, runs, polygons)]
    assert [[*one] if one else None for one in masks] == [[coco.encode(np.asfortranarray(pixels))]] * 3
    assert read_truth(tmp_path / "truth.json").masks is None
    read = read_annotations(tmp_path / "truth.json", tmp_path, names_and_sizes=False, segmentations=True)
    assert truth_of(read, masks=False).masks is None


def test_masks_of_another_size_than_their_image_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, truth([block(slice(0, 50), slice(0, 50))]))
    turned = found_of([block(slice(0, 50), slice(0, 50), (200, 100))], [0.5])
    with pytest.raises(ValueError, match=r"image 1 has masks of 100 x 200 and of 200 x 100 pixels: those of .*truth"):
        scored(path, turned, "faster")


def test_scores_of_masks_survive_json_and_become_tables(tmp_path: Path) -> None:
    one, near = block(slice(0, 50), slice(0, 50)), block(slice(0, 40), slice(0, 50))
    content = truth([one])
    content["categories"].append({"id": 8, "name": "absent"})
    scores = scored(save(tmp_path, content), found_of([near], [0.5]), "faster")
    kept = json.loads(json.dumps(scores.to_dict()))
    assert Scores.from_dict(kept) == scores
    assert list(kept) == [*METRICS, "per_class", "images", *MASK_METRICS]
    assert kept["mask_ap"] == pytest.approx(0.7)
    assert [row["mask_ap50"] for row in kept["per_class"]] == [pytest.approx(1.0), None]
    text = markdown(scores)
    assert "| mask AP | mask AP50 | mask AP75 | mask AP small | mask AP medium | mask AP large |" in text
    assert "| 70.0 | 100.0 | 100.0 | - | 70.0 | - |" in text
    assert "| class | AP | AP50 | mask AP | mask AP50 | objects |" in text
    assert "| cell | 0.0 | 0.0 | 70.0 | 100.0 | 1 |" in text
    assert "| absent | - | - | - | - | 0 |" in text
    screen = io.StringIO()
    Console(file=screen, width=100).print(table(scores))
    assert "Mask AP, 2 images" in screen.getvalue()
    assert "mask AP50" in screen.getvalue()
    bare = Scores(**{**vars(scores), "masks": None})
    assert not [name for name in bare.to_dict() if "mask" in name]
    assert "mask" not in markdown(bare)
    line = {"step": 1, "epoch": 1, **kept}
    assert not mistakes(line, EvaluationLine)
    assert not mistakes({**kept, "evaluated_with": {}}, ScoresFile)
    assert "mask_ap_large=2" in mistakes({**line, "mask_ap_large": 2}, EvaluationLine)


_MANY = """
import json, resource, sys
from pathlib import Path
import faster_coco_eval, numpy as np, pycocotools.cocoeval, torch
from detr_container.tasks.detection.detections import Detections
from detr_container.tasks.detection.pasting import paste
from detr_container.tasks.detection.scoring import score

def used() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

count, size, place = 5000, (1000, 1000), Path(sys.argv[1])
boxes = torch.rand(count, 4) * 60 + 10
boxes[:, :2] *= 12
boxes[:, 2:] += boxes[:, :2]
boxes[:10] = torch.tensor([0.0, 0.0, 1000.0, 1000.0])
radius = ((torch.arange(28) - 13.5) ** 2)[:, None] + (torch.arange(28) - 13.5) ** 2
masks = (radius < (6 + 8 * torch.rand(count, 1, 1)) ** 2).float()
paste(masks[:2], boxes[:2] / 10, size)
before = used()
codes = paste(masks, boxes, size)
areas = codes.areas()
found = Detections(
    np.array([1]), np.array([0, count]), np.linspace(1, 0, count, dtype=np.float32), np.arange(count) % 60,
    boxes.numpy(), np.arange(1, 61), codes,
)
objects = [
    {"id": k, "image_id": 1, "category_id": k % 60 + 1, "bbox": [0, 0, 9, 9], "area": areas[k],
     "segmentation": {"size": size, "counts": codes[k]["counts"].decode()}}
    for k in range(600)
]
names = [{"id": k, "name": str(k)} for k in range(1, 61)]
truth = {"images": [{"id": 1, "height": 1000, "width": 1000}], "categories": names, "annotations": objects}
(place / "truth.json").write_text(json.dumps(truth))
ap = [score(place / "truth.json", found, evaluator).masks.ap for evaluator in ("faster", "pycocotools")]
found.write(place / "detections.npz")
assert len(Detections.read(place / "detections.npz").masks) == count
print(json.dumps({"grown": used() - before, "ap": ap}))
"""


def test_thousands_of_masks_of_one_image_are_pasted_scored_and_kept_in_bounded_memory(tmp_path: Path) -> None:
    """5,000 masks of a megapixel: 5 GB as pixels, of which there are never more than a few MB at once."""
    (tmp_path / "many.py").write_text(_MANY)
    done = subprocess.run(
        [sys.executable, tmp_path / "many.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ap"] == pytest.approx([1.0, 1.0], abs=0.05)
    assert found["grown"] < 300
