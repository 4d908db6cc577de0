"""A trained detector as other code wants it: a file of weights under its names, or a folder for `from_pretrained`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from detr_container.base.files import atomic_write, write_json
from detr_container.config.detection import DataConfig, DetectionExperiment, HeadConfig
from detr_container.datasets.coco_classes import is_unused, unused
from detr_container.engine.weight_files import is_weights_folder
from detr_container.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from detr_container.models.backbones.resnet import DEPTHS, MSRA
from detr_container.models.weights.class_rows import class_rows, reordered
from detr_container.models.weights.detectors import scatter_rows
from detr_container.models.weights.detectron2 import to_anchors, to_detectron2
from detr_container.models.weights.hugging_face import to_hugging_face
from detr_container.models.weights.layouts import to_published

from .detector_file import PROCESSOR
from .trained import Trained

Layout = Literal["published", "detectron2", "hugging-face", "hugging-face-folder"]
Rows = Literal["id", "order"]


_USUAL = {"nheads": 8, "dilation": False, "smooth": HeadConfig.smooth}
"""What weights are taken for that stand alone."""
_OTHERWISE = (".pkl", ".pyth", ".safetensors")
"""Endings of files that detectron2 does not read as torch.save's, or not at all."""
_FOLDER = " (--layout hugging-face-folder does)"


def write_export(trained: Trained, target: Path, layout: Layout, rows: Rows) -> int:
    """Write a detector in a layout: a file of torch.save, of safetensors where it is called so, or a folder.

    rows: as for `exported`. Returns the number of tensors. Raises ValueError for what the layout cannot hold, and for a
    folder of other things.
    """
    state = exported(trained, layout, rows)
    unstated = _unstated(trained.experiment)
    if layout == "hugging-face-folder":
        _write_folder(trained, target, state, rows)
    elif layout == "detectron2":
        _write_detectron2(trained, target, state)
    elif target.suffix == ".safetensors":
        if not unstated.items() <= _USUAL.items():
            raise ValueError(
                f"{target}: a file of safetensors holds weights alone, without {unstated}: end its name in .pth"
            )
        _write_safetensors(target, state, follow=True)
    else:
        content = {"model": state, "args": unstated} if layout == "published" else state
        atomic_write(target, partial(torch.save, content), follow=True)
    return len(state)


def _unstated(settings: DetectionExperiment) -> dict[str, Any]:
    """What no tensor shows of a model that published layouts can hold, under the names of the published arguments."""
    head = settings.head
    smooth = {"smooth": head.smooth} if head.kind == "smca" else {}
    return {"nheads": head.heads, "dilation": settings.backbone.dilation, **smooth}


def _write_detectron2(trained: Trained, target: Path, state: dict[str, Tensor]) -> None:
    """A file that DetectionCheckpointer loads as it is: names are the model's, so that it need not match them.

    Beside the weights, which are all that it reads: what no tensor shows, and the classes in the order of their ids.
    """
    if target.suffix in _OTHERWISE:
        raise ValueError(f"{target}: detectron2 reads files of {target.suffix} in another way: end its name in .pth")
    unstated = {} if trained.experiment.anchors else _unstated(trained.experiment)
    arguments = {**unstated, "backbone": trained.experiment.backbone.name}
    classes = sorted((each.id, each.name) for each in trained.classes if not is_unused(each.name))
    content = {"model": state, "args": arguments, "classes": [list(each) for each in classes]}
    atomic_write(target, partial(torch.save, content), follow=True)


def exported(trained: Trained, layout: Layout, rows: Rows = "id") -> dict[str, Tensor]:
    """The weights under the names of the published code, of detectron2 or of Hugging Face's DETR.

    rows: class rows by category id, or in the order of the class list; detectron2's are in the order of the ids.
    Raises ValueError for a model that the layout does not have, and for ids that have no row.
    """
    settings = trained.experiment
    softmax = settings.loss.classification == "softmax"
    if layout == "detectron2":
        return _for_detectron2(trained, softmax)
    if settings.anchors:
        raise ValueError(f"{settings.head.kind} is detectron2's: use --layout detectron2")
    if layout != "published":
        _check_hugging_face(settings, layout == "hugging-face-folder")
    elif settings.backbone.name in MSRA:
        raise ValueError(
            f"backbone.name={settings.backbone.name} cannot be exported to the published layout: its ResNet has other "
            "strides and takes other pixels. Use --layout detectron2"
        )
    state = trained.model.state_dict()
    if not trained.as_published:
        state = scatter_rows(state, [category.id for category in trained.classes], softmax, rows == "id")
    return to_published(state) if layout == "published" else to_hugging_face(state)


