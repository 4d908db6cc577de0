"""The images on which the compared classifiers disagree most: the true class, then what each takes them for."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from detr_container.base.terminal import shown
from detr_container.datasets.folders import ImageFolder, open_folder
from detr_container.datasets.images import read_image
from detr_container.drawing.images import contact_sheet, row, to_image

from ..document import Figure, Section
from .analysis import Analysis, ArmResult
from .mistakes import disagreement

IMAGES, COLUMNS = 12, 4
SIDE, LETTERS = 200, 12
"""Pixels of each image's longer side, and of the letters on the sheet that is a file of its own."""


def section(analysis: Analysis, count: int = IMAGES) -> Section:
    """The images of the largest disagreement, and why none, where there are none."""
    text = [
        "Images of the largest range, between the backbones, of the probability that they give the true class (mean "
        "over seeds): the true class, then what each backbone's first seed takes it for, with its confidence."
    ]
    figure, trouble = _sheet(analysis, count)
    figures = [] if figure is None else [figure]
    return Section("images", "Where the models disagree", [*text, trouble] if trouble else text, figures=figures)


def _sheet(analysis: Analysis, count: int) -> tuple[Figure | None, str]:
    apart = disagreement(analysis)
    order = [int(index) for index in np.argsort(-apart, kind="stable")[:count] if apart[index] > 0]
    if not order:
        return None, "The models agree on every image, or there is only one."
    panels, trouble = list[tuple[str, Image.Image]](), ""
    try:
        folder = _folder(analysis)
        panels.extend((_title(analysis, index), _image(analysis, folder, index)) for index in order)
    except (OSError, ValueError) as error:
        trouble = f"The rest could not be drawn: {error}" if panels else f"The images cannot be shown: {error}"
    if not panels:
        return None, trouble
    boxes = [row([image], [title], letters=LETTERS, least=SIDE) for title, image in panels]
    sheet = contact_sheet(boxes, "Where the models disagree", columns=COLUMNS)
    alt = "Images with their true class and what each backbone takes them for: "
    alt += "; ".join(title.replace("\n", ", ") for title, _ in panels) + "."
    caption = f"The {len(panels)} images that the backbones disagree on most."
    shown_panels = [(title, _jpeg(image)) for title, image in panels]
    return Figure("disagreement", caption, alt, _jpeg(sheet), wide=True, panels=shown_panels), trouble


def _folder(analysis: Analysis) -> ImageFolder:
    """The validation images. Raises ValueError or OSError where they are not those that were evaluated."""
    truth = analysis.truth
    folder = open_folder(truth.folder, truth.names)
    if truth.version and folder.version()["sha256"] != truth.version:
        raise ValueError(f"{truth.folder} holds other images than those that were evaluated")
    return folder


def _image(analysis: Analysis, folder: ImageFolder, index: int) -> Image.Image:
    """The whole image, of which a network sees the middle."""
    full = to_image(read_image(folder.path(int(analysis.truth.image_ids[index]))))
    if analysis.evaluated[0].experiment.data.grey:
        full = full.convert("L").convert("RGB")
    scale = SIDE / max(full.size)
    size = max(1, round(full.width * scale)), max(1, round(full.height * scale))
    return full.resize(size, Image.Resampling.BICUBIC)


def _title(analysis: Analysis, index: int) -> str:
    names = analysis.truth.told
    lines = [f"true: {_name(names[analysis.truth.labels[index]])}"]
    return "\n".join([*lines, *(_taken(arm, names, index) for arm in analysis.evaluated)])


def _taken(arm: ArmResult, names: tuple[str, ...], index: int) -> str:
    one = arm.results[0]
    mark = "right" if one.right[index] else _name(names[one.guess[index, 0]])
    return f"{arm.label}: {mark} ({100 * one.probability[index, 0]:.0f}\N{NO-BREAK SPACE}%)"


def _name(text: str) -> str:
    """A class's name on one line, as it can be shown."""
    return shown(" ".join(text.split()))


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()
