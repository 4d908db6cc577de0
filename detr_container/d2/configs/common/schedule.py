"""How long training is and how its learning rates fall, in images of COCO and 16 to a step."""

from typing import Any

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

BATCH = 16
# COCO's training images: all, as DETR's published code shows them, and those with objects, as detectron2's loader does.
ALL, WITH_OBJECTS = 118_287, 117_266


def iterations(epochs: int, images: int) -> int:
    """Steps of 16 images."""
    return round(epochs * images / BATCH)


def lasting(train: dict[str, Any], epochs: int, images: int, name: str) -> dict[str, Any]:
    """The same settings of the loop for so many epochs; a checkpoint and an evaluation each."""
    epoch = iterations(1, images)
    return {
        **train,
        "output_dir": f"output/{name}",
        "max_iter": iterations(epochs, images),
        "checkpointer": {**train["checkpointer"], "period": epoch},
        "eval_period": epoch,
    }


def drop_at(*drops: int, epochs: int) -> Any:
    """Learning rates fall to a tenth after these epochs."""
    return L(MultiStepParamScheduler)(
        values=[0.1**place for place in range(len(drops) + 1)], milestones=[*drops, epochs]
    )


def warmed_up(scheduler: Any, steps: int, whole: int) -> Any:
    """The same after a linear rise over so many of the whole number of steps, from a thousandth."""
    return L(WarmupParamScheduler)(
        scheduler=scheduler, warmup_factor=0.001, warmup_length=steps / whole, warmup_method="linear"
    )
