"""Listing image folders: what counts, what is refused by name, shares of them, and ImageNet from its archives."""

import hashlib
import io
import os
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import imagenet

from detr_container.datasets.folders import ARCHIVES, ImageFolder, open_folder, resolve


def make(root: Path, files: dict[str, str]) -> Path:
    """Empty files by folder: "a.jpg b.png"; none is opened."""
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names.split():
            (root / folder / name).parent.mkdir(exist_ok=True)
            (root / folder / name).touch()
    return root


def names(folder: ImageFolder) -> list[str]:
    return [str(folder.path(index).relative_to(folder.root)) for index in range(len(folder))]


def test_classes_and_images_are_in_sorted_order_whatever_was_made_first(tmp_path: Path) -> None:
    make(tmp_path, {"dog": "10.jpg 9.png", "Cat": "z.JPEG ü.webp a.bmp", "ape": "x.tif"})
    folder = open_folder(tmp_path)
    assert folder.classes == folder.folders == ("Cat", "ape", "dog")
    assert names(folder) == ["Cat/a.bmp", "Cat/z.JPEG", "Cat/ü.webp", "ape/x.tif", "dog/10.jpg", "dog/9.png"]
    assert folder.labels.tolist() == [0, 0, 0, 1, 2, 2]
    assert folder.labels.dtype == np.int64
    assert folder.counts().tolist() == [3, 1, 2]
    assert len(folder) == 6


def test_what_is_hidden_or_no_image_is_left_out(tmp_path: Path) -> None:
    make(
        tmp_path,
        {"a": "1.jpg ._1.jpg Thumbs.db notes.txt x.npy images/2.jpg .git/3.jpg", "b": "1.jpg", ".cache": "1.jpg"},
    )
    (tmp_path / "README.jpg").touch()
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "link.png").symlink_to("nowhere.png")
    assert names(open_folder(tmp_path)) == [
        "a/1.jpg",
        "a/images/2.jpg",
        "b/1.jpg",
        "b/link.png",
        "c/1.jpg",
        "c/link.png",
    ]


def test_given_classes_decide_the_labels(tmp_path: Path) -> None:
    make(tmp_path, {"a": "1.jpg", "b": "1.jpg 2.jpg", "c": "1.jpg"})
    folder = open_folder(tmp_path, ("c", "a", "b"))
    assert (folder.classes, folder.labels.tolist()) == (("c", "a", "b"), [1, 2, 2, 0])
    assert names(folder) == ["a/1.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg"]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    make(tmp_path / "some", {"a": "1.jpg", "b": "1.jpg"})
    with pytest.raises(ValueError, match=r"some has not the 3 classes .*: c, d missing; b unknown\. "):
        open_folder(tmp_path / "some", ("a", "c", "d"))
    make(tmp_path / "empty", {"a": "1.jpg", "b": "x.txt", "c": ""})
    with pytest.raises(ValueError, match="empty: no images in b, c: add some, or remove"):
        open_folder(tmp_path / "empty")
    make(tmp_path / "one", {"a": "1.jpg"})
    with pytest.raises(ValueError, match=r"one has one class \(a\)"):
        open_folder(tmp_path / "one")
    make(tmp_path, {"none": "1.jpg"})
    with pytest.raises(ValueError, match="none has no folders: it must hold a folder per class"):
        open_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"1\.jpg is a file"):
        open_folder(tmp_path / "none" / "1.jpg")


def test_many_missing_classes_are_counted(tmp_path: Path) -> None:
    make(tmp_path, {"a": "1.jpg", "b": "1.jpg"})
    with pytest.raises(ValueError, match=r"k7, k8, k9 and 3 more missing; a, b unknown"):
        open_folder(tmp_path, [f"k{number}" for number in range(13)])


@pytest.mark.parametrize("target", [".", "..", "../../train/a"])
def test_a_link_that_leads_back_is_named(target: str, tmp_path: Path) -> None:
    root = make(tmp_path / "train", {"a": "1.jpg", "b": "1.jpg"})
    (root / "a" / "more").symlink_to(target)
    with pytest.raises(ValueError, match=r"a/more.* is a folder that it lies in itself: remove the link"):
        open_folder(root)


def test_a_share_of_each_class_in_the_same_order(tmp_path: Path) -> None:
    sizes = {"a": 40, "b": 5, "c": 1}
    make(tmp_path, {name: " ".join(f"{number:02}.jpg" for number in range(size)) for name, size in sizes.items()})
    folder = open_folder(tmp_path)
    tenth, half = folder.stratified(0.1, 3), folder.stratified(0.5, 3)
    assert tenth.counts().tolist() == [4, 1, 1]
    assert half.counts().tolist() == [20, 2, 1]
    for share in (tenth, half):
        assert names(share) == sorted(names(share))
        assert [name[0] for name in names(share)] == [share.classes[label] for label in share.labels]
    assert set(names(tenth)) < set(names(half)) < set(names(folder))
    assert names(folder.stratified(0.1, 3)) == names(tenth)
    assert names(folder.stratified(0.1, 4)) != names(tenth)
    assert names(folder.stratified(1.0, 3)) == names(folder)


