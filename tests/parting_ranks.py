"""A process of two that are about to part, and what it went through. Usage: parting_ranks.py FOLDER RANK."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import tiny

from detr_container.base.interrupt import StopRequest
from detr_container.config.detection import DetectionExperiment
from detr_container.engine import resume
from detr_container.engine import session as distributed
from detr_container.engine.checkpoint import Checkpoints
from detr_container.engine.resume import content_hash
from detr_container.engine.run import Run
from detr_container.engine.session import Session, open_session
from detr_container.engine.train import task_of
from detr_container.engine.trainer import Trainer
from detr_container.tasks.detection.together import validation_on_all

FOLDER, RANK = Path(sys.argv[1]), int(sys.argv[2])
GIVEN = json.loads((FOLDER / "given.json").read_text())


def experiment(**changed: Any) -> DetectionExperiment:
    settings = {"train__eval_every": 0, "train__epochs": 1, "head__dropout": 0.1, "train__micro_batch": 1}
    return tiny(Path(GIVEN["root"]), **settings, **changed)


def train(session: Session, name: str = "run", **changed: Any) -> list[Any]:
    """The step that this process ended at, and its weights; batch statistics are each process's own."""
    settings = experiment(**changed)
    with StopRequest() as stop:
        trainer = Trainer(task_of(settings, session), settings, Run(FOLDER / name), session, stop)
        trainer.run_to_end()
    return [trainer.step, content_hash(dict(trainer.model.named_parameters()))]


def blind(session: Session) -> list[Any]:
    """The second process sees an old listing of the folder, in which there is no checkpoint."""
    if RANK:
        Checkpoints.paths = lambda self: []
        Checkpoints.newest = lambda self: None
    return train(session, train__max_steps=1)


def other_data(session: Session, split: str, begin: Callable[[Session, DetectionExperiment], Any]) -> Any:
    """Each process has the data in a folder of its own machine; the second one's file has a line more."""
    place = FOLDER / f"{split}-{begin.__name__}-{RANK}"
    shutil.copytree(GIVEN["root"], place / "shapes")
    path = place / "shapes" / "annotations" / f"instances_{split}2017.json"
    if RANK:
        path.write_text(path.read_text() + "\n")
    os.chdir(place)
    settings = experiment()
    return begin(session, replace(settings, data=replace(settings.data, root=Path("shapes"))))


def begin_training(session: Session, settings: DetectionExperiment) -> None:
    with StopRequest() as stop:
        Trainer(task_of(settings, session), settings, Run(FOLDER / "with-other-data"), session, stop)


def fail(session: Session) -> None:
    """The second process fails while the first waits for it."""
    if RANK:
        raise LookupError("something of its own")
    session.barrier()


def stick(session: Session) -> None:
    """The second process has failed, but does not end, and the first waits for it."""
    distributed.GRACE = 0.5
    if RANK:
        distributed._report_failure(STORES[-1], "rank 1 has a reason")
        time.sleep(5)
        os._exit(0)
    session.barrier()


STORES: list[Any] = []
SCENES: dict[str, Callable[[Session], Any]] = {
    "begin": lambda session: train(session, train__max_steps=2),
    "blind": blind,
    "hidden": lambda session: train(session, "elsewhere" if RANK else "run"),
    "settings": lambda session: train(session, "other", seed=RANK),
    "train": lambda session: other_data(session, "train", begin_training),
    "val": lambda session: other_data(session, "val", begin_training),
    "evaluation": lambda session: other_data(session, "val", validation_on_all),
    "fail": fail,
    "stick": stick,
}


def main() -> None:
    torch.set_num_threads(1)
    resume.PATIENCE = 0.5
    join = distributed._join

    def joined(*arguments: Any) -> Any:
        STORES.append(join(*arguments))
        return STORES[-1]

    distributed._join = joined
    found: dict[str, Any] = {}
    for (name, scene), port in zip(SCENES.items(), GIVEN["ports"], strict=True):
        os.environ.update(RANK=str(RANK), LOCAL_RANK=str(RANK), WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            with open_session("cpu") as session:
                found[name] = scene(session)
        except (ValueError, OSError, LookupError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        (FOLDER / f"found-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