def _for_detectron2(trained: Trained, softmax: bool) -> dict[str, Tensor]:
    """See `exported`."""
    name, dilation = trained.experiment.backbone.name, trained.experiment.backbone.dilation
    if dilation:
        raise ValueError(
            "backbone.dilation=True cannot be exported to detectron2's layout: its ResNet dilates the first block of "
            "the last stage as well (DC5). Use --layout published"
        )
    state = trained.model.state_dict()
    used = [place for place, each in enumerate(trained.classes) if not is_unused(each.name)]
    places = sorted(used, key=lambda place: trained.classes[place].id)
    if places != list(range(len(trained.classes))):
        state = reordered(state, class_rows(state, softmax), places)
    return to_anchors(state) if trained.experiment.anchors else to_detectron2(state, name in DEPTHS | MSRA)


def _check_hugging_face(settings: DetectionExperiment, folder: bool) -> None:
    """Raise ValueError for what Hugging Face's layout would not hold, so that it were another model.

    Sizes show in the tensors. What follows does not, and the defaults are another model's: eight heads, sine positions,
    layers with the norm last, no dilation, the last feature map. The config.json of a folder holds some of it.
    """
    head, backbone = settings.head, settings.backbone
    if head.kind != "detr" or settings.loss.classification != "softmax" or backbone.name not in DEPTHS:
        other = "detectron2" if backbone.name in MSRA else "published"
        raise ValueError(
            f"Hugging Face's DETR has no {head.kind} head on {backbone.name}: only a DETR with softmax classes (here "
            f"{settings.loss.classification}) on torchvision's ResNet can be exported to it; use --layout {other}"
        )
    never: tuple[tuple[str, object, bool, str], ...] = (
        ("backbone.dilation", True, backbone.dilation, "its ResNet has no dilated stage (DC5)"),
        ("head.pre_norm", True, head.pre_norm, "its DETR has the norm after each block"),
        ("backbone.stage", backbone.stage, backbone.stage != -1, "it reads the last feature map"),
        ("backbone.stride", backbone.stride, backbone.stride not in (0, 32), "it reads the last feature map"),
    )
    unstated: tuple[tuple[str, object, bool, str], ...] = (
        ("head.heads", head.heads, head.heads != 8, f"weights do not hold it, and mean 8{_FOLDER}"),
        ("head.position", head.position, head.position != "sine", f"weights do not hold it, and mean sine{_FOLDER}"),
    )
    for setting, value, wrong, reason in never if folder else never + unstated:
        if wrong:
            raise ValueError(
                f"{setting}={value} cannot be exported to Hugging Face's layout: {reason}. Use --layout published"
            )


def _write_folder(trained: Trained, folder: Path, state: dict[str, Tensor], rows: Rows) -> None:
    """What transformers' `from_pretrained` opens: weights, what is done to images, and, last of all, config.json.

    Raises ValueError where another kind of folder would be written into.
    """
    if folder.is_dir() and not is_weights_folder(folder) and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other things: name a new folder, or one that was exported before")
    _write_safetensors(folder / "model.safetensors", state)
    write_json(folder / PROCESSOR, _processor(trained.experiment.data))
    config = _config(trained.experiment, _labels(trained, len(state["class_labels_classifier.bias"]) - 1, rows))
    write_json(folder / "config.json", config)


def _write_safetensors(path: Path, state: dict[str, Tensor], follow: bool = False) -> None:
    data = save({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
    atomic_write(path, lambda file: file.write(data), len(data), follow)


def _labels(trained: Trained, count: int, rows: Rows) -> list[str]:
    """The class name of each of so many rows, as `exported` orders them."""
    if trained.as_published or rows == "order":
        return [category.name for category in trained.classes]
    names = {category.id: category.name for category in trained.classes}
    return [names.get(row, unused(row)) for row in range(count)]


def _config(settings: DetectionExperiment, labels: list[str]) -> dict[str, Any]:
    """A config.json of transformers: every setting that makes another model."""
    head = settings.head
    block, depths = DEPTHS[settings.backbone.name]
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("attention_heads", head.heads), ("ffn_dim", head.feedforward))
    }
    return {
        "architectures": ["DetrForObjectDetection"],
        "model_type": "detr",
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "layer_type": "basic" if block.expansion == 1 else "bottleneck",
            "depths": depths,
            "embedding_size": 64,
            "hidden_sizes": [width * block.expansion for width in (64, 128, 256, 512)],
            "hidden_act": "relu",
            "out_features": ["stage4"],
        },
        "num_queries": head.queries,
        "d_model": head.width,
        "encoder_layers": head.encoder_layers,
        "decoder_layers": head.decoder_layers,
        **sides,
        "activation_function": "relu",
        "dropout": head.dropout,
        "position_embedding_type": head.position,
        "dilation": False,
        "auxiliary_loss": False,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: row for row, name in enumerate(labels)},
    }


def _processor(data: DataConfig) -> dict[str, Any]:
    """A preprocessor_config.json: what evaluation does to images here."""
    square = {"height": data.eval_size, "width": data.eval_size}
    shortest = {"shortest_edge": data.eval_size, "longest_edge": data.max_size}
    return {
        "image_processor_type": "DetrImageProcessor",
        "do_resize": True,
        "size": square if data.resize == "square" else shortest,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_pad": True,
    }
