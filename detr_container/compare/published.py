"""Published figures of the same heads on the same backbones: COCO val2017, 50 epochs. Never mixed with ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detr_container.config.settings import Experiment
from detr_container.datasets.coco_classes import COCO


@dataclass(frozen=True)
class Published:
    """Box AP in per cent (AP50, AP75 and by size where they were given) and where it is printed."""

    ap: float
    source: str
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None


PUBLISHED = {
    ("detr", "resnet50"): Published(34.9, "Conditional DETR (Meng et al. 2021), table 1"),
    ("detr", "container_light"): Published(38.9, "Container (Gao et al. 2021, arXiv 2106.01401)"),
    ("smca", "resnet50"): Published(
        41.0, "SMCA-DETR (Gao et al. 2021, arXiv 2101.07448), single scale", 62.2, 43.6, 21.9, 44.3, 59.1
    ),
    ("smca", "container_light"): Published(44.2, "Container (Gao et al. 2021, arXiv 2106.01401) and SMCA-DETR's code"),
}


def published(experiment: Experiment, classes: Sequence[str]) -> Published | None:
    """What was published of this head on this backbone; None where nothing was, or of another variant or data set."""
    if experiment.backbone.dilation or set(classes) != {category.name for category in COCO}:
        return None
    return PUBLISHED.get((experiment.head.kind, experiment.backbone.name))
