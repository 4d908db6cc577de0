"""What a config.yaml that detectron2 wrote says of a detector, whether of yacs or of LazyConfig."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detr_container.base.checked import read_bytes

_LARGEST = 1 << 24
_HEADS = {"SMCADETR": "SMCA-DETR"}
"""Our own models' names in detectron2's registry, where tables have another."""
_NO_MATTER = (
    *("OUTPUT_DIR", "SEED", "VIS_PERIOD", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    *("train.output_dir", "train.seed", "train.log_period", "train.eval_period", "train.checkpointer.period"),
    *("dataloader.train.num_workers", "dataloader.test.num_workers", "dataloader.evaluator.output_dir"),
)


@dataclass(frozen=True)
class ConfigFacts:
    """What could be found; None or empty is unknown.

    head, backbone: as tables name them; batch: images of an iteration; iterations: of the whole schedule; tests: names
    of the data sets of its evaluations; evaluated_with: sizes of images there, by our settings' names.
    """

    head: str = ""
    backbone: str = ""
    batch: int | None = None
    iterations: int | None = None
    seed: int | None = None
    tests: tuple[str, ...] = ()
    evaluated_with: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> ConfigFacts:
    """Read a configuration. Raises ValueError for what is none, and OSError for what the system refuses."""
    try:
        content = yaml.load(read_bytes(path, _LARGEST), _Loader)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not settings")
        flat = dict(_flat(content))
        settings = json.loads(json.dumps({name: flat[name] for name in flat if name not in _NO_MATTER}, default=str))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}): its settings are unknown") from error
    head, backbone = _names(flat)
    seed = _number(flat, "SEED", "train.seed")
    return ConfigFacts(
        head,
        backbone,
        _number(flat, "SOLVER.IMS_PER_BATCH", "dataloader.train.total_batch_size") or None,
        _number(flat, "SOLVER.MAX_ITER", "train.max_iter") or None,
        # A negative one stands for one that was drawn, and noted nowhere.
        seed if seed is not None and seed >= 0 else None,
        _tests(flat),
        _evaluated_with(flat),
        settings,
    )


class _Loader(yaml.SafeLoader):
    """Takes any tag for the plain value behind it: LazyConfig writes names and objects of Python's."""


def _plain(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value or tag.rpartition(":")[2]


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
_Loader.add_multi_constructor("!", _plain)


def _flat(content: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _names(flat: Mapping[str, Any]) -> tuple[str, str]:
    """Head and backbone."""
    if "MODEL.META_ARCHITECTURE" in flat:
        head = str(flat["MODEL.META_ARCHITECTURE"])
        masks, keypoints = flat.get("MODEL.MASK_ON") is True, flat.get("MODEL.KEYPOINT_ON") is True
        return _head(head, masks, keypoints), _yacs_backbone(flat, head)
    target = _last(flat.get("model._target_"))
    if not target:
        return "", ""
    masks, keypoints = (
        any(n.startswith(f"model.roi_heads.{each}_head.") for n in flat) for each in ("mask", "keypoint")
    )
    return _head(target, masks, keypoints), _lazy_backbone(flat)


def _head(name: str, masks: bool, keypoints: bool) -> str:
    if name == "GeneralizedRCNN":
        return f"{'Keypoint' if keypoints else 'Mask' if masks else 'Faster'} R-CNN"
    return _HEADS.get(name, name)


def _yacs_backbone(flat: Mapping[str, Any], head: str) -> str:
    builder, ours = str(flat.get("MODEL.BACKBONE.NAME", "")), flat.get("MODEL.DETR_CONTAINER.BACKBONE.NAME")
    name = builder.removeprefix("build_").removesuffix("_backbone")
    pyramid = " FPN" if "fpn" in name else ""
    if ours and (head in ("DETR", *_HEADS) or "detr_container" in name):
        return f"{ours}{pyramid}"
    if "resnet" not in name:
        return name
    dilated = " DC5" if flat.get("MODEL.RESNETS.RES5_DILATION") == 2 else ""
    return f"resnet{flat.get('MODEL.RESNETS.DEPTH', '')}{pyramid or dilated}"


def _lazy_backbone(flat: Mapping[str, Any]) -> str:
    outer = "model.backbone"
    below = f"{outer}.bottom_up" if any(name.startswith(f"{outer}.bottom_up.") for name in flat) else outer
    pyramid = " FPN" if below != outer else ""
    if f"{below}.name" in flat:
        return f"{flat[f'{below}.name']}{pyramid}"
    kind = _last(flat.get(f"{below}._target_"))
    depth = flat.get(f"{below}.stages.depth")
    return f"{kind.lower()}{depth}{pyramid}" if depth else f"{kind}{pyramid}"


def _last(target: Any) -> str:
    """The name of a class without its module's."""
    return str(target or "").rpartition(".")[2]


def _number(flat: Mapping[str, Any], *names: str) -> int | None:
    found = next((flat[name] for name in names if name in flat), None)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _tests(flat: Mapping[str, Any]) -> tuple[str, ...]:
    found = flat.get("DATASETS.TEST", flat.get("dataloader.test.dataset.names"))
    return tuple(map(str, found)) if isinstance(found, list) else (found,) if isinstance(found, str) else ()


def _evaluated_with(flat: Mapping[str, Any]) -> dict[str, Any]:
    shorter, longer = flat.get("INPUT.MIN_SIZE_TEST"), flat.get("INPUT.MAX_SIZE_TEST")
    steps = flat.get("dataloader.test.mapper.augmentations")
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and _last(step.get("_target_")) == "ResizeShortestEdge":
            shorter, longer = step.get("short_edge_length"), step.get("max_size")
    if not isinstance(shorter, int) or not isinstance(longer, int):
        return {}
    return {"eval_size": shorter, "max_size": longer, "resize": "shortest"}
