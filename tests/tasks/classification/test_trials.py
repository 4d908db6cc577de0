"""A classifier as it is tried: its one size of batches, real and synthetic steps, and a few validation images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import debug
from PIL import Image
from runs import one_thread

from detr_container.base.processes import ProcessInfo
from detr_container.engine.session import Session
from detr_container.engine.trials import trials_of
from detr_container.measure.costs import costs
from detr_container.measure.probe import Probe
from detr_container.tasks.classification.trials import ClassificationTrials


def trials(root: Path, **changed: object) -> ClassificationTrials:
    found = trials_of(debug(root, train__micro_batch=4, **changed))
    assert isinstance(found, ClassificationTrials)
    return found


def test_the_largest_batch_is_every_batch(shapes: Path) -> None:
    mine = trials(shapes)
    task = mine.opened()
    model = task.build(weights=False)
    largest = mine.largest(task, task.size_multiple(model))
    assert largest.words == "4 x 32 x 32 pixels"
    assert largest.remedy == "data.size=32"
    sampler = task.sampler(0, batch=8, micro_batch=4, total_steps=3)
    real = list(task.batches(model, sampler, False, lambda short: False))
    assert len(real) == 6
    made = mine.synthetic(task, largest.large)
    for batch in real:
        assert [each.shape for each in batch.tensors] == [each.shape for each in made.tensors]
        assert [each.dtype for each in batch.tensors] == [each.dtype for each in made.tensors]
    assert mine.synthetic(task, mine.of_size((48, 64), 1, 3, 99)).images.shape == (3, 3, 48, 64)


def test_one_batch_is_learnt_and_a_synthetic_one_can_be_stepped_on(shapes: Path, tmp_path: Path) -> None:
    mine = trials(shapes, train__warmup_epochs=0, train__lr=2e-3)
    task = mine.opened()
    with one_thread():
        probe = Probe(task, mine.experiment, tmp_path, Session(ProcessInfo(), torch.device("cpu")))
        batch = mine.learnable(task, probe.model)
        losses = [probe.step_on([batch, batch]) for _ in range(12)]
        assert losses[-1] < 0.95 * losses[0]
        probe.step_on([mine.synthetic(task, mine.largest(task, 1).small)] * 2)
        assert probe.model.training
        mine.infer(probe.model.eval(), batch)


def test_few_validation_images_are_of_many_classes(shapes: Path, tmp_path: Path) -> None:
    mine = trials(shapes)
    few = mine.few(mine.opened(), 10, tmp_path / "few.json")
    assert few.validation_images == 10
    assert len(np.unique(few.data.val.folder.labels)) == 10
    for index in range(10):
        folder = few.data.val.folder
        assert few.data.val[(0, index)].label == folder.labels[index]
        assert folder.path(index).parent.name == folder.classes[folder.labels[index]]
    assert mine.few(mine.opened(), 99, tmp_path / "few.json").validation_images == 20


def test_faults_of_the_data_are_found(shapes: Path, tmp_path: Path) -> None:
    remarks = list[str]()
    words = trials(shapes).check_data(0, remarks.append)
    assert words == "train read 24 of 24 images, val read 20 of 20 images; 10 classes; no errors, 10 warnings"
    assert remarks == ["an epoch shows 24 views: each of its images 3 times (data.repeats)"]
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), "red").save(tmp_path / split / name / "1.png")
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"(?s)1 errors.*2\.png"):
        trials(tmp_path).check_data(0, remarks.append)


def test_costs_are_counted_without_data(shapes: Path) -> None:
    found = costs(debug(shapes), 10, [(32, 32)])
    assert found.parameters.total == found.parameters.backbone + found.parameters.head
    assert found.gflops.total > found.gflops.backbone > 0
