"""Images: boxes, labels and heat are where they should be, seen in the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detr_container.drawing.fonts import font_with, legible_names
from detr_container.drawing.images import (
    PALETTE,
    _overlap,
    _paragraph,
    _tag,
    attention_sheet,
    contact_sheet,
    draw_detections,
    image_pair,
    outlined,
    overlay_heat,
    row,
    to_image,
)

GREY = 128
NAMES = ("cell", "platelet", "a class with a remarkably long name")


def plain(height: int = 200, width: int = 300, value: int = GREY) -> NDArray[np.uint8]:
    return np.full((3, height, width), value, dtype=np.uint8)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def share(image: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((pixels(image) == colour).all(axis=-1).mean())


def test_a_box_is_where_it_should_be() -> None:
    image = draw_detections(plain(), [[100, 60, 200, 160]], [1], None, NAMES, legible=0)
    found = pixels(image)
    assert image.size == (300, 200)
    for y, x in ((60, 150), (160, 150), (110, 100), (110, 200)):
        assert tuple(found[y, x]) == PALETTE[1]
    changed = (found != GREY).any(axis=-1)
    assert not changed[67:153, 107:193].any()
    outside = np.ones_like(changed)
    outside[57:164, 97:204] = False
    outside[30:60, 97:204] = False  # the label
    assert not changed[outside].any()
    assert changed[40:57].any()


def test_images_of_every_kind_and_none_is_altered() -> None:
    original = plain()
    before = original.copy()
    pillow = Image.fromarray(original.transpose(1, 2, 0))
    kinds = (original, torch.from_numpy(original), pillow, Image.new("L", (300, 200), GREY))
    drawn = [
        pixels(draw_detections(kind, torch.tensor([[10.0, 30, 90, 90]]), torch.tensor([0]), None, NAMES))
        for kind in kinds
    ]
    assert all((one == drawn[0]).all() for one in drawn)
    assert (original == before).all()
    assert pillow.getextrema() == ((GREY, GREY),) * 3
    wrong: Any = np.zeros((3, 5, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"uint8 \[3, h, w\]"):
        to_image(wrong)
    with pytest.raises(ValueError, match=r"\[5, 5, 3\]"):
        to_image(np.zeros((5, 5, 3), dtype=np.uint8))


def test_threshold_order_and_no_detections() -> None:
    boxes = [[20, 40, 120, 140], [20, 40, 120, 140], [180, 40, 280, 140]]
    image = draw_detections(plain(), boxes, [0, 1, 2], [0.9, 0.6, 0.2], NAMES, threshold=0.5, legible=0)
    assert tuple(pixels(image)[140, 70]) == PALETTE[0]  # the surer box lies on top
    assert share(image, PALETTE[1]) > 0.005  # the other's label is beside it
    assert share(image, PALETTE[2]) == 0
    empty = draw_detections(plain(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0), NAMES)
    assert (pixels(empty) == GREY).all()
    assert (pixels(draw_detections(plain(), boxes, [0, 1, 2], [0.1] * 3, NAMES)) == GREY).all()


def test_crowd_boxes_are_dashed() -> None:
    for crowd in (False, True):
        image = draw_detections(plain(), [[40, 60, 260, 180]], [0], None, NAMES, crowd=[crowd], legible=0)
        for side in (pixels(image)[180, 40:261], pixels(image)[60:181, 260]):
            drawn = (side == PALETTE[0]).all(axis=-1)
            assert drawn[:5].all()
            assert drawn[-5:].all()
            assert (0.5 < drawn.mean() < 0.9) if crowd else drawn.all()


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    image = draw_detections(plain(64, 128), [[32, 16, 96, 48]], [0], None, NAMES)
    assert image.size == (512, 256)
    for y, x in ((64, 256), (192, 256), (128, 128), (128, 384)):
        assert tuple(pixels(image)[y, x]) == PALETTE[0]
    assert draw_detections(plain(480, 640), [], [], None, NAMES).size == (640, 480)


@pytest.mark.parametrize("corner", [(0, 0), (260, 0), (0, 160), (260, 160), (-30, -30), (290, 190)])
def test_labels_stay_whole_at_the_rim(corner: tuple[int, int]) -> None:
    def dark(x: float, y: float) -> int:
        image = draw_detections(plain(), [[x, y, x + 40, y + 40]], [0], [0.5], NAMES, legible=0)
        outline = draw_detections(plain(), [[x, y, x + 40, y + 40]], [0], [0.5], ("", ""), legible=0)
        return int((pixels(image) == PALETTE[0]).all(axis=-1).sum() - (pixels(outline) == PALETTE[0]).all(-1).sum())

    # What the class's name adds to the label is the same area at the rim as in the middle, but for its own outline.
    assert dark(*corner) == pytest.approx(dark(130, 80), rel=0.35)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    box=st.tuples(*[st.floats(-300, 900)] * 4),
    text=st.text("abcdefgh 0.9", max_size=60),
)
def test_labels_lie_inside_the_image(size: tuple[int, int], box: tuple[float, ...], text: str) -> None:
    draw = ImageDraw.Draw(Image.new("RGB", size))
    left, top, right, bottom = _tag(draw, np.asarray(box), text, PALETTE[0], [])
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]


def test_labels_of_one_place_move_apart() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (640, 480)))
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(4):
        taken.append(_tag(draw, np.array([100.0, 100, 500, 400]), "cell 0.99", PALETTE[0], taken))
    assert all(_overlap(one, other) == 0 for one in taken for other in taken if one is not other)


@given(one=st.tuples(*[st.integers(0, 12)] * 4), other=st.tuples(*[st.integers(0, 12)] * 4))
def test_overlap_counts_shared_pixels(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    rectangles = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in (one, other)]
    shared = sum(
        all(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in rectangles) for x in range(12) for y in range(12)
    )
    assert _overlap(rectangles[0], rectangles[1]) == shared


def test_names_without_a_font_are_drawn_by_their_number_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = "\U0010fffd"  # For private use: no font has it.
    assert legible_names(["cell", nowhere, "κύτταρο"]) == ["cell", "class 1", "κύτταρο"]
    legible_names(["cell", nowhere])
    assert len([record for record in caplog.records if "no font here has the letters" in record.message]) == 1
    box = [[20, 40, 120, 140]]
    drawn, expected = (draw_detections(plain(), box, [0], None, (name,)) for name in (nowhere, "class 0"))
    assert (pixels(drawn) == pixels(expected)).all()


def test_a_font_of_the_system_is_taken_for_letters_that_ours_lacks() -> None:
    letters = frozenset("红细胞")
    path = font_with(letters)
    if path is None:
        pytest.skip("needs a font with Chinese letters")
    one, other = (draw_detections(plain(), [[20, 40, 120, 140]], [0], None, (name,)) for name in ("红", "胞"))
    assert path
    assert (pixels(one) != pixels(other)).any(), "boxes for missing letters look alike"


def test_names_of_which_nothing_is_seen_are_drawn_by_their_number(caplog: pytest.LogCaptureFixture) -> None:
    assert legible_names(["\u200b", "\u200f \u00ad", "\u2800", "\u200bx"]) == [
        *("class 0", "class 1", "class 2", "\u200bx")
    ]
    assert len([record for record in caplog.records if "nothing of the name" in record.message]) == 3


def test_names_from_right_to_left_and_of_piled_marks_are_drawn_within_their_label() -> None:
    names = ("\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u062a\u0641\u0627\u062d\u0629", "a" + "\u0301" * 60)
    assert legible_names(names) == list(names)
    for label, colour in enumerate(PALETTE[:3]):
        found = pixels(draw_detections(plain(400), [[20, 300, 120, 390]], [label], [0.9], names, legible=0))
        assert (found == (0, 0, 0)).all(-1).any() or (found == 255).all(-1).any()
        assert (found[:250] == GREY).all(), colour


def test_names_are_one_line_of_visible_characters() -> None:
    box = [[20, 40, 120, 140]]
    for name, expected in (("x\ny", "x\\ny"), ("a\x85\u2028b", "a\\x85\\u2028b"), ("t\tab\x1b[2J", "t\\tab\\x1b[2J")):
        assert legible_names([name]) == [expected]
        for scores in (None, [0.7]):
            one, other = (draw_detections(plain(), box, [0], scores, (text,)) for text in (name, expected))
            assert (pixels(one) == pixels(other)).all()
        attention_sheet(plain(), box, [[np.ones((3, 4))]], [f"{name} 0.70"], ("detection", "attention"), name)
    assert draw_detections(plain(), box, [0], None, ("m" * 1_000_000,)).size == (600, 400)


def test_wrong_detections_are_refused() -> None:
    box = [[1.0, 1, 5, 5]]
    with pytest.raises(ValueError, match="1 boxes, 2 labels"):
        draw_detections(plain(), box, [0, 1], None, NAMES)
    with pytest.raises(ValueError, match=r"labels \[3\] with 3 classes"):
        draw_detections(plain(), box, [3], None, NAMES)
    with pytest.raises(ValueError, match=r"labels \[-1\]"):
        draw_detections(plain(), box, [-1], None, NAMES)
    with pytest.raises(ValueError, match="finite"):
        draw_detections(plain(), [[1.0, 1, float("nan"), 5]], [0], None, NAMES)
    with pytest.raises(ValueError, match=r"\[4\]"):
        draw_detections(plain(), [1.0, 1, 5, 5], [0], None, NAMES)


def test_image_pair_and_sheets_hold_every_image() -> None:
    red, blue = Image.new("RGB", (60, 40), (200, 0, 0)), Image.new("RGB", (120, 80), (0, 0, 200))
    pair = image_pair(red, blue, ("truth", "found"))
    found = pixels(pair)
    reds, blues = (found == (200, 0, 0)).all(-1), (found == (0, 0, 200)).all(-1)
    assert reds.sum() == blues.sum() == 60 * 40
    assert np.flatnonzero(reds.any(0)).max() < np.flatnonzero(blues.any(0)).min()
    assert (found[: pair.height - 40] < 100).any()  # the titles are above
    wide = Image.new("RGB", (90, 30), (0, 150, 0))
    for columns in (1, 2, 5):
        sheet = contact_sheet([red, blue, wide, red], "a title", "a caption " * 20, columns=columns)
        found = pixels(sheet)
        areas = [int((found == colour).all(-1).sum()) for colour in ((200, 0, 0), (0, 0, 200), (0, 150, 0))]
        assert areas == [2 * 60 * 40, 120 * 80, 90 * 30]
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], "nothing")


def test_rows_give_narrow_images_room() -> None:
    narrow, broad = Image.new("RGB", (20, 100), (200, 0, 0)), Image.new("RGB", (150, 100), (0, 0, 200))
    plain_row, roomy = row([narrow, broad], ("a", "b")), row([narrow, broad], ("a", "b"), gap=10, letters=30, least=80)
    assert plain_row.width == 20 + 8 + 150
    assert roomy.width == 80 + 10 + 150
    assert roomy.height > plain_row.height
    for line, left in ((plain_row, 28), (roomy, 90)):
        reds, blues = ((pixels(line) == colour).all(-1) for colour in ((200, 0, 0), (0, 0, 200)))
        assert (reds.sum(), blues.sum()) == (20 * 100, 150 * 100)
        assert np.flatnonzero(blues.any(0)).min() == left


@settings(max_examples=50, deadline=None)
@given(text=st.text("iIWm .", min_size=1, max_size=200), width=st.integers(40, 600))
def test_lines_are_as_long_as_fits(text: str, width: int) -> None:
    """Nothing is cut off, and a title of narrow letters is not broken sooner than it must be."""
    paper = _paragraph(text, width, 16)
    wider = _paragraph(text, width + 50, 16)
    assert paper.width == width
    assert (pixels(paper) < 128).sum() == (pixels(wider) < 128).sum()
    assert _paragraph("i" * 20, 20 * 5, 16).height == _paragraph("i", 20 * 5, 16).height


def test_outlines_leave_the_image_alone() -> None:
    image = Image.fromarray(plain().transpose(1, 2, 0))
    whole, dashed = (outlined(image, torch.tensor([50.0, 40, 250, 160]), dashed=dashed) for dashed in (False, True))
    assert image.getextrema() == ((GREY, GREY),) * 3
    sides = [(pixels(one)[160, 50:251] == PALETTE[1]).all(-1).mean() for one in (whole, dashed)]
    assert sides[0] == 1
    assert 0.5 < sides[1] < 0.9


def test_labels_in_a_size_of_ones_own() -> None:
    """The font's size changes the label, not the box."""
    shares = [
        share(draw_detections(plain(), [[60, 60, 200, 160]], [0], None, NAMES, legible=0, letters=size), PALETTE[0])
        for size in (0, 11, 22)
    ]
    assert shares[0] == shares[1] < shares[2]


