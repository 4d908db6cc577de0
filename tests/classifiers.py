"""What the tests of a classifier's runs share: one tiny experiment in which everything random is in force."""

from pathlib import Path
from typing import Any

from runs import with_settings

from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.experiments import named


def debug(root: Path, **changed: Any) -> ClassificationExperiment:
    """`classify_debug` on other data, of 24 images: two epochs of three steps. changed: settings as `train__epochs=1`.

    Of mixing, erasing, RandAugment, repeated augmentation, drop-path, averages and accumulation, all are on.
    """
    settings: dict[str, Any] = {
        "data__root": root,
        "data__make_shapes": (0, 0, 0),
        "data__eval_batch": 6,
        "train__batch": 8,
        "train__micro_batch": 2,
        "train__checkpoint_minutes": 0.0,
        "train__ema_decay": 0.9,
        "train__warmup_epochs": 0,
        "device": "cpu",
        **changed,
    }
    return with_settings(classification(named("classify_debug").experiment), **settings)
