"""detectron2's catalog: what is registered there is trained on here, and what is here is registered there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict, load_coco_json
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from numpy.typing import NDArray
from pycocotools import mask

from detr_container.commands.cli import main
from detr_container.config.detection import DataConfig, DetectionExperiment, detection
from detr_container.config.experiments import named
from detr_container.config.settings import validate
from detr_container.d2.catalog import register, register_shapes
from detr_container.datasets.annotations import read_annotations
from detr_container.datasets.shapes import CATEGORY_IDS
from detr_container.tasks.detection import catalog
from detr_container.tasks.detection.build import open_data
from detr_container.tasks.detection.catalog import find
from detr_container.tasks.detection.splits import both_splits
from detr_container.tasks.detection.trials import DetectionTrials

Records = list[dict[str, Any]]
_numbers = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    """A name that nothing has; what a test registers under it is forgotten."""
    found = f"set{next(_numbers)}"
    yield found
    for each in [each for each in DatasetCatalog.list() if each.startswith(found)]:
        DatasetCatalog.remove(each)
    for each in [each for each in MetadataCatalog.list() if each.startswith(found)]:
        MetadataCatalog.remove(each)


def files(root: Path, split: str) -> tuple[Path, Path]:
    return root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json"


def records_of(root: Path, split: str, mode: BoxMode = BoxMode.XYXY_ABS) -> Records:
    """A split of the shapes as a person's own function would make it; its categories count from 0."""
    images, file = files(root, split)
    records: Records = load_coco_json(str(file), str(images))
    places = {number: place for place, number in enumerate(sorted(CATEGORY_IDS.values()))}
    for each in (each for record in records for each in record["annotations"]):
        each["category_id"] = places[each["category_id"]]
        # Of an array, since of a list detectron2 makes float32.
        (each["bbox"],) = BoxMode.convert(np.array([each["bbox"]]), BoxMode.XYWH_ABS, mode).tolist()
        each["bbox_mode"] = mode
    return records


def objects_of(file: Path) -> Records:
    """By image, in the file's order."""
    return sorted(json.loads(file.read_text())["annotations"], key=lambda each: each["image_id"])


def decoded(code: dict[str, Any]) -> NDArray[np.uint8]:
    if isinstance(code["counts"], list):
        code = mask.frPyObjects(code, *code["size"])
    pixels: NDArray[np.uint8] = mask.decode(code)
    return pixels


def names_of_classes() -> list[str]:
    return sorted(CATEGORY_IDS, key=lambda each: CATEGORY_IDS[each])


def register_records(root: Path, name: str, change: Callable[[Records], object] = lambda records: None) -> None:
    def make(split: str) -> Records:
        records = records_of(root, split)
        change(records)
        return records

    for split in ("train", "val"):
        DatasetCatalog.register(f"{name}_{split}", lambda split=split: make(split))
        MetadataCatalog.get(f"{name}_{split}").thing_classes = names_of_classes()


def experiment_on(dataset: str, module: str = "") -> DetectionExperiment:
    base = detection(named("debug").experiment)
    data = replace(base.data, root=None, make_shapes=(0, 0, 0), d2_dataset=dataset, d2_import=module, workers=0)
    return replace(base, data=data)


def test_a_file_in_cocos_format_is_used_as_it_is(root: Path, name: str) -> None:
    for split in ("train", "val"):
        images, file = files(root, split)
        register_coco_instances(f"{name}_{split}", {}, str(file), str(images))
    assert both_splits(DataConfig(d2_dataset=name)) == (files(root, "train"), files(root, "val"))
    experiment = experiment_on(f"{name}_val,{name}_train")
    experiment.check_data()
    assert experiment.data_folders == [files(root, "val")[0], root / "annotations", files(root, "train")[0]]
    data = open_data(experiment)
    assert (len(data.train), len(data.val)) == (5, 16)


