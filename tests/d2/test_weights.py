"""What `export --layout detectron2` writes is loaded by detectron2 into our own meta-architectures, name by name."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_runs import BACKBONE, CLASSES, FOCAL, HEAD

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

from detectron2.checkpoint import DetectionCheckpointer

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig, LossConfig
from detr_container.d2.meta_archs import DETR, SMCADETR, QueryMetaArch
from detr_container.datasets.annotations import Category
from detr_container.tasks.detection.build import build_detector, start_from
from detr_container.tasks.detection.export import write_export
from detr_container.tasks.detection.trained import Trained

KINDS: list[Any] = [(DETR, LossConfig()), (SMCADETR, LossConfig(**FOCAL))]


def model(kind: type[QueryMetaArch], loss: LossConfig, name: str, classes: int = CLASSES) -> QueryMetaArch:
    backbone = BackboneConfig(**BACKBONE | {"name": name})
    built = kind(backbone=backbone, head=HeadConfig(**HEAD), loss=loss, num_classes=classes)
    assert isinstance(built, QueryMetaArch)
    return built


@pytest.mark.parametrize("name", ["container_light_tiny", "resnet18", "resnet50_msra"])
@pytest.mark.parametrize(("kind", "loss"), KINDS)
def test_what_is_exported_is_loaded_and_what_is_trained_there_opens_here(
    kind: type[QueryMetaArch], loss: LossConfig, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = BackboneConfig(**BACKBONE | {"name": name})
    experiment = DetectionExperiment(backbone=backbone, head=HeadConfig(kind=kind.kind, **HEAD), loss=loss, seed=3)
    before = build_detector(experiment, CLASSES, weights=False)
    classes = tuple(Category(3 * place, f"name {place}") for place in range(CLASSES))
    path = tmp_path / "out.pth"
    write_export(Trained(before, experiment, classes, Path("run"), 0), path, "detectron2", "id")
    loaded = model(kind, loss, name)
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(loaded).load(str(path))
    assert caplog.text == ""
    expected = before.state_dict()
    own = loaded.detector.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[each], value) for each, value in expected.items())
    # Saved by detectron2, a detector of ours starts from it; its classes have no names then.
    DetectionCheckpointer(loaded, str(tmp_path)).save("model_final")
    again = build_detector(experiment, CLASSES, weights=False)
    kept = start_from(again, experiment, classes, tmp_path / "model_final.pth")
    assert (kept.classes, kept.unused) == ((), ())
    own = again.state_dict()
    rest = {each: value for each, value in expected.items() if not each.startswith("class_embed")}
    assert all(torch.equal(own[each], value) for each, value in rest.items())


def test_a_head_of_other_classes_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As detectron2 has it of names that are the model's."""
    kind, loss = KINDS[0]
    backbone = BackboneConfig(**BACKBONE | {"name": "resnet18"})
    experiment = DetectionExperiment(backbone=backbone, head=HeadConfig(**HEAD), loss=loss, seed=3)
    before = build_detector(experiment, 2, weights=False)
    classes = (Category(1, "a"), Category(2, "b"))
    write_export(Trained(before, experiment, classes, Path("run"), 0), tmp_path / "out.pth", "detectron2", "id")
    loaded = model(kind, loss, "resnet18")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(loaded).load(str(tmp_path / "out.pth"))
    assert f"detector.class_embed.bias is [3], not [{CLASSES + 1}]: not loaded" in caplog.text
    own = loaded.detector.state_dict()
    assert torch.equal(own["query_embed.weight"], before.state_dict()["query_embed.weight"])
    content = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded.load_state_dict(content)
