"""Detections on images without annotations, as JSON and as images, with attention maps on request."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from detr_container.base.files import atomic_write, write_json
from detr_container.base.shortage import asking
from detr_container.config.detection import DetectionExperiment
from detr_container.config.memory import for_evaluation
from detr_container.datasets.batch import Sample, collate
from detr_container.datasets.given import UnreadableError, file_stems, keep_inputs, none_readable
from detr_container.datasets.images import read_image
from detr_container.datasets.padding import Padding
from detr_container.datasets.run_lengths import RunLengths
from detr_container.datasets.transforms import apply_image
from detr_container.drawing.fonts import legible_names
from detr_container.drawing.images import attention_sheet, draw_detections
from detr_container.engine.precision import InPrecision
from detr_container.models.detector import Output
from detr_container.models.postprocess import Ranked, postprocess

from .build import evaluation_augmentation
from .coco_results import in_json
from .finding import in_pixels, paste_found, ranked
from .trained import Trained

MAPPED = 6
"""How many detections a sheet of attention maps shows."""


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    image: [3, h, w] uint8 as on disk; found: best first; output: of a detector with queries, with attention maps on
    request, of the resized image, which has `size` pixels (height, width) padded to `canvas`; masks: of what was found.
    """

    path: Path
    image: Tensor
    found: Ranked
    output: Output | None
    size: tuple[int, int]
    canvas: tuple[int, int]
    masks: RunLengths | None = None

    @property
    def queried(self) -> Output:
        """The output of a detector with queries."""
        assert self.output is not None
        return self.output


@torch.inference_mode()
def predict(trained: Trained, paths: Sequence[Path], attention_maps: bool = False) -> Iterator[Prediction]:
    """Detect in images one by one, so that no output depends on a neighbour's padding.

    Raises ValueError for attention maps of a detector that has no attention.
    """
    experiment, model = trained.experiment, trained.model
    if attention_maps:
        needs_queries(experiment, "attention maps")
    augmentation = evaluation_augmentation(experiment.data)
    padding = Padding(model.size_multiple, experiment.data.canvas)
    device = next(model.parameters()).device
    compute = InPrecision(model, experiment.train.precision, device)
    for path in paths:
        try:
            image = read_image(path, experiment.data.apply_orientation)
        except (OSError, ValueError) as error:
            raise UnreadableError(f"{path} cannot be read as an image: {error}") from error
        size = (image.shape[1], image.shape[2])
        plan = augmentation.draw(random.Random(0), size)
        nothing = torch.zeros(0, dtype=torch.int64)
        sample = Sample(apply_image(plan, image), torch.zeros(0, 4), nothing, 0, size)
        batch = collate([sample], padding).to(device)
        height, width = batch.images.shape[-2:]
        output = masks = None
        with asking(f"{path}", for_evaluation(experiment)):
            if experiment.anchors:
                (one,) = compute(batch.images, batch.sizes, batch.padded)
                one = in_pixels(one, size)
                found, masks = ranked(one), paste_found(one, size)
            else:
                output = compute(batch.images, batch.sizes, batch.padded, attention_maps=attention_maps)
                found = postprocess(output, [size], experiment.loss.classification).image(0)
        yield Prediction(path, image, found, output, plan.size, (height, width), masks)


def needs_queries(experiment: DetectionExperiment, what: str) -> None:
    """Raise ValueError for a detector that has no queries. what: needs them, in words."""
    if experiment.anchors:
        raise ValueError(
            f"{what} show which part of an image a query reads, and {experiment.head.kind} has no queries: they are of "
            "DETR and SMCA-DETR alone"
        )


def as_records(prediction: Prediction, trained: Trained, threshold: float) -> dict[str, Any]:
    """The detections of one image at or above a score, as JSON has them: boxes are x, y, width, height in pixels."""
    found = prediction.found
    rows = []
    for place, (score, label, box) in enumerate(
        zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    ):
        if score >= threshold:
            category = trained.classes[label]
            x, y, right, bottom = box
            rows.append(
                {
                    "category_id": category.id,
                    "category": category.name,
                    "score": score,
                    "bbox": [x, y, right - x, bottom - y],
                    **({} if prediction.masks is None else {"segmentation": in_json(prediction.masks[place])}),
                }
            )
    height, width = prediction.image.shape[1:]
    return {"file": str(prediction.path), "width": width, "height": height, "detections": rows}


