"""Images of detections and of attention: boxes, pairs, sheets and heat maps, drawn with Pillow.

An image is a uint8 array or tensor [3, h, w] or a Pillow image. Boxes are [n, 4] (x1, y1, x2, y2 in pixels of it).
Colours distinguish classes also for colour-blind readers (Okabe and Ito 2008); the label's text always names the class.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr_container.base.terminal import shown
from detr_container.datasets.run_lengths import RunLength

from .fonts import dejavu, font_with, legible_names
from .masks import lay_mask

AnyImage = Image.Image | Tensor | NDArray[np.uint8]
Colour = tuple[int, int, int]
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Okabe and Ito's colours without black; class k has colour k modulo 7."""
LEGIBLE = 480
"""Images whose longer side has fewer pixels are enlarged by a whole factor before anything is written on them."""
_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_HALO = (0, 0, 0)


def to_image(source: AnyImage) -> Image.Image:
    """Make an RGB Pillow image of a uint8 [3, h, w] array or tensor, or of any Pillow image.

    Raises ValueError for another shape or type.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    pixels = _numbers(source)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"an image is uint8 [3, h, w] or a Pillow image, not {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def draw_detections(
    source: AnyImage,
    boxes: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    scores: ArrayLike | Tensor | None,
    classes: Sequence[str],
    threshold: float = 0.5,
    crowd: ArrayLike | Tensor | None = None,
    legible: int = LEGIBLE,
    letters: int = 0,
    masks: Iterable[RunLength | None] | None = None,
) -> Image.Image:
    """Draw boxes with their classes and scores, the surest on top, and masks under them.

    labels: [n] indices into `classes`; scores: [n], or None for ground truth, which is drawn whole and without numbers;
    crowd: [n] of bool, drawn dashed; legible: enlarge smaller images to about this many pixels; 0: never.
    letters: size of the labels' font in pixels; 0: as the image's size suggests; masks: [n] each over the whole image,
    of whatever size; those of crowds are not drawn, which have too many parts.
    Raises ValueError when the arrays do not fit each other, a label is no class or a box is not finite.
    """
    image, factor = _enlarged(to_image(source), legible)
    corners = _boxes(boxes) * factor
    names = _numbers(labels).astype(np.int64).reshape(-1)
    marks = np.ones(len(corners)) if scores is None else _numbers(scores).astype(np.float64).reshape(-1)
    dashed = np.zeros(len(corners), dtype=bool) if crowd is None else _numbers(crowd).astype(bool).reshape(-1)
    covers = [None] * len(corners) if masks is None else [*masks]
    if not len(corners) == len(names) == len(marks) == len(dashed) == len(covers):
        lengths = (
            f"{len(corners)} boxes, {len(names)} labels, {len(marks)} scores, {len(dashed)} crowd marks"
            + f", {len(covers)} masks" * (masks is not None)
        )
        raise ValueError(f"{lengths}: pass one of each for every object")
    if wrong := sorted(set(names.tolist()) - set(range(len(classes)))):
        raise ValueError(f"labels {wrong[:5]} with {len(classes)} classes: labels count from 0 along `classes`")
    classes = legible_names(classes)
    order = [index for index in np.argsort(marks, kind="stable") if marks[index] >= threshold or scores is None]
    for index in order:
        mask = covers[index]
        if mask is not None and not dashed[index]:
            lay_mask(image, mask, PALETTE[names[index] % len(PALETTE)], max(1, round(min(image.size) / 240)))
    draw = ImageDraw.Draw(image)
    for index in order:
        _outline(draw, corners[index], PALETTE[names[index] % len(PALETTE)], bool(dashed[index]))
    taken: list[tuple[float, float, float, float]] = []
    # The surest choose their places first.
    for index in reversed(order):
        text = classes[names[index]] + ("" if scores is None else f" {marks[index]:.2f}")
        colour = PALETTE[names[index] % len(PALETTE)]
        taken.append(_tag(draw, corners[index], text + (" (crowd)" if dashed[index] else ""), colour, taken, letters))
    return image


def image_pair(
    left: AnyImage, right: AnyImage, titles: tuple[str, str] = ("ground truth", "predictions")
) -> Image.Image:
    """Put two images next to each other under their titles; the right one takes the left one's height."""
    first, second = to_image(left), to_image(right)
    if second.height != first.height:
        width = max(1, round(second.width * first.height / second.height))
        second = second.resize((width, first.height), Image.Resampling.BICUBIC)
    return row([first, second], titles)


def row(
    images: Sequence[Image.Image], titles: Sequence[str], gap: int = 8, letters: int = 16, least: int = 0
) -> Image.Image:
    """Set images of one height in a line, each under its title.

    gap, letters: pixels between images, and the size of the titles' font; least: width in pixels that each image is
    given, so that a narrow one has a title that can be read.
    """
    widths = [max(image.width, least) for image in images]
    heads = [_paragraph(name, width, letters) for width, name in zip(widths, titles, strict=True)]
    head = max(strip.height for strip in heads) + 4
    line = Image.new("RGB", (sum(width + gap for width in widths) - gap, head + images[0].height), _PAPER)
    left = 0
    for image, width, strip in zip(images, widths, heads, strict=True):
        line.paste(strip, (left, head - 4 - strip.height))
        line.paste(image, (left, head))
        left += width + gap
    return line


