"""Accuracies by loops over images, and the sheet of what is right and wrong."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_container.base.terminal import console
from detr_container.datasets.folders import open_folder
from detr_container.datasets.labelled import LabelledImages
from detr_container.datasets.views import CentreCrop
from detr_container.drawing.images import PALETTE
from detr_container.tasks.classification.predicted_images import COLUMNS, FRAME, LINES, SIDE, _chosen, draw_predictions
from detr_container.tasks.classification.predictions import Predictions
from detr_container.tasks.classification.scores import score, table

CLASSES = tuple("abcdefgh")


def predictions(images: int, sure: float, seed: int = 0) -> Predictions:
    """Of eight classes, the last of which no image has; of so many images the label is made the most probable."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 7, images)
    logits = generator.normal(0, 1, (images, 8))
    logits[np.arange(images), labels] += np.where(generator.random(images) < sure, 4, 0)
    found = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    order = np.argsort(-found, axis=1)[:, :5]
    true = found[np.arange(images), labels]
    return Predictions(np.arange(images), labels, order, np.take_along_axis(found, order, 1), true)


def test_scores_are_what_loops_count() -> None:
    found = predictions(60, 0.5)
    losses = -np.log(found.true_probability)
    scores = score(found, losses, CLASSES)
    rows = list(zip(found.labels.tolist(), found.classes.tolist(), strict=True))
    assert scores.top1 == sum(label == best[0] for label, best in rows) / 60
    assert scores.top5 == sum(label in best for label, best in rows) / 60
    assert scores.loss == pytest.approx(losses.mean())
    for label, row in enumerate(scores.per_class):
        mine = [best for each, best in rows if each == label]
        assert (row.name, row.images) == (CLASSES[label], len(mine))
        if mine:
            assert row.top1 == pytest.approx(sum(best[0] == label for best in mine) / len(mine))
            assert row.top5 == pytest.approx(sum(label in best for best in mine) / len(mine))
        else:
            assert row.top1 is row.top5 is None
    pairs = Counter((CLASSES[label], CLASSES[best[0]]) for label, best in rows if best[0] != label)
    assert {(pair.true, pair.predicted): pair.images for pair in scores.confused}.items() <= pairs.items()
    kept = [pair.images for pair in scores.confused]
    assert kept == sorted(pairs.values(), reverse=True)[: len(kept)]
    assert json.loads(json.dumps(scores.to_dict()))["per_class"][7] == {
        "name": "h",
        "top1": None,
        "top5": None,
        "images": 0,
    }


def test_tables_show_every_class_in_per_cent() -> None:
    found = predictions(60, 0.5)
    scores = score(found, -np.log(found.true_probability), CLASSES)
    page = console(width=100)
    with page.capture() as shown:
        page.print(table(scores))
    text = shown.get()
    assert f"{100 * scores.top1:.2f}" in text
    assert f"{scores.confused[0].images}" in text
    for row in scores.per_class:
        assert f"│ {row.name} " in text


def test_nothing_to_score_is_said() -> None:
    empty = predictions(0, 1.0)
    with pytest.raises(ValueError, match="the validation split is empty"):
        score(empty, empty.true_probability, CLASSES)


@pytest.mark.parametrize(("images", "sure"), [(60, 0.6), (60, 1.0), (60, 0.0), (5, 0.5)])
def test_the_sheet_shows_the_most_confident_mistakes_and_some_that_are_right(images: int, sure: float) -> None:
    found = predictions(images, sure, seed=3)
    wrong, right = _chosen(found)
    hits = found.top(1)
    assert not hits[wrong].any()
    assert hits[right].all()
    assert len({*wrong.tolist(), *right.tolist()}) == len(wrong) + len(right) == min(images, COLUMNS * LINES)
    others = np.setdiff1d(np.flatnonzero(~hits), wrong)
    if len(others):
        assert found.probabilities[wrong, 0].min() >= found.probabilities[others, 0].max()
    half = COLUMNS * LINES // 2
    assert len(wrong) >= min(half, int((~hits).sum()))
    assert len(right) >= min(half, int(hits.sum()))


def test_frames_say_which_is_which(shapes: Path, tmp_path: Path) -> None:
    dataset = LabelledImages(open_folder(shapes / "val"), CentreCrop(32))
    labels = dataset.folder.labels
    classes = np.stack([(labels + shift) % 10 for shift in range(5)], axis=1)
    classes[3] = np.roll(classes[3], 1)
    probabilities = np.tile(np.array([0.6, 0.1, 0.1, 0.1, 0.1], dtype=np.float32), (20, 1))
    found = Predictions(np.arange(20), labels, classes, probabilities, probabilities[:, 0])
    draw_predictions(dataset, found, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    # The long sides of a frame.
    area = {name: int((pixels == PALETTE[name]).all(axis=2).sum()) for name in (2, 5)}
    frame = (SIDE + 2 * FRAME) ** 2 - SIDE**2
    assert area[2] == pytest.approx(19 * frame, rel=0.02)
    assert area[5] == pytest.approx(frame, rel=0.02)