def test_heat_is_brightest_where_the_weight_is() -> None:
    heat = np.zeros((5, 10), dtype=np.float32)
    heat[1, 7] = 0.02  # of 5 x 10 positions on 200 x 300 pixels: the centre is row 60, column 225
    shown = pixels(overlay_heat(plain(), heat)).astype(int)
    row, column = np.unravel_index(shown.sum(-1).argmax(), shown.shape[:2])
    assert abs(row - 60) <= 1
    assert abs(column - 225) <= 1
    assert np.ptp(shown[150, 40]) <= 3  # grey, and darker, where there is no weight
    assert shown[150, 40].max() < 0.5 * GREY
    assert (pixels(overlay_heat(plain(), torch.from_numpy(heat) * 1000)) == shown).all()
    assert np.ptp(pixels(overlay_heat(plain(), np.zeros((3, 3)))).reshape(-1, 3), axis=0).max() == 0
    along = pixels(overlay_heat(plain(), np.linspace(0, 1, 300)[None])).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(along[100, ::15]) > 0).all()  # more weight is always lighter
    for wrong in (np.zeros(5), np.zeros((0, 4)), np.array([[np.nan]])):
        with pytest.raises(ValueError, match="heat map"):
            overlay_heat(plain(), wrong)


def test_attention_sheets_have_a_line_per_detection() -> None:
    heat = np.ones((4, 6))
    boxes = [[60, 40, 140, 120], [200, 90, 280, 190]]
    one = attention_sheet(plain(), boxes[:1], [[heat, heat]], ["cell 0.9"], legible=0)
    two = attention_sheet(plain(), boxes, [[heat, heat]] * 2, ["cell 0.9", "cell 0.8"], legible=0)
    assert one.width == two.width >= 3 * 300
    assert two.height - one.height >= 200
    untouched = (pixels(two) == GREY).all(-1).sum()
    assert 2 * 200 * 300 * 0.9 < untouched < 2 * 200 * 300  # one panel of each line is the image itself
    assert share(two, PALETTE[1]) > 0
    alone = attention_sheet(plain(), [], [], [], legible=0)
    assert 200 * 300 <= (pixels(alone) == GREY).all(-1).sum() < 200 * 300 + 200  # letters' rims may be as grey
    single = attention_sheet(plain(), boxes[:1], [[heat]], ["cell"], columns=("detection", "attention"), legible=0)
    assert single.width < one.width
    with pytest.raises(ValueError, match="1 attention maps for box 0, not 2"):
        attention_sheet(plain(), boxes[:1], [[heat]], ["cell"])
    with pytest.raises(ValueError, match="2 boxes, 1 sets"):
        attention_sheet(plain(), boxes, [[heat, heat]], ["cell"])


@pytest.mark.shared
def test_real_images_are_drawn(shared_data: Path) -> None:
    for path in sorted((shared_data / "coco_permissive" / "train2017").glob("*.jpg"))[:6]:
        with Image.open(path) as opened:  # one of the set is grey
            width, height = opened.size
            box = [[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]]
            image = draw_detections(opened, box, [0], [0.9], NAMES, legible=0)
        assert image.size == (width, height)
        assert tuple(pixels(image)[round(0.75 * height), width // 2]) == PALETTE[0]