def contact_sheet(rows: Sequence[AnyImage], title: str, caption: str = "", columns: int = 1) -> Image.Image:
    """Put images (pairs, as `image_pair` makes them) on one sheet under a title and over a caption.

    Images keep their size and fill line after line of `columns`.
    Raises ValueError when there is nothing to show.
    """
    images = [to_image(source) for source in rows]
    if not images or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: a sheet needs at least one of both")
    gap = 16
    widest = max(image.width for image in images)
    lines = [images[start : start + columns] for start in range(0, len(images), columns)]
    width = gap + min(columns, len(images)) * (widest + gap)
    size = max(18, min(36, width // 45))
    head = _paragraph(title, width - 2 * gap, size, bold=True)
    foot = _paragraph(caption, width - 2 * gap, round(0.7 * size)) if caption else None
    height = gap + head.height + gap + sum(max(image.height for image in line) + gap for line in lines)
    sheet = Image.new("RGB", (width, height + (foot.height + gap if foot else 0)), _PAPER)
    sheet.paste(head, (gap, gap))
    top = gap + head.height + gap
    for line in lines:
        for column, image in enumerate(line):
            sheet.paste(image, (gap + column * (widest + gap), top))
        top += max(image.height for image in line) + gap
    if foot:
        sheet.paste(foot, (gap, top))
    return sheet


def overlay_heat(source: AnyImage, heat: ArrayLike | Tensor, opacity: float = 0.55) -> Image.Image:
    """Lay a map of weights over an image in grey: bright where the weight is near its peak, dark where there is none.

    heat: [h', w'] of any size, covering the whole image; it is divided by its largest value, and what is negative
    counts as zero. Raises ValueError for another shape or what is not finite.
    """
    import matplotlib

    image = to_image(source)
    weights = np.maximum(_numbers(heat).astype(np.float32), 0.0)
    if weights.ndim != 2 or not weights.size or not np.isfinite(weights).all():
        raise ValueError(f"a heat map of shape {list(weights.shape)}: it is [h, w], not empty, and finite everywhere")
    peak = float(weights.max())
    smooth = Image.fromarray(weights / peak if peak else weights).resize(image.size, Image.Resampling.BILINEAR)
    # Bilinear interpolation lowers a peak that lies between pixels; the scale is to start from what is seen.
    shown = np.asarray(smooth)
    shown = shown / shown.max() if shown.max() > 0 else shown
    colours = matplotlib.colormaps["inferno"](shown)[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] / 255
    mixed = (1 - opacity) * grey + opacity * colours
    return Image.fromarray((255 * mixed).round().astype(np.uint8))


def outlined(source: AnyImage, box: ArrayLike | Tensor, dashed: bool = False) -> Image.Image:
    """A copy of an image with one box [4] in outline, in a colour that heat maps do not have."""
    image = to_image(source).copy()
    _outline(ImageDraw.Draw(image), _boxes(_numbers(box).reshape(1, 4))[0], PALETTE[1], dashed)
    return image


def attention_sheet(
    source: AnyImage,
    boxes: ArrayLike | Tensor,
    heats: Sequence[Sequence[ArrayLike | Tensor]],
    titles: Sequence[str],
    columns: Sequence[str] = ("detection", "attention", "Gaussian"),
    title: str = "Where the decoder looks",
    legible: int = LEGIBLE,
) -> Image.Image:
    """Make one line per detection: its box on the image, then each of its attention maps with the same box in outline.

    heats: for each box as many attention maps [h', w'] as `columns` has names after the first; titles: one per box.
    Without a box there is the image alone. Raises ValueError when the numbers do not fit each other.
    """
    image, factor = _enlarged(to_image(source), legible)
    corners = _boxes(boxes) * factor
    if not len(corners) == len(heats) == len(titles):
        raise ValueError(
            f"{len(corners)} boxes, {len(heats)} sets of attention maps, {len(titles)} titles: pass one each per box"
        )
    if not len(corners):
        return contact_sheet([image], title, "No detections above the threshold.")
    lines = []
    for index, (box, attention_maps, name) in enumerate(zip(corners, heats, titles, strict=True)):
        if len(attention_maps) != len(columns) - 1:
            raise ValueError(
                f"{len(attention_maps)} attention maps for box {index}, not {len(columns) - 1}: "
                f"{', '.join(columns[1:])}"
            )
        panels = [outlined(panel, box) for panel in (image, *(overlay_heat(image, heat) for heat in attention_maps))]
        lines.append(row(panels, (name, *columns[1:])))
    return contact_sheet(lines, title)


def _numbers(values: ArrayLike | Tensor) -> NDArray[np.generic]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _boxes(boxes: ArrayLike | Tensor) -> NDArray[np.float64]:
    corners = _numbers(boxes).astype(np.float64)
    corners = corners.reshape(-1, 4) if corners.size == 0 else corners
    if corners.ndim != 2 or corners.shape[1] != 4 or not np.isfinite(corners).all():
        raise ValueError(f"boxes of shape {list(corners.shape)}: they are [n, 4] x1, y1, x2, y2 and finite everywhere")
    return corners


def _enlarged(image: Image.Image, legible: int) -> tuple[Image.Image, int]:
    factor = max(1, math.ceil(legible / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), factor


@functools.cache
def _font(size: int, bold: bool = False, path: str = "") -> ImageFont.FreeTypeFont:
    """Load a font file; by default DejaVu Sans, which matplotlib always brings along."""
    return ImageFont.truetype(path or dejavu(bold), size)


def _clipped(draw: ImageDraw.ImageDraw, box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Keep a box within the image, so that all of its sides are seen."""
    width, height = draw.im.size
    x1, x2 = np.sort(np.clip(box[[0, 2]], 0, width - 1)).tolist()
    y1, y2 = np.sort(np.clip(box[[1, 3]], 0, height - 1)).tolist()
    return x1, y1, x2, y2


def _outline(draw: ImageDraw.ImageDraw, box: NDArray[np.float64], colour: Colour, dashed: bool) -> None:
    """Draw one box, with a dark rim so that it shows on any ground."""
    stroke = max(3, round(min(draw.im.size) / 200))
    sides = _sides(*_clipped(draw, box), dash=6 * stroke if dashed else 0)
    for side in sides:
        draw.line(side, fill=_HALO, width=stroke + 2)
    for side in sides:
        draw.line(side, fill=colour, width=stroke)


def _sides(x1: float, y1: float, x2: float, y2: float, dash: float) -> list[tuple[float, float, float, float]]:
    """List a box's sides, each cut into dashes of about `dash` pixels (0: whole) with gaps of half that."""
    pieces = []
    for start, end, across, level in ((x1, x2, (y1, y2), True), (y1, y2, (x1, x2), False)):
        count = max(1, round((end - start + dash / 2) / (1.5 * dash))) if dash else 1
        # Dashes are stretched so that one begins and one ends at each corner.
        period = (end - start) / (count - 1 / 3)
        length = period * 2 / 3 if dash else end - start
        for low, high in [(start + k * period, start + k * period + length) for k in range(count)]:
            for side in across:
                pieces.append((low, side, high, side) if level else (side, low, side, high))
    return pieces


def _tag(
    draw: ImageDraw.ImageDraw,
    box: NDArray[np.float64],
    text: str,
    colour: Colour,
    taken: Sequence[tuple[float, float, float, float]],
    letters: int = 0,
) -> tuple[float, float, float, float]:
    """Write a label at one of the box's corners, inside the image, where it covers other labels least."""
    width, height = draw.im.size
    # One line, and of a long name no more than can be seen: the rest would only be measured again and again.
    text = shown(text)
    text = text if len(text) <= width else text[:width] + "…"
    font = _font(letters or max(11, round(min(width, height) / 40)), path=font_with(frozenset(text + "…")) or "")
    while len(text) > 1 and font.getlength(text) + 6 > width:
        text = text[:-2] + "…"
    ascent, descent = font.getmetrics()
    w, h = min(width, math.ceil(font.getlength(text)) + 6), min(height, ascent + descent + 2)
    x1, y1, x2, y2 = _clipped(draw, box)
    corners = [(x, y) for y in (y1 - h, y1, y2 - h, y2) for x in (x1, x2 - w)]
    places = [(min(max(x, 0), width - w), min(max(y, 0), height - h)) for x, y in corners]
    x, y = min(places, key=lambda place: sum(_overlap((*place, place[0] + w, place[1] + h), other) for other in taken))
    x, y = math.floor(x), math.floor(y)
    draw.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110
    # On a sheet of its own: marks that are piled up on a letter would reach into the image, over other labels.
    letters_alone = Image.new("L", (w, h))
    ImageDraw.Draw(letters_alone).text((3, 1), text, fill=255, font=font)
    draw.bitmap((x, y), letters_alone, fill=(0, 0, 0) if bright else (255, 255, 255))
    return x, y, x + w, y + h


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _paragraph(text: str, width: int, size: int, bold: bool = False) -> Image.Image:
    """Set text in lines of at most `width` pixels, on paper just as high as it needs."""
    text = shown(text, keep="\n")
    font = _font(size, bold, font_with(frozenset(text)) or "")
    letters = max(1, int(width / font.getlength("i")))
    lines = _wrapped(text, letters)
    while letters > 1 and max(font.getlength(line) for line in lines) > width:
        letters -= 1
        lines = _wrapped(text, letters)
    ascent, descent = font.getmetrics()
    paper = Image.new("RGB", (max(1, width), len(lines) * (ascent + descent)), _PAPER)
    draw = ImageDraw.Draw(paper)
    for number, line in enumerate(lines):
        draw.text((0, number * (ascent + descent)), line, fill=_INK, font=font)
    return paper


def _wrapped(text: str, letters: int) -> list[str]:
    return [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, letters) or [""]]