def test_files_that_are_missing_are_named_with_detectron2s_own_folder(tmp_path: Path, name: str) -> None:
    register_coco_instances(f"{name}_val", {}, str(tmp_path / "gone.json"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/gone.json of {name}_val .*DETECTRON2_DATASETS"):
        find(f"{name}_val,{name}_val", "val")
    with pytest.raises(FileNotFoundError, match="coco/train2017"):
        find("coco_2017", "train")


def test_records_become_the_file_that_they_came_from(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_records(root, name)
    images, file = find(name, "train")
    assert images == root / "train2017"
    assert file.parent == tmp_path / "data" / "detectron2" / f"{name}_train"
    theirs, ours = read_annotations(file, images), read_annotations(files(root, "train")[1], images)
    np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-9)
    assert theirs.file_names == ours.file_names
    for one in ("image_ids", "sizes", "labels", "crowd", "starts"):
        np.testing.assert_array_equal(getattr(theirs, one), getattr(ours, one))
    # Numbered from 1, in their order.
    assert [(each.id, each.name) for each in theirs.categories] == list(enumerate(names_of_classes(), start=1))
    theirs, ours = ([each["segmentation"] for each in objects_of(path)] for path in (file, files(root, "train")[1]))
    assert {type(each) for each in theirs} == {list, dict}
    for mine, other in zip(theirs, ours, strict=True):
        # detectron2 compresses the codes that it reads.
        assert mine == other if isinstance(mine, list) else (decoded(mine) == decoded(other)).all()


def test_records_become_what_detectron2_makes_of_them(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rounds boxes to three digits, numbers classes from 0 and has absolute names."""
    monkeypatch.chdir(tmp_path)
    register_records(root, name)
    content = json.loads(find(name, "val")[1].read_text())
    theirs = convert_to_coco_dict(f"{name}_val")
    for mine, other in zip(content["annotations"], theirs["annotations"], strict=True):
        np.testing.assert_allclose(mine.pop("bbox"), other.pop("bbox"), atol=5e-4)
        np.testing.assert_allclose(mine.pop("area"), other.pop("area"), rtol=1e-5)
        assert mine.pop("category_id") == other.pop("category_id") + 1
        assert mine == other
    for mine, other in zip(content["images"], theirs["images"], strict=True):
        assert mine | {"file_name": str(root / "val2017" / mine["file_name"])} == other


def test_ids_that_the_catalog_maps_are_the_files_again(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_records(root, name)
    ids = sorted(CATEGORY_IDS.values())
    MetadataCatalog.get(f"{name}_val").thing_dataset_id_to_contiguous_id = {each: ids.index(each) for each in ids}
    images, file = find(name, "val")
    theirs, ours = read_annotations(file, images), read_annotations(files(root, "val")[1], images)
    assert theirs.categories == ours.categories
    np.testing.assert_array_equal(theirs.labels, ours.labels)


def test_the_file_is_written_again_only_when_its_content_changes(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = [2]
    register_records(root, name, lambda records: records.__delitem__(slice(kept[0], None)))
    _, first = find(name, "val")
    written = first.stat().st_mtime_ns
    catalog._written.cache_clear()
    assert find(name, "val")[1] == first
    assert first.stat().st_mtime_ns == written
    first.write_text("cut sh")
    catalog._written.cache_clear()
    find(name, "val")
    assert len(json.loads(first.read_text())["images"]) == 2
    kept[0] = 3
    catalog._written.cache_clear()
    _, second = find(name, "val")
    # What refers to the first one still finds it.
    assert second != first
    assert first.is_file()
    assert len(json.loads(second.read_text())["images"]) == 3


def test_several_may_write_it_at_once(root: Path, name: str, tmp_path: Path) -> None:
    register_records(root, name)
    function = DatasetCatalog[f"{name}_val"]
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: catalog._written.__wrapped__(f"{name}_val", function, tmp_path), range(8)))
    ((_, file),) = found
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert len(json.loads(file.read_text())["images"]) == 5


def test_images_in_no_common_folder_have_absolute_names(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_records(root, name, lambda records: records[0].update(file_name="/nowhere.jpg"))
    images, file = find(name, "val")
    assert images == file.parent
    annotations = read_annotations(file, images)
    assert str(images / annotations.file_names[0]) == "/nowhere.jpg"
    assert (images / annotations.file_names[1]).is_file()


def test_ids_of_images_that_are_no_numbers_are_counted(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_records(root, name, lambda records: [record.update(image_id="a name") for record in records])
    images, file = find(name, "val")
    assert read_annotations(file, images).image_ids.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda records: records[0].pop("height"), "'height' is missing"),
        (lambda records: records[0]["annotations"][0].pop("bbox_mode"), "'bbox_mode' is missing"),
        (
            lambda records: records[0]["annotations"][0].update(category_id=6),
            "category_id 6 is of none",
        ),
        (lambda records: records[0]["annotations"][0].update(bbox_mode=BoxMode.XYXY_REL), "Relative mode"),
        (
            lambda records: [
                each.update(bbox=[1.0, 2.0, 3.0, 4.0, 5.0], bbox_mode=BoxMode.XYWHA_ABS)
                for each in records[0]["annotations"]
            ],
            "turned boxes are not read",
        ),
    ],
)
def test_a_record_of_another_format_is_named(
    root: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Records], object],
    rule: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    register_records(root, name, change)
    with pytest.raises(ValueError, match=rf"{name}_val of detectron2's catalog: the record of .*\.jpg .*{rule}"):
        find(name, "val")


def test_what_is_registered_must_give_records_and_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DatasetCatalog.register(f"{name}_train", lambda: 1 / 0)
    DatasetCatalog.register(f"{name}_val", dict)
    with pytest.raises(ValueError, match=r"failed .ZeroDivisionError: division by zero"):
        find(name, "train")
    with pytest.raises(ValueError, match="must give a list of dicts"):
        find(name, "val")
    DatasetCatalog[f"{name}_val"] = list
    with pytest.raises(ValueError, match=rf"MetadataCatalog.get\('{name}_val'\).thing_classes"):
        find(name, "val")


def test_a_name_that_is_not_there_is_answered_with_near_ones() -> None:
    with pytest.raises(ValueError, match=r"no data set coco_2071_val .*there is .*coco_2017_val.*--data.d2-import"):
        find("coco_2071", "val")
    with pytest.raises(ValueError, match="two names as in a,b"):
        find("a,b,c", "val")


def test_a_module_registers_what_is_trained_on(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the command line: the folder that it is started in is searched."""
    monkeypatch.chdir(tmp_path)
    module = f"registers_{name}"
    Path(f"{module}.py").write_text(
        "from pathlib import Path\nfrom detr_container.d2.catalog import register\n"
        f"register(Path({str(root)!r}), {name!r})\n"
    )
    assert main(["data", "check", "--d2-dataset", name, "--d2-import", module, "--workers", "1"]) == 0
    assert open_data(experiment_on(name, module)).train.annotations.path == files(root, "train")[1]
    with pytest.raises(ValueError, match=r"d2_import=gone cannot be imported .*PYTHONPATH"):
        find(name, "val", "gone")


def test_records_are_trained_on_and_checked(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    register_records(root, name)
    experiment = experiment_on(name)
    assert validate(experiment) == []
    data = open_data(experiment)
    assert [each.name for each in data.classes] == names_of_classes()
    sample = data.train[(0, 0)]
    assert len(sample.boxes) == len(sample.labels) > 0
    remarks: list[str] = []
    assert "no errors" in DetectionTrials(experiment).check_data(0, remarks.append)


def test_a_data_set_of_ours_is_read_and_evaluated_by_detectron2(tmp_path: Path, name: str) -> None:
    root = tmp_path / "shapes"
    names = register_shapes(root, 4, 6, 64, name)
    assert names == (f"{name}_train", f"{name}_val")
    assert DatasetCatalog[f"{name}_val"] is DatasetCatalog[register_shapes(root, 4, 6, 64, name)[1]]
    assert MetadataCatalog.get(names[1]).thing_classes == names_of_classes()
    loader = build_detection_test_loader(
        DatasetCatalog.get(names[1]), mapper=DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    )
    (first,) = next(iter(loader))
    assert first["image"].shape == (3, 64, 64)
    evaluator = COCOEvaluator(names[1], tasks=("bbox",), distributed=False, output_dir=str(tmp_path / "inference"))
    result = inference_on_dataset(Perfect(names[1]), loader, evaluator)
    assert result["bbox"]["AP"] == pytest.approx(100)


def test_a_name_that_is_taken_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    assert register(root, name) == register(root, name) == (f"{name}_train", f"{name}_val")
    with pytest.raises(ValueError, match=rf"{name}_train is registered .*instances_train2017.json, not .*_val2017"):
        register(root, name, *files(root, "val"))
    DatasetCatalog.register(f"{name}b_train", list)
    with pytest.raises(ValueError, match="made by a function"):
        register(root, f"{name}b")
    with pytest.raises(FileNotFoundError, match="missing"):
        register(tmp_path, f"{name}c")


class Perfect(torch.nn.Module):
    """Finds exactly what is annotated."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.known = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}

    def forward(self, inputs: Records) -> Records:
        found = []
        for one in inputs:
            objects = [each for each in self.known[one["image_id"]]["annotations"] if not each["iscrowd"]]
            instances = Instances((one["height"], one["width"]))
            boxes = torch.tensor([each["bbox"] for each in objects]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.pred_classes = torch.tensor([each["category_id"] for each in objects], dtype=torch.int64)
            instances.scores = torch.ones(len(objects))
            found.append({"instances": instances})
        return found
