"""Which rows of a classifier an image folder's classes are."""

from pathlib import Path

import pytest
from PIL import Image

from detr_container.base.files import write_json
from detr_container.datasets.folders import ImageFolder, open_folder
from detr_container.tasks.classification.class_names import imagenet_ids, matched, read_names, spoken


def folder_of(root: Path, *classes: str) -> ImageFolder:
    """Two images of each class."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")
    return open_folder(root)


def test_by_name_whatever_the_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "cat", "dog", "eel")
    found, words = matched(folder, ("eel", "cow", "dog", "cat"), 4)
    assert found.labels.tolist() == [3, 3, 2, 2, 0, 0]
    assert found.classes == ("eel", "cow", "dog", "cat")
    assert words == "3 of 4 classes by name"
    # Each image is still found where it lies, and it is the same data set.
    assert [found.path(index) for index in range(6)] == [folder.path(index) for index in range(6)]
    assert found.version() == folder.version()
    assert matched(folder, folder.classes, 3)[1] == "all 3 classes by name"


def test_without_names_in_sorted_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "b", "a")
    found, words = matched(folder, (), 2)
    assert found is folder
    assert "taken for the 2 classes" in words
    with pytest.raises(ValueError, match=r"has 2 classes, the classifier 3 without names.*--classes FILE"):
        matched(folder, (), 3)


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "cat", "unicorn")
    with pytest.raises(ValueError, match=r"of which 1 are none of the classifier's 2 \('cat', 'dog'\): 'unicorn'"):
        matched(folder, ("cat", "dog"), 2)


def test_imagenet_by_its_ids_or_by_sorted_order(tmp_path: Path) -> None:
    ids = imagenet_ids()
    assert (len(ids), ids[0], ids[-1]) == (1000, "n01440764", "n15075141")
    assert list(ids) == sorted(ids)
    found, words = matched(folder_of(tmp_path / "few", ids[7], ids[3]), ids, 1000)
    assert found.labels.tolist() == [3, 3, 7, 7]
    assert words == "2 of 1000 classes by name"
    assert spoken(ids)[:2] == ["tench", "goldfish"]
    assert spoken(("a", "b")) == ["a", "b"]


def test_a_thousand_other_folders_are_imagenets_in_order(tmp_path: Path) -> None:
    """As a folder that was renamed to numbers or to words has it."""
    for number in range(1000):
        (tmp_path / f"{number:04d}").mkdir()
        (tmp_path / f"{number:04d}" / "x.png").touch()
    folder = open_folder(tmp_path)
    found, words = matched(folder, imagenet_ids(), 1000)
    assert found is folder
    assert "in sorted order are taken for ImageNet's" in words


def test_names_from_files(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("cat\n\n dog \n")
    write_json(tmp_path / "list.json", ["cat", "dog"])
    write_json(tmp_path / "index.json", {"0": ["n1", "cat"], "1": ["n2", "dog"]})
    folder_of(tmp_path / "folders", "dog", "cat")
    for name in ("lines.txt", "list.json", "folders"):
        assert read_names(tmp_path / name, 2) == ("cat", "dog")
    assert read_names(tmp_path / "index.json", 2) == ("n1", "n2")
    with pytest.raises(ValueError, match="names 2 classes, and the weights have 3: name one for each row"):
        read_names(tmp_path / "lines.txt", 3)
    (tmp_path / "lines.txt").write_text("cat\ncat\n")
    with pytest.raises(ValueError, match="names cat twice"):
        read_names(tmp_path / "lines.txt", 2)
    write_json(tmp_path / "list.json", {"cat": 0})
    with pytest.raises(ValueError, match="holds no names: write a JSON list"):
        read_names(tmp_path / "list.json", 2)
