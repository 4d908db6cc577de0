"""An evaluation asks a device for one copy a batch, and what arrives is what was detected."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reads import Reads
from runs import tiny
from tape import Tape
from torch import Tensor

from detr_container.base.processes import ProcessInfo
from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.batch import Batch
from detr_container.engine.graphs import Replays
from detr_container.engine.session import Session
from detr_container.models.detector import Detector, Output
from detr_container.models.device import Fetched
from detr_container.models.postprocess import LIMIT, counted, postprocess
from detr_container.tasks.detection import finding
from detr_container.tasks.detection.build import build_detector
from detr_container.tasks.detection.detections import Detections
from detr_container.tasks.detection.evaluate import detect, open_validation


def experiment_of(root: Path, classification: str = "focal", queries: int = LIMIT + 20) -> DetectionExperiment:
    experiment = tiny(root, data__eval_batch=2, data__augment="none")
    head = replace(experiment.head, queries=queries, kind="detr" if classification == "softmax" else "smca")
    return replace(experiment, head=head, loss=replace(experiment.loss, classification=classification))


def built(experiment: DetectionExperiment) -> Detector:
    torch.manual_seed(0)
    return build_detector(experiment, 6, weights=False)


def detected(experiment: DetectionExperiment, model: Detector, device: str = "cpu") -> Detections:
    dataset = open_validation(experiment)
    session = Session(ProcessInfo(), torch.device(device))
    return detect(model, dataset, dataset.annotations.categories, experiment, session)


@pytest.mark.parametrize(("classification", "queries"), [("focal", LIMIT + 20), ("softmax", LIMIT + 20), ("focal", 7)])
def test_what_arrives_is_what_was_detected(classification: str, queries: int, root: Path) -> None:
    """Bit for bit, in the order of the images, also of the last batch, which is smaller."""
    experiment = experiment_of(root, classification, queries)
    model, outputs, sizes = built(experiment), list[Output](), list[Any]()
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))

    rows_of = finding._Rows

    def watched(batch: Batch, rows: Fetched) -> Any:
        sizes.append(batch.original_sizes)
        return rows_of(batch, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "_Rows", watched)
        found = detected(experiment, model)
    assert [len(each) for each in sizes] == [2, 2, 1]
    scores, labels, boxes, counts = list[Tensor](), list[Tensor](), list[Tensor](), list[int]()
    for output, original in zip(outputs, sizes, strict=True):
        ranked = postprocess(output, original, classification)
        kept = counted(ranked.labels)
        counts += kept.sum(dim=1).tolist()
        for parts, values in ((scores, ranked.scores), (labels, ranked.labels), (boxes, ranked.boxes)):
            parts.append(values[kept])
    assert np.diff(found.starts).tolist() == counts
    assert np.array_equal(found.scores, torch.cat(scores).numpy())
    assert np.array_equal(found.labels, torch.cat(labels).numpy())
    assert np.array_equal(found.boxes, torch.cat(boxes).numpy())
    assert (found.scores.dtype, found.labels.dtype, found.boxes.dtype) == (np.float32, np.int64, np.float32)


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_one_copy_a_batch_which_is_awaited_while_the_next_is_computed(classification: str, root: Path) -> None:
    experiment = experiment_of(root, classification)
    model, waits, order = built(experiment), Reads(), list[str]()
    start, wait, compute = Fetched.__init__, Fetched.wait, Replays.__call__

    def started(fetched: Fetched, tensor: Tensor) -> None:
        order.append("sent")
        start(fetched, tensor)

    def waited(fetched: Fetched) -> Tensor:
        order.append("awaited")
        return wait(fetched)

    def computed(*arguments: Any) -> Any:
        # What is done on the device; loading images on the host reads as much as it likes.
        with waits:
            return compute(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetched, "__init__", started)
        patch.setattr(Fetched, "wait", waited)
        patch.setattr(Replays, "__call__", computed)
        detected(experiment, model)
    assert order == ["sent", "sent", "awaited", "sent", "awaited", "awaited"]
    assert waits.found == Counter()


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_replayed_forward_passes_find_the_same(
    classification: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, tape = experiment_of(root, classification), Tape()
    model = built(experiment)
    plain = detected(experiment, model)
    monkeypatch.setattr(finding, "recorder_for", lambda *_: tape)
    found = detected(experiment, model)
    # Two images twice, and the last one.
    assert (tape.recorded, tape.replays) == (2, 1)
    for name in ("image_ids", "starts", "scores", "labels", "boxes"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_nothing_else_waits_for_a_gpu(classification: str, precision: str, root: Path) -> None:
    experiment = experiment_of(root, classification)
    experiment = replace(experiment, train=replace(experiment.train, precision=precision))
    model = built(experiment).to("cuda")
    first = detected(experiment, model, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = detected(experiment, model, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(first.image_ids, again.image_ids)
    assert np.array_equal(first.starts, again.starts)
    np.testing.assert_allclose(first.scores, again.scores, rtol=0.02, atol=1e-4)
