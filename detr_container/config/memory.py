"""Which settings decide how much memory what takes, for the message when it does not suffice."""

from __future__ import annotations

from typing import Any

from .settings import Experiment, flatten

_MODEL = {
    "detr": ("head.width", "head.feedforward", "head.queries", "head.encoder_layers", "head.decoder_layers"),
    "retinanet": ("pyramid.channels", "pyramid.convolutions", "pyramid.detections"),
    "mask_rcnn": ("pyramid.channels", "pyramid.hidden", "pyramid.proposals", "pyramid.detections"),
}
_MODEL["smca"] = _MODEL["detr"]
_SIZES = ("data.max_size", "data.canvas")
_STEP = ("train.micro_batch", "data.scales", *_SIZES)
_EVALUATION = ("data.eval_batch", "data.eval_size", *_SIZES)


def for_model(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide how large a model is."""
    return _named(experiment, ())


def for_step(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide what a training step takes."""
    found = _named(experiment, _STEP)
    # 0 is the largest that was found to fit, so there is nothing lower than it.
    return found if found["train.micro_batch"] else found | {"train.micro_batch": "0 (give a number)"}


def for_evaluation(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide what a forward pass takes at evaluation and prediction."""
    return _named(experiment, _EVALUATION)


def _named(experiment: Experiment, names: tuple[str, ...]) -> dict[str, Any]:
    """These settings and those of the model."""
    flat = flatten(experiment)
    return {name: flat[name] for name in (*names, *_MODEL[flat["head.kind"]])}
