"""COCO AP: published metrics, two evaluators against each other and against the original protocol, and bad input."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from detr_container.datasets.annotations import find_problems, load_json, read_annotations
from detr_container.tasks.detection.coco_results import read_results, records_of, write_results
from detr_container.tasks.detection.detections import Detections
from detr_container.tasks.detection.scores import METRICS, Scores, markdown, table
from detr_container.tasks.detection.scoring import Evaluator, score

EVALUATORS: tuple[Evaluator, ...] = ("faster", "pycocotools")
PUBLISHED = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)
WITHOUT_CROWDS = (
    *(0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363),
    *(0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744),
)


def metrics(scores: Scores) -> list[float | None]:
    return [getattr(scores, name) for name in METRICS]


def save(folder: Path, content: object, name: str = "truth.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def truth(boxes: list[list[float]], images: int = 2) -> dict[str, Any]:
    """One class (id 7), every box on image 1."""
    return {
        "images": [{"id": index} for index in range(1, images + 1)],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": 7, "bbox": box} for index, box in enumerate(boxes, start=1)
        ],
    }


def found(box: list[float], confidence: float = 0.5, image_id: int = 1, category_id: int = 7) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": confidence}


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, areas unlike w * h, gaps in the ids, empty images, classes without objects, ties, and many boxes."""
    rng = np.random.default_rng(seed)
    categories = sorted(rng.choice(90, size=int(rng.integers(1, 6)), replace=False).tolist())
    images = sorted(rng.choice(10**6, size=int(rng.integers(1, 7)), replace=False).tolist())
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        objects = int(rng.choice([0, 1, 4, 12]))
        for _ in range(objects):
            box = [*rng.uniform(0, 300, 2), *np.exp(rng.uniform(1, 5.5, 2))]
            annotation = {
                "id": len(annotations),  # from 0, which the evaluators alone would take for "not matched"
                "image_id": image,
                "category_id": int(rng.choice(categories)),
                "bbox": box,
                "area": box[2] * box[3] * rng.uniform(0.3, 1),
                "iscrowd": int(rng.random() < 0.15),
                "ignore": int(rng.random() < 0.1),
            }
            annotations.append(annotation)
            for _ in range(int(rng.integers(0, 4))):
                near = (np.asarray(box) * (1 + rng.normal(0, 0.08, 4))).tolist()
                results.append(found(near, round(float(rng.random()), 1), image, annotation["category_id"]))
        for _ in range(int(rng.choice([0, 3, 130]))):
            box = [*rng.uniform(0, 300, 2), *np.exp(rng.uniform(1, 5.5, 2))]
            results.append(found(box, round(float(rng.random()), 1), image, int(rng.choice(categories))))
    content = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": category, "name": f"class {category}"} for category in reversed(categories)],
        "annotations": annotations,
    }
    return content, results


