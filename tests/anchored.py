"""What the tests of RetinaNet and Mask R-CNN share: both made tiny, and detectron2, without which they are skipped."""

from pathlib import Path
from typing import Any

import pytest
from runs import tiny

from detr_container.config.detection import DetectionExperiment, LossConfig

KINDS = ("retinanet", "mask_rcnn")
WHY = "detectron2 is not installed: docs/detectron2.md says how"


def needs_detectron2() -> None:
    """Skip what needs detectron2 where it is missing."""
    pytest.importorskip("detectron2", reason=WHY)


def anchored(root: Path, kind: str, **changed: Any) -> DetectionExperiment:
    """As `tiny`, of one of `KINDS`."""
    settings: dict[str, Any] = {
        "head__kind": kind,
        "pyramid__channels": 16,
        "pyramid__convolutions": 1,
        "pyramid__hidden": 32,
        "pyramid__proposals": 40,
        "pyramid__anchor_size": 12,
        "loss": LossConfig(),
        "train__clip": 10.0,
        "train__lr": 1e-3,
        "train__lr_backbone": 1e-3,
    }
    return tiny(root, **(settings | changed))
