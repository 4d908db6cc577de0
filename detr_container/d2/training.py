"""detectron2's trainers for our models: `Trainer` in the place of `DefaultTrainer`, and the loop of a LazyConfig."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from detr_container.tasks.detection.anchors.workarounds import device_ids, settings_errors_are_assertions

from . import optimizers
from .augmentations import from_settings
from .checkpoints import AtomicCheckpointer, iteration_of, numbered
from .stopping import StopHook

Asked = Callable[[], bool]


class Trainer(DefaultTrainer):
    """`DefaultTrainer` with the optimizer and augmentation of our models, COCO's metrics and whole checkpoints.

    asked: see `StopHook`; None: nobody asks it to stop.
    """

    def __init__(self, cfg: CfgNode, asked: Asked | None = None) -> None:
        self._asked = asked
        super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks, whose checkpoints are written whole or not at all."""
        self.checkpointer = AtomicCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return with_stop(super().build_hooks(), self.checkpointer, self._asked)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """Ours for our models; for others detectron2's."""
        if optimizers.is_ours(model):
            return optimizers.build(cfg, model)
        theirs: Optimizer = super().build_optimizer(cfg, model)
        return theirs

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """With DETR's augmentation for our models."""
        if cfg.MODEL.META_ARCHITECTURE not in ("DETR", "SMCADETR"):
            return super().build_train_loader(cfg)
        mapper = DatasetMapper(
            is_train=True, augmentations=[from_settings(cfg)], image_format=cfg.INPUT.FORMAT, use_instance_mask=False
        )
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """COCO's metrics; detections are left in `inference`."""
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))


def with_stop(
    made: Sequence[HookBase | None], checkpointer: DetectionCheckpointer, asked: Asked | None
) -> list[HookBase]:
    """Hooks with `StopHook` before evaluation, for which a stop need not wait then."""
    kept = [hook for hook in made if hook is not None]
    if asked is None:
        return kept
    place = next((index for index, hook in enumerate(kept) if isinstance(hook, hooks.EvalHook)), len(kept))
    return [*kept[:place], StopHook(checkpointer, asked), *kept[place:]]


def adopt(trainer: TrainerBase, folder: Path, done: int) -> None:
    """Let `max_to_keep` count the checkpoints of earlier starts, which detectron2 forgets; of too many the oldest go.

    done: iterations that were made; what a checkpoint has of later ones is damaged, and will be made again.
    """
    for hook in trainer._hooks:
        if isinstance(hook, hooks.PeriodicCheckpointer) and hook.max_to_keep is not None:
            found = [path for path in numbered(folder) if iteration_of(path) < done]
            for old in found[hook.max_to_keep :]:
                old.unlink(missing_ok=True)
            hook.recent_checkpoints = [str(path) for path in reversed(found[: hook.max_to_keep])]


def lazy_trainer(cfg: Any, device: torch.device, asked: Asked | None = None) -> tuple[SimpleTrainer, Any]:
    """The trainer of a LazyConfig, as detectron2's tool for them makes it, and the checkpointer that it saves with.

    device: of this process; asked: see `StopHook`.
    """
    with settings_errors_are_assertions():
        model = instantiate(cfg.model)
        _check_levels(model)
        model.to(device)
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **{"device_ids": device_ids(device), **cfg.train.ddp})
    if cfg.train.amp.enabled:
        trainer = AMPTrainer(model, loader, optimizer, grad_scaler=torch.amp.GradScaler("cuda"))
    else:
        trainer = SimpleTrainer(model, loader, optimizer)
    checkpointer = AtomicCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    main, settings = comm.is_main_process(), cfg.train
    made = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.PeriodicCheckpointer(checkpointer, **settings.checkpointer) if main else None,
        hooks.EvalHook(settings.eval_period, lambda: evaluate(cfg, model)),
        hooks.PeriodicWriter(default_writers(settings.output_dir, settings.max_iter), settings.log_period)
        if main
        else None,
    ]
    trainer.register_hooks(with_stop(made, checkpointer, asked))
    return trainer, checkpointer


def _check_levels(model: Any) -> None:
    """Raise ValueError where a model of detectron2's reads feature maps that its backbone does not give."""
    given: dict[str, Any] = getattr(getattr(model, "backbone", None), "output_shape", dict)()
    proposals: Any = getattr(model, "proposal_generator", None)
    wanted: list[str] = getattr(proposals, "in_features", getattr(model, "head_in_features", []))
    if absent := [name for name in wanted if name not in given]:
        raise ValueError(
            f"the model reads the maps {', '.join(wanted)}, and its backbone has no {', '.join(absent)}: take a "
            "backbone with maps up to stride 32, or make the model for its strides, as "
            "detr_container/d2/configs/common/models.py makes it for others"
        )


def evaluate(cfg: Any, model: nn.Module) -> Any:
    """The metrics of a LazyConfig's evaluator; nothing where it has none."""
    if cfg.dataloader.get("evaluator") is None or cfg.dataloader.get("test") is None:
        return None
    with settings_errors_are_assertions():
        loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results
