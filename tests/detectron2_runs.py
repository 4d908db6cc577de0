"""What the tests of detectron2's loop share: tiny models, a data set in its catalog, and a configuration of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

BACKBONE: dict[str, Any] = {"name": "container_light_tiny", "weights": "none", "frozen_stages": 0, "norm": "batch"}
PYRAMID: dict[str, Any] = {**BACKBONE, "name": "resnet18"}
"""Of maps up to stride 32, as a feature pyramid has them."""
HEAD: dict[str, Any] = {
    "queries": 10,
    "width": 32,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward": 64,
    "dropout": 0.0,
}
FOCAL: dict[str, Any] = {"classification": "focal", "class_weight": 2.0, "cost_class": 2.0}
CLASSES = 6
"""Of the shapes."""

_MODULE = """
from pathlib import Path

from detr_container.d2.catalog import register

register(Path("ROOT"), "shapes")
"""
_LAZY = """
from detectron2.config import LazyConfig

from detr_container.d2.config_files import config_file

cfg = LazyConfig.load(config_file("NAME"))
train, model, optimizer, lr_multiplier, dataloader = (
    cfg[key] for key in ("train", "model", "optimizer", "lr_multiplier", "dataloader")
)
del cfg
SIZED
dataloader.train.dataset.names, dataloader.test.dataset.names = "shapes_train", "shapes_val"
dataloader.train.total_batch_size, dataloader.train.num_workers, dataloader.test.num_workers = 2, 0, 0
dataloader.train.mapper.augmentations[0].update(AUGMENTED)
dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=96)
train.update(max_iter=6, eval_period=0, log_period=1, device="cpu", seed=3)
train.checkpointer.period = 2
"""

_QUERIES = f"""
model.backbone.update({BACKBONE})
model.head.update({HEAD})
model.num_classes = {CLASSES}
"""
_ANCHORS = f"""
model.backbone.bottom_up.update({PYRAMID})
model.roi_heads.num_classes = {CLASSES}
model.proposal_generator.post_nms_topk = (20, 20)
# Shapes have polygons and run lengths.
dataloader.train.mapper.instance_mask_format = "bitmask"
"""
_DETR_SIZES = {"scales": (48, 64), "max_size": 96, "crop_resize": (48, 64), "crop_range": (32, 60)}


def lazy_config(folder: Path, root: Path, name: str = "detr_r50_50e") -> Path:
    """A LazyConfig of a tiny model on a data set of shapes, derived from one of ours as anybody would."""
    queries = name.startswith(("detr", "smca"))
    path = folder / f"tiny_{name}.py"
    sizes = _DETR_SIZES if queries else {"short_edge_length": 64, "max_size": 96}
    text = _filled(_MODULE + _LAZY, root, NAME=name, SIZED=_QUERIES if queries else _ANCHORS, AUGMENTED=sizes)
    path.write_text(text)
    return path


def yacs_config(folder: Path, **changed: Any) -> Path:
    """The same as yacs settings, of SMCA-DETR; `module` registers the data."""
    parts = {"BACKBONE": BACKBONE, "HEAD": HEAD, "LOSS": FOCAL}
    ours = {part: {key.upper(): value for key, value in settings.items()} for part, settings in parts.items()}
    settings = {
        "MODEL": {"META_ARCHITECTURE": "SMCADETR", "DEVICE": "cpu", "DETR_CONTAINER": {"NUM_CLASSES": CLASSES, **ours}},
        "DATASETS": {"TRAIN": ["shapes_train"], "TEST": ["shapes_val"]},
        "INPUT": {"MIN_SIZE_TRAIN": [48, 64], "MIN_SIZE_TEST": 64, "CROP": {"SIZE": [32, 60]}},
        "SOLVER": {"MAX_ITER": 6, "STEPS": [4], "CHECKPOINT_PERIOD": 2, "IMS_PER_BATCH": 2},
        "TEST": {"EVAL_PERIOD": 0},
        "DATALOADER": {"NUM_WORKERS": 0},
        "VERSION": 2,
        **changed,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def module(folder: Path, root: Path) -> str:
    """The name of a module in a folder that registers the data."""
    (folder / "my_data.py").write_text(_filled(_MODULE, root))
    return "my_data"


def _filled(text: str, root: Path, **values: Any) -> str:
    for key, value in {"ROOT": root, **values}.items():
        text = text.replace(key, str(value))
    return text