def write_predictions(
    trained: Trained, paths: Sequence[Path], folder: Path, threshold: float = 0.5, attention_maps: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Predict, and write `predictions.json` and an image per input to `folder`.

    Returns what the JSON holds, and what is wrong with images that cannot be read. Raises ValueError when none can,
    and as `keep_inputs`.
    attention_maps: also one sheet per input with those of the decoder's last layer for its best detections.
    """
    names = legible_names([category.name for category in trained.classes])
    records: list[dict[str, Any]] = []
    refused: list[str] = []
    endings = ("", "_attention") if attention_maps else ("",)
    stems = file_stems(paths, endings)
    keep_inputs(paths, folder, (f"{stem}{ending}.jpg" for stem in stems for ending in endings))
    for stem, path in zip(stems, paths, strict=True):
        try:
            (prediction,) = predict(trained, [path], attention_maps)
        except UnreadableError as error:
            refused.append(str(error))
            continue
        found = prediction.found
        boxes, labels, scores = (part.cpu() for part in (found.boxes, found.labels, found.scores))
        image = draw_detections(
            prediction.image, boxes, labels, scores, names, threshold=threshold, masks=prediction.masks
        )
        sheets = [image, *([draw_maps(prediction, names, threshold)] if attention_maps else [])]
        for ending, sheet in zip(endings, sheets, strict=True):
            atomic_write(folder / f"{stem}{ending}.jpg", partial(sheet.save, format="JPEG", quality=92))
        records.append(as_records(prediction, trained, threshold))
    if not records:
        raise none_readable(refused)
    write_json(folder / "predictions.json", records)
    return records, refused


def query_maps(prediction: Prediction, query: int) -> Tensor:
    """Attention maps of the last decoder layer for one query, over the encoder's positions, mean over heads.

    [m, h, w] float32 on the CPU: the attention, and SMCA's Gaussian where the head has one. Attention maps must have
    been asked for. Positions divide the padded canvas evenly; of several levels they are those of the finest.
    """
    output = prediction.queried
    sources = [source for source in (output.attention, output.gaussians) if source is not None]
    means = [[level[-1, 0, :, query].float().mean(dim=0).cpu() for level in source.values()] for source in sources]
    return torch.stack([on_finest(levels, prediction) for levels in means])


def on_finest(levels: Sequence[Tensor], prediction: Prediction) -> Tensor:
    """Attention maps [h, w] of several levels, finest first, added up over the finest one's positions.

    A position's mass is spread evenly over its part of the image, none of it over padding.
    """
    total = levels[0]
    for level in levels[1:]:
        shares = []
        for axis in (0, 1):
            fine, coarse = (
                torch.linspace(0, prediction.canvas[axis], length + 1).clamp(max=prediction.size[axis])
                for length in (total.shape[axis], level.shape[axis])
            )
            overlap = torch.minimum(fine[1:, None], coarse[1:]) - torch.maximum(fine[:-1, None], coarse[:-1])
            shares.append(overlap.clamp(min=0) / coarse.diff().clamp(min=1e-9))
        total = total + shares[0] @ level @ shares[1].t()
    return total


def over_image(attention_maps: Tensor, prediction: Prediction) -> Tensor:
    """Attention maps [m, h, w] of the padded canvas, interpolated to the resized image's pixels, [m, H, W]."""
    height, width = prediction.size
    # The image is the canvas's top left part.
    return F.interpolate(attention_maps[:, None], size=prediction.canvas, mode="bilinear")[:, 0, :height, :width]


def draw_maps(prediction: Prediction, names: Sequence[str], threshold: float) -> Image.Image:
    """One line per detection: its box, the last decoder layer's attention, SMCA's Gaussian; means over heads."""
    found = prediction.found
    kept = [index for index, score in enumerate(found.scores.tolist()) if score >= threshold][:MAPPED]
    columns = ["detection", "attention", *(["Gaussian"] if prediction.queried.gaussians is not None else [])]
    heats = [list(over_image(query_maps(prediction, int(found.queries[index])), prediction)) for index in kept]
    titles = [f"{names[int(found.labels[index])]} {found.scores[index]:.2f}" for index in kept]
    return attention_sheet(prediction.image, found.boxes[kept].cpu(), heats, titles, columns)
