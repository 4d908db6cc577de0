"""Predictions as arrays: on disk and back, and damaged."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_container.engine.run import evaluation_of
from detr_container.tasks.classification.predictions import NAME, Predictions


def predictions(images: int, classes: int, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    found = generator.dirichlet(np.ones(classes), images).astype(np.float32)
    labels = generator.integers(0, classes, images)
    order = np.argsort(-found, axis=1)[:, :5]
    return Predictions(
        np.arange(images),
        labels,
        order,
        np.take_along_axis(found, order, axis=1),
        found[np.arange(images), labels],
    )


FOUND = predictions(12, 7)


def assert_equal(a: Predictions, b: Predictions) -> None:
    for (name, one), other in zip(vars(a).items(), vars(b).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert one.dtype == other.dtype, name


def test_the_file_holds_them_to_the_last_bit(tmp_path: Path) -> None:
    for found in (FOUND, predictions(4, 2), predictions(0, 9)):
        folder = evaluation_of(tmp_path, 7)
        found.write(folder)
        content = (folder / NAME).read_bytes()
        assert_equal(Predictions.read(folder / NAME), found)
        found.write(folder)
        assert (folder / NAME).read_bytes() == content


def test_top_counts_the_label_among_the_most_probable() -> None:
    for k in (1, 3, 5):
        naive = [int(label) in row[:k] for label, row in zip(FOUND.labels, FOUND.classes.tolist(), strict=True)]
        assert FOUND.top(k).tolist() == naive
    assert predictions(4, 2).top(5).all()
    for k in (0, 6):
        with pytest.raises(ValueError, match=rf"top {k}: .* choose 1 to 5"):
            FOUND.top(k)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "labels.npy"),
    "probabilities of another type": ({"probabilities": FOUND.probabilities.astype(np.float64)}, "is float64 of shape"),
    "a column for rows": ({"classes": FOUND.classes[:, 0]}, r"shape \(12,\), not int64 of \[n, any\]"),
    "an image less": ({"labels": FOUND.labels[1:]}, "not of the same length"),
    "a class less": ({"classes": FOUND.classes[:, 1:]}, "not of the same length"),
    "no class": ({"classes": FOUND.classes[:, :0], "probabilities": FOUND.probabilities[:, :0]}, "keeps 0 classes"),
    "images that do not rise": ({"image_ids": FOUND.image_ids[::-1].copy()}, "image ids do not rise"),
    "a negative label": ({"labels": FOUND.labels - 9}, "classes count from 0"),
    "a probability of 2": ({"true_probability": FOUND.true_probability + 2}, "between 0 and 1"),
    "none at all": ({"probabilities": FOUND.probabilities * np.float32("nan")}, "between 0 and 1"),
    "the best last": ({"probabilities": FOUND.probabilities[:, ::-1].copy()}, "do not fall"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named_with_its_file(what: str, tmp_path: Path) -> None:
    changed, message = WRONG[what]
    file = io.BytesIO()
    np.savez_compressed(file, **{k: v for k, v in {**vars(FOUND), **changed}.items() if v is not None})
    (tmp_path / NAME).write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=message) as raised:
        Predictions.read(tmp_path / NAME)
    assert str(tmp_path / NAME) in str(raised.value)
    assert "evaluate again" in str(raised.value)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    FOUND.write(tmp_path)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole file of predictions"):
        Predictions.read(path)
