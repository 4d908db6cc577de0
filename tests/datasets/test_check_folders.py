"""The checker of image folders: healthy ones pass, every kind of damage is found, named and counted."""

import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detr_container.commands.data import data_check
from detr_container.datasets.check_folders import check_folders, is_image_folders
from detr_container.datasets.check_report import FolderReport
from detr_container.datasets.folders import open_folder
from detr_container.datasets.images import read_image
from detr_container.datasets.shapes import make_shapes

CLASSES = ("cat", "dog", "Été")
EACH = 10
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in both splits: images of shapes, dealt out as they come."""
    home = tmp_path_factory.mktemp("folders")
    make_shapes(home / "shapes", train=30, val=30, size=64, workers=0)
    for split in ("train", "val"):
        for number, image in enumerate(sorted((home / "shapes" / f"{split}2017").iterdir())):
            folder = home / "data" / split / CLASSES[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / f"{number:03d}.jpg")
    return home / "data"


@pytest.fixture
def root(healthy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(healthy, tmp_path / "data")


def check(root: Path, **options: Any) -> FolderReport:
    return check_folders({split: root / split for split in ("train", "val")}, **{"size": 64, **options})


def first(root: Path, split: str = "val", name: str = "cat") -> Path:
    return min((root / split / name).iterdir())


def truncated(root: Path) -> None:
    path = first(root)
    path.write_bytes(path.read_bytes()[:-400])


def no_image(root: Path) -> None:
    first(root).write_text("<html>404</html>")


def pipe(root: Path) -> None:
    path = first(root)
    path.unlink()
    os.mkfifo(path)


def dangling_link(root: Path) -> None:
    path = first(root)
    path.unlink()
    path.symlink_to("nowhere.jpg")


def blank(root: Path) -> None:
    Image.new("RGB", (64, 64), (9, 9, 9)).save(first(root))


def turned(root: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    for path in sorted((root / "train" / "dog").iterdir())[:3]:
        with Image.open(path) as image:
            image.load()
        image.save(path, quality=95, exif=tag)


def small(root: Path) -> None:
    with Image.open(first(root)) as image:
        image.resize((63, 80)).save(first(root))


def other_suffix(root: Path) -> None:
    with Image.open(first(root)) as image:
        image.save(first(root).with_suffix(".image"), format="GIF")


def png_called_jpg(root: Path) -> None:
    path = first(root)
    with Image.open(path) as image:
        image.save(path, format="PNG")


def other_files(root: Path) -> None:
    (root / "val" / "cat" / "Thumbs.db").write_bytes(b"\x00\x01")
    (root / "val" / "cat" / ".DS_Store").write_bytes(b"\x00\x01")
    (root / "train" / "labels.csv").write_text("a,b\n")


def image_beside(root: Path) -> None:
    first(root).rename(root / "val" / "lost.jpg")


def empty_class(root: Path) -> None:
    for path in (root / "train" / "dog").iterdir():
        path.unlink()


def few(root: Path) -> None:
    for path in sorted((root / "train" / "dog").iterdir())[1:]:
        path.unlink()


def class_missing(root: Path) -> None:
    shutil.rmtree(root / "val" / "dog")


def class_more(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "horse")


def class_in_capitals(root: Path) -> None:
    (root / "val" / "dog").rename(root / "val" / "Dog ")


def accent_in_two_signs(root: Path) -> None:
    (root / "val" / "Été").rename(root / "val" / unicodedata.normalize("NFD", "Été"))


def no_classes(root: Path) -> None:
    for folder in list((root / "val").iterdir()):
        for path in folder.iterdir():
            path.rename(root / "val" / f"{folder.name}-{path.name}")
        folder.rmdir()


def one_class(root: Path) -> None:
    for split in ("train", "val"):
        for name in CLASSES[1:]:
            shutil.rmtree(root / split / name)


def hidden(root: Path) -> None:
    (root / "val" / ".cache").mkdir()
    (root / "val" / "cat" / "._000.jpg").write_bytes(b"\x00\x01")


def narrow(root: Path) -> None:
    Image.linear_gradient("L").rotate(90).resize((3000, 1)).save(first(root))


def ring_of_links(root: Path) -> None:
    (root / "val" / "cat" / "more").symlink_to(root / "val")


def link_to_itself(root: Path) -> None:
    (root / "val" / "cat" / "more").symlink_to("more")


def no_split(root: Path) -> None:
    shutil.rmtree(root / "val")


DAMAGE: list[tuple[Damage, dict[tuple[str, str], int], str]] = [
    (truncated, {("error", "unreadable-image"): 1}, "val: cat/000.jpg: the file cannot be read"),
    (no_image, {("error", "unreadable-image"): 1}, "not an image in any format known"),
    (pipe, {("error", "unreadable-image"): 1}, "pipe"),
    (dangling_link, {("error", "missing-image"): 1}, "val: cat/000.jpg: the file does not exist"),
    (blank, {("warning", "flat-image"): 1}, "all pixels are about the same"),
    (turned, {("warning", "orientation"): 1}, "train: 3 of 30 images carry an orientation tag, as dog/001.jpg"),
    (small, {("note", "small-images"): 1}, "val: 1 of 30 images have a side under 64 pixels, as cat/000.jpg"),
    (other_suffix, {("warning", "extension"): 1}, "cat/000.image is a GIF image, but its extension is no image's"),
    (png_called_jpg, {("note", "extension-differs"): 1}, "cat/000.jpg is a PNG image"),
    (other_files, {("note", "unlisted-file"): 2}, "train: labels.csv lies beside the folders of classes"),
    (image_beside, {("warning", "image-of-no-class"): 1}, "val: lost.jpg lies beside the folders of classes"),
    (empty_class, {("error", "empty-class"): 1}, "train: dog: the folder of this class holds no images"),
    (few, {("warning", "few-images"): 1}, "train: dog: 1 image to learn this class from"),
    (class_missing, {("error", "classes-differ"): 1}, "class 'dog' of train is not in val"),
    (class_more, {("error", "classes-differ"): 2}, "class 'horse' of val is not in train"),
    (class_in_capitals, {("error", "classes-differ"): 2}, "class 'dog' of train is not in val, which has 'Dog '"),
    (accent_in_two_signs, {("error", "classes-differ"): 2}, "is not in val, which has "),
    (no_classes, {("error", "no-classes"): 1, ("warning", "image-of-no-class"): 30}, "holds 30 images and no folder"),
    (one_class, {("error", "one-class"): 2}, "cat is the only class"),
    (hidden, {}, ""),
    (
        ring_of_links,
        {("error", "unreadable-folder"): 1},
        "more/cat is a folder that it lies in itself: remove the link",
    ),
    (link_to_itself, {("error", "unreadable-folder"): 1}, "cat/more: Too many levels of symbolic links"),
    (no_split, {("error", "image-folder"): 1}, "no folder of images"),
]


def counted(report: FolderReport) -> dict[tuple[str, str], int]:
    return dict(Counter((problem.severity, problem.kind) for problem in report.problems))


def test_healthy_folders_have_no_problems_whatever_the_number_of_workers(root: Path) -> None:
    report = check(root, workers=0, duplicates=True)
    assert report.problems == ()
    assert dict(report.counts) == {split: dict.fromkeys(CLASSES, EACH) for split in ("train", "val")}
    assert check(root, workers=3) == report
    assert report.lines()[-1] == "0 errors, 0 warnings, 0 notes"


@pytest.mark.parametrize(("damage", "expected", "message"), DAMAGE, ids=[case[0].__name__ for case in DAMAGE])
def test_damage_is_found_named_and_nothing_else_is(
    root: Path, damage: Damage, expected: dict[tuple[str, str], int], message: str
) -> None:
    damage(root)
    report = check(root)
    assert counted(report) == expected
    assert not expected or any(message in problem.message for problem in report.problems)
    assert report.errors == sum(count for (severity, _), count in expected.items() if severity == "error")


@pytest.mark.parametrize("damage", [case[0] for case in DAMAGE], ids=lambda damage: damage.__name__)
def test_training_reads_what_the_checker_passes_and_refuses_what_it_does_not(root: Path, damage: Damage) -> None:
    damage(root)
    report = check(root)
    files = []
    try:
        train = open_folder(root / "train")
        for folder in (train, open_folder(root / "val", train.classes)):
            files.append(len(folder))
            for index in range(len(folder)):
                read_image(folder.path(index))
    except (ValueError, OSError):
        assert report.errors
    else:
        assert not report.errors
        assert files == [sum(counts.values()) for _, counts in report.counts]


def test_images_that_training_and_evaluation_cannot_cut_are_errors(root: Path) -> None:
    narrow(root)
    report = check(root, size=224).problems
    # At 64 pixels it would be enlarged to 16 million pixels, at 224 to 197 million.
    assert counted(check(root)) == {("note", "small-images"): 1}
    errors = [problem.message for problem in report if problem.severity == "error"]
    assert errors == [
        "val: cat/000.jpg: 3000 x 1 pixels are too narrow: with a shorter side of 256 they would be more "
        "than 100,000,000"
    ]
    for path in (first(root), first(root, name="dog")):
        side = 23 if path == first(root) else 24
        with Image.open(first(root, name="Été")) as image:
            image.resize((40, side)).save(path)
    report = check(root, size=32).problems
    assert [problem.message for problem in report] == [
        "val: cat/000.jpg: 40 x 23 pixels are too few for an input of 32, which is not resized",
        "val: 1 of 29 images have a side under 32 pixels, as dog/001.jpg: they get a black margin, for so small an "
        "input resizes nothing",
    ]


def test_the_same_content_is_found_where_it_is_asked_for(root: Path) -> None:
    shutil.copy(first(root), root / "val" / "cat" / "again.jpg")
    shutil.copy(first(root), root / "val" / "dog" / "again.jpg")
    shutil.copy(first(root, "train", "dog"), root / "val" / "dog" / "learnt.jpg")
    assert check(root).problems == ()
    # Of the images, but one a split is decoded; all are compared.
    for report in (check(root, duplicates=True), check(root, duplicates=True, sample=1)):
        expected = {("warning", "duplicate-image"): 1, ("warning", "two-classes"): 1, ("error", "overlap"): 1}
        assert counted(report) == expected
        (overlap,) = (problem.message for problem in report.problems if problem.kind == "overlap")
        assert overlap.startswith("val: dog/learnt.jpg: the same content as train: dog/001.jpg")


def test_a_sample_is_decoded(root: Path) -> None:
    assert check(root, sample=30) == check(root)
    for path in (root / "val").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-400])
    assert counted(check(root, sample=7)) == {("error", "unreadable-image"): 7}
    assert check(root, sample=7, workers=3) == check(root, sample=7)


def test_images_lie_in_folders_of_any_depth_and_behind_links(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "train" / "cat", tmp_path / "elsewhere")
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "deep").symlink_to(tmp_path / "elsewhere")
    report = check(root)
    assert report.problems == ()
    assert dict(report.counts)["train"]["cat"] == EACH


def test_the_table_of_many_classes_has_the_rarest_and_the_most_frequent(tmp_path: Path) -> None:
    counts = {f"n{number:08d}": number for number in range(1000)}
    lines = FolderReport((), (("train", counts), ("val", dict.fromkeys(counts, 50)))).lines()
    assert lines[:2] == [
        "train: 499500 images of 1000 classes, 0 to 999 of each",
        "val: 50000 images of 1000 classes, 50 to 50 of each",
    ]
    assert lines[3].split() == ["n00000000", "0", "50"]
    assert lines[23] == "... 960 classes between these"
    assert lines[-2].split() == ["n00000999", "999", "50"]
    assert len(lines) == 45


def test_the_command_tells_both_layouts_apart(
    root: Path, healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_image_folders(root)
    assert not is_image_folders(healthy.parent / "shapes")
    assert data_check([str(root), "--size", "64"]) == 0
    assert "train: 30 images of 3 classes, 10 to 10 of each" in capsys.readouterr().out
    truncated(root)
    assert data_check(["--train-images", str(root / "train"), "--val-images", str(root / "val")]) == 1
    assert "error: unreadable-image (1)" in capsys.readouterr().out
    assert data_check([str(healthy.parent / "shapes"), "--sample", "2"]) == 0
    assert "objects" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is no data set: COCO's layout has train2017/.*image folders have train/"):
        data_check([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="there is no such data set: name the folder that holds train/"):
        data_check([str(tmp_path / "absent")])
    (tmp_path / "list.txt").touch()
    with pytest.raises(FileNotFoundError, match="is a file, not a data set: name the folder that holds train/"):
        data_check([str(tmp_path / "list.txt")])


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_blood_cells_are_sound(shared_data: Path, split: str) -> None:
    folder = shared_data / "cells_imagefolder"
    report = check_folders({"train": folder / "train", "val": folder / "val"}, duplicates=True, size=48)
    assert counted(report) == {("note", "small-images"): 2}
    counts = {name: len(list((folder / split / name).glob("*.jpg"))) for name in ("Platelets", "RBC", "WBC")}
    assert dict(report.counts)[split] == counts
