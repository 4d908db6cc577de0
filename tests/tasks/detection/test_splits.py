"""Where data come from, as far as detectron2 is not needed to say: what goes together, and that it is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detr_container.base import optional
from detr_container.config.detection import DataConfig, DetectionExperiment, detection
from detr_container.config.experiments import named
from detr_container.config.settings import validate
from detr_container.tasks.detection.evaluate import with_data
from detr_container.tasks.detection.splits import both_splits, folders, one_split


def experiment_with(**data: Any) -> DetectionExperiment:
    base = detection(named("debug").experiment)
    return replace(base, data=replace(base.data, **{"root": None, "make_shapes": (0, 0, 0), **data}))


def test_a_folder_and_files_are_found_as_before(root: Path) -> None:
    val = root / "val2017", root / "annotations" / "instances_val2017.json"
    assert one_split("val", DataConfig(root=root)) == val
    train, _ = both_splits(DataConfig(root=root, train_images=val[0], train_annotations=val[1]))
    assert train == val
    assert folders(DataConfig(root=root)) == experiment_with(root=root).data_folders == [root]
    assert folders(DataConfig(val_images=val[0])) == []


@pytest.mark.parametrize("other", [{"root": Path("a")}, {"val_images": Path("a")}, {"make_shapes": (4, 4, 64)}])
def test_a_catalogs_data_set_and_other_data_are_not_named_together(other: dict[str, Any]) -> None:
    (name,) = other
    experiment = experiment_with(d2_dataset="mine", **other)
    with pytest.raises(ValueError, match=rf"data.d2_dataset=mine and data.{name}=.*--data.root None"):
        validate(experiment)
    with pytest.raises(ValueError, match="name different data"):
        both_splits(experiment.data)


def test_a_module_alone_has_no_effect() -> None:
    assert validate(experiment_with(d2_import="mine")) == ["data.d2_import has no effect without data.d2_dataset"]


def test_other_data_take_the_place_of_an_experiments(root: Path) -> None:
    """Of a run on a catalog's data set, and the other way round."""
    theirs, ours = experiment_with(d2_dataset="mine", d2_import="there"), experiment_with(root=root)
    assert with_data(theirs, root, None, None).data == ours.data
    assert with_data(ours, None, None, None, "mine", "there").data == theirs.data
    assert with_data(ours, None, None, None) is ours


def test_without_detectron2_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    data = DataConfig(d2_dataset="coco_2017")
    with pytest.raises(ValueError, match="detectron2 is not installed: ") as caught:
        one_split("train", data)
    assert "\n" not in str(caught.value)
    # Nothing that only describes a run fails for it.
    assert folders(data) == []
