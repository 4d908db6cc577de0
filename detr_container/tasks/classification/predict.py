"""What a classifier takes images for, as JSON or CSV and as a sheet."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import torch
from PIL import Image
from torch import Tensor

from detr_container.base.files import atomic_write, write_json
from detr_container.base.shortage import asking
from detr_container.base.terminal import shown
from detr_container.datasets.given import UnreadableError, keep_inputs, none_readable
from detr_container.datasets.images import read_image
from detr_container.drawing.fonts import legible_names
from detr_container.drawing.images import contact_sheet, row, to_image
from detr_container.engine.precision import InPrecision

from .build import evaluation_view
from .class_names import spoken
from .mixing import Normalisation
from .predictions import MOST
from .trained import Trained

SHEET = "predictions.jpg"
SHOWN, COLUMNS, SIDE = 48, 4, 240
"""Images on a sheet, those in a line, and the longer side of each in pixels."""
LETTERS = 26
"""Of a file's name above its image, so that it takes one line."""


class Guess(TypedDict):
    """One class that an image may be of. row: the model's; name: as it is read, where that is not the class's own."""

    row: int
    category: str
    name: str
    probability: float


class Record(TypedDict):
    """An image and its most probable classes, best first; width, height: in pixels, on disk."""

    file: str
    width: int
    height: int
    classes: list[Guess]


@torch.inference_mode()
def predict(trained: Trained, paths: Sequence[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [3, h, w] uint8 as on disk, one by one, and [K] probabilities of each. Raises UnreadableError."""
    data, model = trained.experiment.data, trained.model
    view = evaluation_view(data)
    device = next(model.parameters()).device
    compute = InPrecision(model, trained.experiment.train.precision, device)
    normalise = Normalisation(model.mean, model.std, model.memory_format)
    for path in paths:
        try:
            image = read_image(path)
            pixels, _ = view(image, random.Random(0))
        except (OSError, ValueError) as error:
            raise UnreadableError(f"{path} cannot be read as an image: {error}") from error
        with asking(f"{path}", {"data.eval_size": data.evaluated_at}):
            logits = compute(normalise(pixels[None].to(device)))
        yield image, logits[0].float().softmax(dim=0).cpu()


def write_predictions(
    trained: Trained, paths: Sequence[Path], folder: Path, kind: Literal["json", "csv"] = "json", sheet: bool = True
) -> tuple[list[Record], list[str]]:
    """Predict, and write `predictions.json` or `.csv` and one sheet of the first images to `folder`.

    Returns what was predicted, and what is wrong with images that cannot be read. Raises ValueError when none can,
    and as `keep_inputs`.
    """
    keep_inputs(paths, folder, (f"predictions.{kind}", SHEET))
    words = spoken(trained.classes) if trained.classes else list(trained.names)
    legible = legible_names(words)
    records, drawn, refused = list[Record](), list[Image.Image](), list[str]()
    for path in paths:
        try:
            ((image, probabilities),) = predict(trained, [path])
        except UnreadableError as error:
            refused.append(str(error))
            continue
        best = probabilities.topk(min(MOST, trained.rows))
        rows = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        records.append(
            {
                "file": str(path),
                "width": image.shape[2],
                "height": image.shape[1],
                "classes": [
                    {"row": at, "category": trained.names[at], "name": words[at], "probability": probability}
                    for at, probability in rows
                ],
            }
        )
        if sheet and len(drawn) < SHOWN:
            titles = [_short(path.name), *(f"{legible[at]} {100 * probability:.1f} %" for at, probability in rows[:2])]
            drawn.append(row([_small(image)], ["\n".join(titles)], least=SIDE))
    if not records:
        raise none_readable(refused)
    if kind == "json":
        write_json(folder / "predictions.json", records)
    else:
        text = as_csv(records).encode()
        atomic_write(folder / "predictions.csv", lambda file: file.write(text), len(text))
    if sheet:
        more = f"The first {len(drawn)} of {len(records)} images." if len(drawn) < len(records) else ""
        title = f"What {trained.source} takes these for"
        whole = contact_sheet(drawn, title, more, columns=min(COLUMNS, len(drawn)))
        atomic_write(folder / SHEET, partial(whole.save, format="JPEG", quality=92))
    return records, refused


def as_csv(records: Sequence[Record]) -> str:
    """A line per image and class: file, rank from 1, row, category, name, probability."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["file", "rank", "row", "category", "name", "probability"])
    for record in records:
        for rank, guess in enumerate(record["classes"], 1):
            lines.writerow([record["file"], rank, *(guess[key] for key in ("row", "category", "name", "probability"))])
    return text.getvalue()


def _short(name: str) -> str:
    """A file's name on one line of the sheet: of a long one the ends, which tell it from others."""
    text = shown(name)
    return text if len(text) <= LETTERS else f"{text[: LETTERS // 2]}…{text[-LETTERS // 2 :]}"


def _small(image: Tensor) -> Image.Image:
    """The image with its longer side at `SIDE` pixels, small ones enlarged."""
    found = to_image(image)
    scale = SIDE / max(found.size)
    width, height = (max(1, round(scale * side)) for side in found.size)
    return found.resize((width, height), Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
