"""The generated image folders: balanced, the same from the same seed, never half there, and not told by a place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_container.datasets.folders import open_folder
from detr_container.datasets.single_shapes import CLASSES, draw_single, make_single_shapes

TRAIN, VAL, SIZE = 30, 20, 40


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "single"
    assert make_single_shapes(root, TRAIN, VAL, SIZE)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_they_are_image_folders_with_as_many_of_each_class(shapes: Path) -> None:
    for split, count in (("train", TRAIN), ("val", VAL)):
        folder = open_folder(shapes / split)
        assert folder.classes == CLASSES
        assert folder.counts().tolist() == [count // len(CLASSES)] * len(CLASSES)


def test_the_same_seed_makes_the_same_and_another_makes_others(shapes: Path, tmp_path: Path) -> None:
    make_single_shapes(tmp_path / "again", TRAIN, VAL, SIZE)
    assert contents(tmp_path / "again") == contents(shapes)
    make_single_shapes(tmp_path / "other", TRAIN, VAL, SIZE, seed=1)
    other, own = contents(tmp_path / "other"), contents(shapes)
    assert not [name for name in other if name.endswith(".jpg") and other[name] == own[name]]


def test_an_outline_lets_the_ground_through_and_a_filled_shape_does_not() -> None:
    """It covers more of an image: what differs from the usual colour."""
    spread: dict[str, list[float]] = {"filled": [], "outline": []}
    for index in range(200):
        pixels, name = draw_single(True, index, 96, 0)
        differs = np.abs(pixels.astype(float) - np.median(pixels.reshape(-1, 3), axis=0)).max(axis=2) > 60
        spread[name.split("-")[1]].append(float(differs.mean()))
    assert np.mean(spread["filled"]) > 1.3 * np.mean(spread["outline"])


def test_the_file_is_the_drawn_image(shapes: Path) -> None:
    for index in range(10):
        pixels, name = draw_single(False, index, SIZE, 0)
        with Image.open(shapes / "val" / name / f"{index:06d}.jpg") as image:
            assert np.abs(np.asarray(image, dtype=float) - pixels).mean() < 8  # noise is what JPEG keeps least


def test_a_second_call_does_nothing_and_another_data_set_is_never_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "single"
    assert make_single_shapes(root, 10, 10, 32)
    before = contents(root)
    assert not make_single_shapes(root, 10, 10, 32)
    with pytest.raises(FileExistsError, match=r"was made with .*'size': 32.* not with .*'size': 33"):
        make_single_shapes(root, 10, 10, 33)
    assert contents(root) == before
    next((root / "val" / CLASSES[3]).iterdir()).unlink()
    with pytest.raises(FileExistsError, match="9 of 10 val images"):
        make_single_shapes(root, 10, 10, 32)
    (root / "single-shapes.json").unlink()
    with pytest.raises(FileExistsError, match="not a data set of single shapes"):
        make_single_shapes(root, 10, 10, 32)


@pytest.mark.parametrize("wrong", [{"train": 9}, {"val": 9}, {"size": 31}, {"seed": -1}])
def test_settings_that_make_no_data_set_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        make_single_shapes(tmp_path / "single", **{"train": 10, "val": 10, "size": 32, **wrong})
    assert not list(tmp_path.iterdir())
