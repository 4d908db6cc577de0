"""A trained classifier as other code wants it: a file of weights under its names, and a note of what they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from detr_container.base.files import atomic_write, write_json
from detr_container.engine.run import Run
from detr_container.models.backbones.container import SIZES
from detr_container.models.backbones.resnet import DEPTHS
from detr_container.models.classifier import TimmClassifier
from detr_container.models.weights.classifiers import as_published

from .note import KEY, beside
from .trained import Trained

Layout = Literal["auto", "container", "torchvision", "timm"]
RELEASED = "container_light"
"""The one network of its family that CONTAINER's published code has."""


def write_export(trained: Trained, target: Path, layout: Layout) -> tuple[int, Path]:
    """Write a classifier's weights in a layout, of safetensors where the file is called so, else of torch.save.

    Returns the number of tensors, and the file of JSON beside it that says what they are.
    Raises ValueError for a network that the layout cannot hold.
    """
    chosen = usual_layout(trained) if layout == "auto" else layout
    state = {name: value.contiguous() for name, value in exported(trained, chosen).items()}
    about = note(trained, chosen)
    if target.suffix == ".safetensors":
        data = save(state, {"format": "pt"})
        atomic_write(target, lambda file: file.write(data), len(data), follow=True)
    else:
        # As the published checkpoints of DeiT and CONTAINER are, with what it is beside.
        content = {"model": state, KEY: about}
        atomic_write(target, partial(torch.save, content), follow=True)
    return len(state), write_json(beside(target), about)


def usual_layout(trained: Trained) -> Layout:
    """The network's own: timm's, torchvision's, or that of the published CONTAINER-LIGHT."""
    name = trained.experiment.backbone.name
    return "timm" if name.startswith("timm/") else "torchvision" if name in DEPTHS else "container"


def exported(trained: Trained, layout: Layout) -> dict[str, Tensor]:
    """The weights under the names of a layout. Raises ValueError, with what can be done, where it cannot hold them."""
    name = trained.experiment.backbone.name
    if isinstance(trained.model, TimmClassifier):
        if layout != "timm":
            raise ValueError(f"{name} is a model of timm, which --layout {layout} cannot hold: use --layout timm")
    elif name in DEPTHS:
        if layout == "container":
            raise ValueError(f"{name} is no CONTAINER: use --layout torchvision, or timm, whose names are the same")
    elif layout != "container":
        raise ValueError(f"{layout} has no {name}: use --layout container")
    elif name.split("_")[:2] != RELEASED.split("_"):
        raise ValueError(
            f"{name} has no counterpart in published code, which has {RELEASED} alone: its checkpoint holds it, and "
            "evaluate, predict and train (--init, --backbone.weights) open that"
        )
    return as_published(trained.model)


def note(trained: Trained, layout: Layout) -> dict[str, Any]:
    """What a file of weights is: network, input, classes, and how good it is, where that is known."""
    experiment, model = trained.experiment, trained.model
    data, name = experiment.data, experiment.backbone.name
    size = SIZES.get(name)
    about = {
        "architecture": name.removeprefix("timm/"),
        "library": {"timm": "timm", "torchvision": "torchvision", "container": "CONTAINER"}[layout],
        "num_classes": trained.rows,
        # None where nothing says them.
        "classes": list(trained.classes),
        "input_size": [3, data.evaluated_at, data.evaluated_at],
        "trained_at": data.size,
        "crop_ratio": data.crop_ratio,
        "interpolation": data.interpolation,
        "mean": list(model.mean),
        "std": list(model.std),
        "grey": data.grey,
        "from": trained.source,
        "step": trained.step,
        "experiment": experiment.name,
        **_metrics(trained),
    }
    if size is not None and layout != "torchvision":
        about["network"] = repr(size)
    return about


def _metrics(trained: Trained) -> dict[str, Any]:
    """Top-1 and top-5 of the run that a checkpoint lies in, when these weights were evaluated at that step."""
    folder = Path(trained.source).parent.parent
    if trained.raw or not Run(folder).exists:
        return {}
    rows = [row for row in Run(folder).evaluations() if row["step"] == trained.step]
    return {key: rows[-1][key] for key in ("top1", "top5", "images", "epoch") if key in rows[-1]} if rows else {}
