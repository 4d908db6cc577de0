import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import Scene, scenes

from detr_container.models.postprocess import counted, postprocess


def sizes_of(shown: Scene) -> list[tuple[int, int]]:
    return [(100 + 10 * image, 50 + 20 * image) for image in range(len(shown.targets.counts))]


def corners(box: list[float], height: int, width: int) -> list[float]:
    x, y, w, h = box
    return [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]


def same(
    found: list[list[tuple[float, int, list[float], int]]], expected: list[list[tuple[float, int, list[float], int]]]
) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert [row[0] for row in ours] == pytest.approx([row[0] for row in theirs], abs=1e-5)
        assert [(row[1], row[3]) for row in ours] == [(row[1], row[3]) for row in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a[2] == pytest.approx(b[2], abs=1e-3)


def rows(shown: Scene, classification: str) -> list[list[tuple[float, int, list[float], int]]]:
    found = postprocess(shown.output, sizes_of(shown), classification)
    images = [found.image(index) for index in range(len(found.scores))]
    return [
        list(zip(*(part.tolist() for part in (d.scores, d.labels, d.boxes, d.queries)), strict=True)) for d in images
    ]


@given(scenes())
def test_softmax_gives_each_querys_best_class(shown: Scene) -> None:
    expected = []
    for image, (height, width) in enumerate(sizes_of(shown)):
        found = []
        for query, logits in enumerate(shown.output.logits[-1, image].double()):
            scores = logits.softmax(-1)[: shown.classes].tolist()
            label = max(range(shown.classes), key=scores.__getitem__)
            box = corners(shown.output.boxes[-1, image, query].tolist(), height, width)
            found.append((scores[label], label, box, query))
        expected.append(sorted(found, key=lambda row: -row[0]))
    same(rows(shown, "softmax"), expected)


@given(scenes(softmax=False))
def test_focal_gives_the_best_pairs_of_query_and_class(shown: Scene) -> None:
    expected = []
    for image, (height, width) in enumerate(sizes_of(shown)):
        pairs = [
            (score, label, corners(shown.output.boxes[-1, image, query].tolist(), height, width), query)
            for query, logits in enumerate(shown.output.logits[-1, image].double())
            for label, score in enumerate(logits.sigmoid().tolist())
        ]
        queries = shown.output.logits.shape[2]
        expected.append(sorted(pairs, key=lambda row: -row[0])[:queries])
    same(rows(shown, "focal"), expected)


@given(st.sampled_from(["softmax", "focal"]), st.data())
def test_there_is_one_detection_per_query_best_first(classification: str, data: st.DataObject) -> None:
    shown = data.draw(scenes(softmax=classification == "softmax"))
    found = postprocess(shown.output, sizes_of(shown), classification)
    assert found.scores.shape == (len(shown.targets.counts), shown.output.logits.shape[2])
    assert (found.scores.diff() <= 0).all()
    assert found.labels.max() < shown.classes


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3), st.integers(1, 4))
def test_the_first_of_each_class_in_an_image_count(labels: list[list[int]], limit: int) -> None:
    expected = [[row[:place].count(label) < limit for place, label in enumerate(row)] for row in labels]
    assert counted(torch.tensor(labels), limit).tolist() == expected
