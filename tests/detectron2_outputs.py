"""What detectron2 leaves of a training in its OUTPUT_DIR, written by hand as it does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import simulated
import yaml

from detr_container.tasks.detection.coco_results import records_of
from detr_container.tasks.detection.scoring import score

ITERATIONS, BATCH, SECONDS, TRAINED_ON = 100, 4, 0.5, 200
SIX = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}
YACS: dict[str, Any] = {
    "DATASETS": {"TEST": ["mine_val"], "TRAIN": ["mine_train"]},
    "INPUT": {"MAX_SIZE_TEST": 1333, "MIN_SIZE_TEST": 800},
    "MODEL": {
        "BACKBONE": {"FREEZE_AT": 2, "NAME": "build_retinanet_resnet_fpn_backbone"},
        "MASK_ON": False,
        "META_ARCHITECTURE": "RetinaNet",
        "RESNETS": {"DEPTH": 50, "RES5_DILATION": 1},
        "WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "SOLVER": {"BASE_LR": 0.01, "IMS_PER_BATCH": BATCH, "MAX_ITER": ITERATIONS, "STEPS": [60, 80]},
}
LAZY = """\
dataloader:
  test:
    dataset: {_target_: detectron2.data.get_detection_dataset_dicts, filter_empty: false, names: mine_val}
    mapper:
      augmentations:
      - {_target_: detectron2.data.transforms.ResizeShortestEdge, max_size: 640, short_edge_length: 400}
  train: {total_batch_size: 64}
model:
  _target_: detectron2.modeling.GeneralizedRCNN
  backbone:
    _target_: detectron2.modeling.FPN
    bottom_up:
      _target_: detectron2.modeling.ResNet
      stages: {_target_: detectron2.modeling.ResNet.make_default_stages, depth: 101, norm: SyncBN}
  roi_heads:
    box_head:
      conv_norm: &id001 !!python/name:None.%3Clambda%3E ''
      input_shape: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 256, height: 7, width: 7}
    mask_head: {_target_: detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead, conv_norm: *id001}
train: {max_iter: 184375, output_dir: ./output, seed: 7}
"""
LOG = """\
[07/01 12:00:00 detectron2]: Rank of current process: 0. World size: {world}
[07/01 12:00:01 detectron2]: Environment info:
-----------------------  ----------------------------------------------
detectron2               0.6 @/env/detectron2
PyTorch                  2.1.0+cu121 @/env/torch
GPU available            Yes
GPU 0,1                  Tesla V100-SXM2-16GB (arch=7.0)
torchvision              0.16.0+cu121 @/env/torchvision
-----------------------  ----------------------------------------------
[07/01 12:00:01 detectron2]: Command line arguments: Namespace(config_file='retinanet.yaml', num_gpus={world})
[07/01 12:00:02 d2.data.build]: Removed 3 images with no usable annotations. {images} images left.
[07/01 12:00:12 d2.utils.events]:  eta: 0:00:40  iter: 19  total_loss: 2.1  time: 0.5  lr: 0.01  max_mem: 2048M
"""


def with_changes(**changed: Any) -> dict[str, Any]:
    """The settings of yacs with other values, by names with two underscores for a dot."""
    found: dict[str, Any] = json.loads(json.dumps(YACS))
    for name, value in changed.items():
        *sections, last = name.split("__")
        node = found
        for section in sections:
            node = node[section]
        node[last] = value
    return found


def make_output(
    folder: Path,
    world: simulated.Scene,
    annotations: Path,
    skill: float = 0.5,
    config: dict[str, Any] | str = YACS,
    log: str = LOG.format(world=2, images=TRAINED_ON),
    draw: int = 0,
    masks: bool = False,
) -> Path:
    """What detectron2 leaves of a training with an evaluation halfway and at the end."""
    found = simulated.detect(world, skill, draw, per_image=20)
    if masks:
        found = found._replace(masks=simulated.outlines(found.boxes, draw))
    results = list(records_of(found))
    (folder / "inference").mkdir(parents=True)
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
    scores = score(annotations, results)
    metrics = {f"bbox/{name}": metric(getattr(scores, ours)) for name, ours in SIX.items()}
    if scores.masks is not None:
        metrics |= {f"segm/{name}": metric(getattr(scores.masks, ours)) for name, ours in SIX.items()}
    half = {name: value / 2 for name, value in metrics.items()}
    lines = []
    for iteration in range(19, ITERATIONS, 20):
        lines.append(training_line(iteration))
        if iteration == 59:
            # Of the iteration 49: written with the next line, after it.
            lines.append({**half, "iteration": 49})
    lines.append({**metrics, "iteration": ITERATIONS})
    write_metrics(folder, lines)
    if config:
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        (folder / "config.yaml").write_text(text)
    if log:
        (folder / "log.txt").write_text(log)
    return folder


def metric(value: float | None) -> float:
    return math.nan if value is None else 100 * value


def training_line(iteration: int) -> dict[str, Any]:
    return {
        "data_time": 0.01,
        "eta_seconds": SECONDS * (ITERATIONS - iteration - 1),
        "iteration": iteration,
        "loss_box_reg": 1 / iteration,
        "loss_cls": 2 / iteration,
        "lr": 0.01,
        "time": SECONDS,
        "total_loss": 3 / iteration,
    }


def write_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    """As detectron2's JSONWriter, which writes NaN as such."""
    (folder / "metrics.json").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def file_of(home: Path) -> Path:
    return home / "data" / "annotations" / "instances_val2017.json"


def ap_of(folder: Path, annotations: Path) -> float | None:
    results: list[Any] = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return score(annotations, results, "pycocotools").ap