def original(content: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """pycocotools as its own demo uses it, summarize() included; ids from 1, as it needs."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content, results = copy.deepcopy((content, results))
    for annotation in content["annotations"]:
        annotation["id"] += 1
    with contextlib.redirect_stdout(io.StringIO()):
        whole = COCO()
        whole.dataset = content
        whole.createIndex()
        evaluation = COCOeval(whole, whole.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.shared
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_published_metrics(shared_data: Path, tmp_path: Path, evaluator: Evaluator) -> None:
    fixture = shared_data / "cocoeval_fixture"
    results = fixture / "instances_val2014_fakebbox100_results.json"
    scores = score(fixture / "instances_val2014_100.json", results, evaluator)
    assert metrics(scores) == pytest.approx(PUBLISHED, abs=5.01e-4)
    assert scores.ap == pytest.approx(0.5045806987249628, abs=1e-12)
    assert scores.images == 100
    assert sum(row.ground_truths for row in scores.per_class) == 830
    assert scores.ap == pytest.approx(np.mean([row.ap for row in scores.per_class if row.ap is not None]), abs=1e-12)

    content = json.loads((fixture / "instances_val2014_100.json").read_text())
    content["annotations"] = [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]  # so that width x height is filled in
    content.pop("info", None)
    plain = score(save(tmp_path, content), results, evaluator)
    assert metrics(plain) == pytest.approx(WITHOUT_CROWDS, abs=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_both_evaluators_and_the_original_agree(tmp_path: Path, seed: int) -> None:
    content, results = random_case(seed)
    path = save(tmp_path, content)
    before = copy.deepcopy(results)
    fast, reference = (score(path, results, evaluator) for evaluator in EVALUATORS)
    # pycocotools adds 2e-16 to the denominator of precision, faster-coco-eval does not: equal but for rounding.
    assert metrics(fast) == pytest.approx(metrics(reference), abs=1e-12)
    for ours, theirs in zip(fast.per_class, reference.per_class, strict=True):
        assert (ours.category_id, ours.name, ours.ground_truths) == (
            theirs.category_id,
            theirs.name,
            theirs.ground_truths,
        )
        assert (ours.ap, ours.ap50) == pytest.approx((theirs.ap, theirs.ap50), abs=1e-12)
    assert results == before
    assert json.loads(path.read_text()) == content
    if results:
        expected = [None if value == -1 else value for value in original(content, results)]
        assert metrics(fast) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_case_worked_by_hand(tmp_path: Path, evaluator: Evaluator) -> None:
    # Two objects of 50 x 50; the better score is exact, then a miss, then a box with IoU 40 / 50 = 0.8.
    path = save(tmp_path, truth([[0, 0, 50, 50], [100, 0, 50, 50]]))
    results = [found([0, 0, 50, 50], 0.9), found([300, 0, 50, 50], 0.8), found([100, 0, 40, 50], 0.7)]
    scores = score(path, results, evaluator)
    # Interpolated precision is 1 at the 51 recalls up to 0.5 and 2/3 at the 50 beyond it; IoU 0.85, 0.9 and 0.95
    # lose the second object.
    high, low = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert scores.ap50 == pytest.approx(high, abs=1e-9)
    assert scores.ap == pytest.approx((7 * high + 3 * low) / 10, abs=1e-9)
    assert scores.ar1 == pytest.approx(0.5)
    assert scores.ar100 == pytest.approx((7 * 1.0 + 3 * 0.5) / 10)
    assert scores.ap_medium == pytest.approx(scores.ap, abs=1e-9)
    assert scores.ap_small is None
    assert scores.ar_large is None
    assert scores.per_class[0] == (7, "cell", scores.ap, scores.ap50, 2)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detections_are_zeros_and_no_objects_are_none(tmp_path: Path, evaluator: Evaluator) -> None:
    none_found = score(save(tmp_path, truth([[0, 0, 50, 50]])), [], evaluator)
    assert none_found.ap == none_found.ap50 == none_found.ar100 == none_found.ap_medium == 0.0
    assert none_found.ap_small is None
    no_objects = score(save(tmp_path, truth([])), [found([0, 0, 9, 9])], evaluator)
    assert metrics(no_objects) == [None] * 12
    assert no_objects.per_class == ((7, "cell", None, None, 0),)
    assert metrics(score(save(tmp_path, truth([])), [], evaluator)) == [None] * 12


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_hundred_best_of_a_class_and_image_count(tmp_path: Path, evaluator: Evaluator) -> None:
    path = save(tmp_path, truth([[0, 0, 50, 50]]))
    misses = [found([200 + index, 200, 50, 50], 0.9) for index in range(100)]
    hit = [0, 0, 50, 50]
    assert score(path, [*misses, found(hit, 0.1)], evaluator).ar100 == 0.0
    assert score(path, [*misses[1:], found(hit, 0.1)], evaluator).ar100 == 1.0


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_only_the_chosen_images_are_scored(tmp_path: Path, evaluator: Evaluator) -> None:
    content = truth([[0, 0, 50, 50]])
    content["annotations"].append({"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 50, 50]})
    path = save(tmp_path, content)
    results = [found([0, 0, 50, 50], 0.5, 1), found([90, 90, 5, 5], 0.9, 2)]
    only = score(path, results, evaluator, image_ids=[1])
    assert only.ap == pytest.approx(1.0)
    assert (only.images, only.per_class[0].ground_truths) == (1, 1)
    assert score(path, results, evaluator, image_ids=[2]).ap == 0.0
    assert (score(path, results, evaluator).ap or 0.0) < 0.5
    with pytest.raises(ValueError, match=r"image.*lacks: image_id 3"):
        score(path, [found([0, 0, 5, 5], image_id=3)], evaluator, image_ids=[1])


def test_results_survive_their_file_and_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detections = Detections(
        np.array([1]),
        np.array([0, 2]),
        np.array([0.75, 0.1], dtype=np.float32),
        np.array([0, 0]),
        np.array([[1.5, 2.25, 11.5, 22.25], [0, 0, 3, 4]], dtype=np.float32),
        np.array([7]),
    )
    records = list(records_of(detections.columns()))
    assert records[0] == found([1.5, 2.25, 10.0, 20.0], 0.75)
    write_results(tmp_path / "detections.json", detections.columns())
    assert read_results(tmp_path / "detections.json") == records
    wrong: list[Any] = [0, 0, float("nan"), 1]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "detections.json", [found(wrong)])
    assert read_results(tmp_path / "detections.json") == records
    write_results(tmp_path / "none.json", [])
    assert read_results(tmp_path / "none.json") == []
    path = save(tmp_path, truth([[1.5, 2.25, 10, 20]]))
    for evaluator in EVALUATORS:
        assert score(path, tmp_path / "detections.json", evaluator).ap == pytest.approx(1.0)
        assert score(path, tmp_path / "detections.json", evaluator) == score(path, detections, evaluator)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([found([0, 0, 5, 5], image_id=44)], "images that .* lacks: image_id 44"),
        ([found([0, 0, 5, 5]), found([0, 0, float("nan"), 5])], "first .*nan.* at 1"),
        ([found([0, 0, -5, 5])], "negative size"),
        ([found([0, 0, 5, 5], float("inf"))], "not finite"),
        ([found([0, 0, 5])], "COCO's result format"),
        ([{"image_id": 1, "bbox": [0, 0, 5, 5], "score": 1}], "category_id"),
        ([{**found([0, 0, 5, 5]), "image_id": "one"}], "whole numbers"),
    ],
)
def test_wrong_detections_are_refused(tmp_path: Path, results: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(save(tmp_path, truth([[0, 0, 5, 5]])), results)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path, truth([[0, 0, 5, 5]]))
    cut = tmp_path / "cut.json"
    cut.write_text('[{"image_id": 1')
    with pytest.raises(ValueError, match="cut short"):
        score(good, cut)
    with pytest.raises(ValueError, match="is a list"):
        score(good, good)
    with pytest.raises(ValueError, match="'annotations' is missing"):
        score(save(tmp_path, {"images": []}, "bare.json"), [])
    with pytest.raises(ValueError, match=r"annotation 1: bbox \[\] is not a list of four"):
        score(save(tmp_path, truth([[]]), "boxless.json"), [])
    with pytest.raises(ValueError, match="category 1: name None is not a text"):
        score(save(tmp_path, {**truth([]), "categories": [{"id": 1}]}, "nameless.json"), [])
    with pytest.raises(ValueError, match="image_ids: 9"):
        score(good, [], image_ids=[1, 9])
    with pytest.raises(ValueError, match="no images"):
        score(good, [], image_ids=[])
    unknown: Any = "slow"
    with pytest.raises(ValueError, match="'faster' or 'pycocotools'"):
        score(good, [], unknown)
    with pytest.raises(FileNotFoundError):
        score(tmp_path / "absent.json", [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_every_encoding_of_json_is_read_by_the_rules_of_training(tmp_path: Path, encoding: str) -> None:
    content = truth([[0, 0, 50, 50], [100, 0, 50, 50]])
    content["annotations"][0]["area"] = None
    path = tmp_path / "truth.json"
    path.write_bytes(json.dumps(content).encode(encoding))
    scores = score(path, [found([0, 0, 50, 50])])
    assert (scores.ap50, scores.ap_medium) == (pytest.approx(51 / 101), scores.ap)


WRONG: list[tuple[str, Any]] = [
    *(("area", value) for value in (2**63, float("inf"), float("nan"), -1, "9", [], True, 10**400)),
    *(("iscrowd", value) for value in (None, 2, "0", -1, 0.5)),
    *(("bbox", value) for value in (None, [], [1, 2, 3], [1, 2, "3", 4], [1, 2, -3, 4], [1, 2, 1e300, 4], "1234")),
    *((key, value) for key in ("id", "image_id", "category_id") for value in (None, "1", 1.0, True, 2**64, [], 99)),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: str(value)[:24])
def test_the_checker_the_loader_and_the_evaluator_refuse_the_same(tmp_path: Path, key: str, value: Any) -> None:
    content = truth([[0, 0, 50, 50], [0, 0, 50, 50]])
    content["images"] = [{**image, "file_name": "a.png", "width": 90, "height": 90} for image in content["images"][:1]]
    content["annotations"][1][key] = value
    path = save(tmp_path, content)
    errors = [problem for problem in find_problems(load_json(path), path) if problem.severity == "error"]
    if key == "id" and value == 99:
        assert not errors
        score(path, [])
        return
    (error,) = errors
    for use in (lambda: read_annotations(path, tmp_path), lambda: score(path, [])):
        with pytest.raises(ValueError, match="1 error") as caught:
            use()
        assert error.message in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\ufeff", "", "nul"])
def test_text_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text)
    for use in (lambda: read_annotations(path, tmp_path), lambda: score(path, []), lambda: read_results(path)):
        with pytest.raises(ValueError, match=r"truth\.json .*(JSON|list)"):
            use()


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_ids_of_any_size_and_sign(tmp_path: Path, evaluator: Evaluator) -> None:
    content = truth([[0, 0, 50, 50]])
    images, classes = {1: 2**62, 2: -5}, {7: -(2**40)}
    content["images"] = [{"id": images[image["id"]]} for image in content["images"]]
    content["categories"] = [{"id": classes[7], "name": "cell"}, {"id": 2**50, "name": "other"}]
    for row in content["annotations"]:
        row.update(image_id=images[row["image_id"]], category_id=classes[7], id=-3)
    scores = score(save(tmp_path, content), [found([0, 0, 50, 50], 0.5, 2**62, classes[7])], evaluator)
    assert scores.ap == pytest.approx(1.0)
    assert [row.category_id for row in scores.per_class] == [classes[7], 2**50]


def test_detections_of_unknown_classes_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path, truth([[0, 0, 50, 50]]))
    with pytest.warns(UserWarning, match="1 detections of classes that .* lacks .category_id 12."):
        scores = score(path, [found([0, 0, 50, 50]), found([0, 0, 50, 50], 0.9, category_id=12)])
    assert scores.ap == pytest.approx(1.0)


def test_scores_survive_json_and_become_tables(tmp_path: Path) -> None:
    content = truth([[0, 0, 50, 50]])
    content["categories"] += [{"id": 8, "name": "absent"}, {"id": 9, "name": "best"}]
    content["annotations"].append({"id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 20, 20]})
    scores = score(save(tmp_path, content), [found([0, 0, 20, 20], 0.5, 2, 9)])
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    text = markdown(scores)
    assert "| 50.0 | 50.0 | 50.0 | 100.0 | 0.0 | - |" in text
    order = [text.index(row) for row in ("| best | 100.0 |", "| cell | 0.0 |", "| absent | - | - | 0 |")]
    assert order == sorted(order)
    screen = io.StringIO()
    Console(file=screen, width=100).print(table(scores))
    shown = screen.getvalue()
    assert "2 images" in shown
    assert shown.index("best") < shown.index("cell") < shown.index("absent")
