"""What processes decide from files and settings: by the main one for all, or compared over all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from detr_container.base.files import sha256
from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.dataset import DetectionDataset
from detr_container.engine.resume import content_hash
from detr_container.engine.session import Session

from .build import Data, check_backbone, make_shapes_if_asked, open_data
from .evaluate import open_validation
from .trained import Trained

_log = logging.getLogger(__name__)


def data_on_all(session: Session, experiment: DetectionExperiment) -> Data:
    """Both splits on every process, made by the main one if asked for."""
    with session.together():
        remark = check_backbone(experiment)
        if session.main:
            if remark:
                _log.info("%s", remark)
            make_shapes_if_asked(experiment.data)
    with session.together():
        data = open_data(experiment)
        for doubt in (*data.train.annotations.doubts, *data.val.annotations.doubts) if session.main else ():
            _log.warning("%s", doubt)
        return data


def trained_on_all(session: Session, path: Path, opened: Callable[[Path], Trained]) -> Trained:
    """A trained detector on every process: the main one chooses the file, and all must have taken the same from it."""
    trained = None
    with session.together():
        if session.main:
            trained = opened(path)
    chosen = session.of_main(str(trained.source) if trained else "")
    with session.together():
        trained = trained or opened(Path(chosen))
    session.agree({f"the weights in {chosen}": f"SHA-256 {content_hash(trained.model.state_dict())}"})
    return trained


def validation_on_all(session: Session, experiment: DetectionExperiment) -> DetectionDataset:
    """The validation split on every process, made by the main one if asked for; all must read the same file."""
    with session.together():
        if session.main:
            make_shapes_if_asked(experiment.data)
    with session.together():
        dataset = open_validation(experiment, unlabelled=True)
        digest = sha256(dataset.annotations.path)
    session.agree({f"the file {dataset.annotations.path}": f"SHA-256 {digest}"})
    return dataset