def test_the_version_changes_with_the_listing_alone(tmp_path: Path) -> None:
    make(tmp_path, {"a": "1.jpg 2.jpg", "b": "1.jpg"})
    version = open_folder(tmp_path).version()
    assert (version["annotations"], version["images"]) == (str(tmp_path), 3)
    (tmp_path / "a" / "1.jpg").write_bytes(b"other")
    assert open_folder(tmp_path).version() == version
    digests = {version["sha256"]}
    for old, new in (("a/1.jpg", "a/3.jpg"), ("a/2.jpg", "b/2.jpg"), ("a", "aa")):
        (tmp_path / old).rename(tmp_path / new)
        digests.add(open_folder(tmp_path).version()["sha256"])
    assert len(digests) == 4


def test_processes_that_load_share_one_listing(tmp_path: Path) -> None:
    make(tmp_path, {name: " ".join(f"image-{number}.jpg" for number in range(500)) for name in ("a", "b")})
    folder = open_folder(tmp_path)
    pieces: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(folder, protocol=5, buffer_callback=pieces.append)
    assert len(pickled) < 2000
    assert names(pickle.loads(pickled, buffers=[piece.raw() for piece in pieces])) == names(folder)


def tar_of(files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def jpeg(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet's three archives, of three classes; torchvision is told their checksums."""
    root = tmp_path / "imagenet"
    root.mkdir()
    ids = ("n03126707", "n01440764", "n02012849")
    words = ("crane", "tench, Tinca tinca", "crane")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, *pair, "", 0) for number, pair in enumerate(zip(ids, words, strict=True), 1)]
    synsets: Any = np.array([*rows, (4, "n00000001", "all", "", 3)], dtype=kinds)
    matrix = io.BytesIO()
    savemat(matrix, {"synsets": synsets})
    devkit = "ILSVRC2012_devkit_t12/data/"
    content = {
        ARCHIVES[0]: tar_of({f"{each}.tar": tar_of({f"{each}_{k}.JPEG": jpeg(k) for k in (1, 2)}) for each in ids}),
        ARCHIVES[1]: tar_of({f"ILSVRC2012_val_0000000{k}.JPEG": jpeg(k) for k in (1, 2, 3, 4)}),
        ARCHIVES[2]: tar_of(
            {
                f"{devkit}meta.mat": matrix.getvalue(),
                f"{devkit}ILSVRC2012_validation_ground_truth.txt": b"2\n1\n3\n2\n",
            },
            "w:gz",
        ),
    }
    for name, data in content.items():
        (root / name).write_bytes(data)
    sums = [hashlib.md5(data).hexdigest() for data in content.values()]
    known = dict(zip(("train", "val", "devkit"), zip(ARCHIVES, sums, strict=True), strict=True))
    monkeypatch.setattr(imagenet, "ARCHIVE_META", known)
    return root


def test_archives_are_unpacked_by_the_line_in_the_error_and_classes_have_their_names(archives: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ImageNet's archives .* unpack them once") as raised:
        resolve(archives, None, None)
    line = re.search(r'python -c "(.*)"$', str(raised.value))
    assert line
    exec(line[1], {})
    train, val = (open_folder(folder) for folder in resolve(archives, None, None))
    # Sorted by folder; two classes are called alike.
    assert train.classes == val.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert train.folders == ("n01440764", "n02012849", "n03126707")
    assert train.counts().tolist() == [2, 2, 2]
    assert names(val) == [
        "n01440764/ILSVRC2012_val_00000001.JPEG",
        "n01440764/ILSVRC2012_val_00000004.JPEG",
        "n02012849/ILSVRC2012_val_00000003.JPEG",
        "n03126707/ILSVRC2012_val_00000002.JPEG",
    ]
    torchvisions = imagenet.ImageNet(archives, "train")
    assert [path for path, _ in torchvisions.samples] == [str(train.path(index)) for index in range(len(train))]
    assert torchvisions.targets == train.labels.tolist()


def test_a_missing_archive_is_asked_for_and_broken_names_are_refused(archives: Path) -> None:
    (archives / ARCHIVES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no train/ yet: put {ARCHIVES[2]} beside, then unpack"):
        resolve(archives, None, None)
    make(archives, {"train/a": "1.jpg", "train/b": "1.jpg"})
    for content in (b"text", b""):
        (archives / "meta.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"meta\.bin holds no names of classes"):
            open_folder(archives / "train")
    torch.save({"a": 1}, archives / "meta.bin")
    with pytest.raises(ValueError, match=r"meta\.bin holds no names of classes"):
        open_folder(archives / "train")


def test_splits_are_found_below_the_root_or_by_name(tmp_path: Path) -> None:
    make(tmp_path, {"train/a": "", "other": ""})
    assert resolve(tmp_path, None, tmp_path / "other") == (tmp_path / "train", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"val does not exist: data\.root is a folder with train/ and val/"):
        resolve(tmp_path, None, None)
    with pytest.raises(ValueError, match=r"no val images: give data\.root"):
        resolve(None, tmp_path / "other", None)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has annotations/ and no val/, as a data set of a detector"):
        resolve(tmp_path, None, None)


def test_names_of_any_bytes_are_kept(tmp_path: Path) -> None:
    make(tmp_path, {"a": "1.jpg", "b": "1.jpg"})
    strange = os.fsencode(tmp_path / "a") + b"/\xff.jpg"
    open(strange, "wb").close()
    assert os.fsencode(open_folder(tmp_path).path(1)) == strange
