"""detectron2's catalog of data sets: what is registered there, as files to train on here."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from detr_container.base.files import atomic_write, sha256

from .coco_file import as_coco

FOLDER = Path("data/detectron2")
"""Where data sets that are no files in COCO's format become such."""
Split = Literal["train", "val"]


def find(dataset: str, split: Split, module: str = "") -> tuple[Path, Path]:
    """The (image folder, annotation file) of a split of a registered data set.

    dataset: NAME, for NAME_train and NAME_val, or both names with a comma between; module: imported first, since it
    registers them. A data set that was registered as a file in COCO's format is that file; of any other the records are
    written to one below `FOLDER`, under a name that changes with their content. Raises ValueError for what is not
    registered or cannot be such a file, and FileNotFoundError where files are not there.
    """
    name = _registered(dataset, split, module)
    own = _own_files(name)
    if own is None:
        return _written(name, DatasetCatalog[name], Path.cwd())
    images, file = own
    absent = [f"the images {images}"] * (not images.is_dir()) + [f"the annotations {file}"] * (not file.is_file())
    if absent:
        raise FileNotFoundError(
            f"missing: {' and '.join(absent)} of {name} in detectron2's catalog. The variable DETECTRON2_DATASETS "
            "names the folder of detectron2's own data sets, which is `datasets` without it"
        )
    return own


def folders(dataset: str, module: str = "") -> list[Path]:
    """The folders that a data set is known to lie in without reading it. Raises ValueError as `find`."""
    found = []
    for split in ("train", "val"):
        own = _own_files(_registered(dataset, split, module))
        found += [own[0], own[1].parent] if own else [FOLDER]
    return list(dict.fromkeys(found))


def _registered(dataset: str, split: Split, module: str) -> str:
    """The name of a split in the catalog."""
    if module:
        import_module(module)
    train, comma, val = (part.strip() for part in dataset.partition(","))
    if not comma:
        train, val = f"{dataset}_train", f"{dataset}_val"
    if not train or not val or "," in val:
        raise ValueError(f"data.d2_dataset={dataset}: give NAME, for NAME_train and NAME_val, or two names as in a,b")
    name = train if split == "train" else val
    try:
        known(name, "--data.d2-import")
    except ValueError as error:
        raise ValueError(
            f"data.d2_dataset={dataset}: {error}. Give two names as in a,b if they end otherwise"
        ) from error
    return name


def known(name: str, option: str) -> None:
    """Raise ValueError unless a data set is registered; option: what names the module that registers it."""
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=5)
        hint = f" (there is {', '.join(near)})" if near else ""
        raise ValueError(
            f"no data set {name} is registered in detectron2's catalog{hint}: {option} names the module that registers "
            "it"
        )


def import_module(module: str, setting: str = "data.d2_import=") -> None:
    """Import what registers data sets; setting: what names it. Raises ValueError where that is not possible."""
    # As `python -m` has it, where a script's own folder stands in its place; after all else, so that nothing is hidden.
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{setting}{module} cannot be imported ({error}): name a module, as in `import`, that is "
            "installed, on PYTHONPATH or in the folder that this is started in"
        ) from error
    finally:
        sys.path.remove(here)


def _own_files(name: str) -> tuple[Path, Path] | None:
    """Images and annotations of a data set that was registered as a file in COCO's format."""
    known = MetadataCatalog.get(name)
    images, file = known.get("image_root"), known.get("json_file")
    if known.get("evaluator_type") != "coco" or not images or not file:
        return None
    return Path(images), Path(PathManager.get_local_path(os.fspath(file)))


@functools.lru_cache(maxsize=16)
def _written(name: str, function: Callable[[], Any], home: Path) -> tuple[Path, Path]:
    """The same of a data set whose records a function makes; home: the folder that `FOLDER` is in."""
    source = f"{name} of detectron2's catalog"
    try:
        records = function()
    except Exception as error:
        # It is a person's own, and may raise anything.
        raise ValueError(f"{source}: the function that makes it failed ({type(error).__name__}: {error})") from error
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise ValueError(f"{source}: the function that is registered must give a list of dicts, one for each image")
    images, content = as_coco(records, _classes(name, source), source)
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest()
    folder = home / FOLDER / re.sub(r"[^\w.=+-]", "_", name)
    path = folder / f"instances-{digest[:12]}.json"
    # Several processes may come here at once, and write the same.
    if not path.is_file() or sha256(path) != digest:
        atomic_write(path, lambda file: file.write(data), len(data))
    return images or folder, path


def _classes(name: str, source: str) -> dict[int, str]:
    """Id and name of each class, in the order in which records count them."""
    known = MetadataCatalog.get(name)
    names = known.get("thing_classes")
    if not names:
        raise ValueError(
            f"{source} has no names of classes: set MetadataCatalog.get({name!r}).thing_classes where it is registered"
        )
    places = known.get("thing_dataset_id_to_contiguous_id")
    if not places:
        return dict(enumerate(names, start=1))
    ids = {place: number for number, place in sorted(places.items(), reverse=True)}
    if sorted(ids) != list(range(len(names))):
        raise ValueError(
            f"{source}: thing_dataset_id_to_contiguous_id leads to {len(ids)} places, not to one for each of the "
            f"{len(names)} thing_classes: correct it where the data set is registered"
        )
    return {ids[place]: text for place, text in enumerate(names)}
