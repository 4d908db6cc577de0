"""Image folders: a folder for each split, in it a folder for each class, in these the images."""

from __future__ import annotations

from pathlib import Path


def resolve(root: Path | None, train: Path | None, val: Path | None) -> tuple[Path, Path]:
    """The folders of the training and the validation split. Raises ValueError or FileNotFoundError where one is not."""
    found = []
    for name, given in (("train", train), ("val", val)):
        folder = given or (root / name if root else None)
        if folder is None:
            raise ValueError(f"no {name} images: give data.root, a folder with train/ and val/, or data.{name}_images")
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist: data.root is a folder with train/ and val/, in each of which a folder per "
                f"class holds its images; or name the split's folder with data.{name}_images"
            )
        found.append(folder)
    return found[0], found[1]
