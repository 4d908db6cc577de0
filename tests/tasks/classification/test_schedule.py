"""The learning rates of the DeiT recipe, as published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detr_container.config.classification import ClassificationTrainConfig
from detr_container.tasks.classification.schedule import epoch_rate

GOLDEN = Path(__file__).parents[2] / "golden" / "deit.npz"


@pytest.mark.parametrize(("name", "epochs", "batch"), [("lr_imagenet", 300, 1024), ("lr_small", 12, 64)])
def test_every_epoch_has_the_published_rate(name: str, epochs: int, batch: int) -> None:
    train = replace(ClassificationTrainConfig(), epochs=epochs, batch=batch)
    with np.load(GOLDEN) as arrays:
        np.testing.assert_allclose([epoch_rate(epoch, train) for epoch in range(epochs)], arrays[name], rtol=1e-12)
