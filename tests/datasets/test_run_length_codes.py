"""Run-length codes: pycocotools' own are taken, and what it would leave its memory for is not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from detr_container.datasets import run_length_codes
from detr_container.datasets.run_length_codes import first_fault, sound
from detr_container.datasets.run_lengths import RunLengths


def fills(code: bytes, pixels: int) -> bool:
    """Whether a code's runs fill so many pixels, read as COCO's C code does, one character after the other."""
    runs: list[int] = []
    place = 0
    while place < len(code):
        value = shift = 0
        more = True
        while more:
            digit = code[place] - 48 if place < len(code) else -1
            if not 0 <= digit < 64 or shift > 30:
                return False
            value |= (digit & 31) << shift
            place, shift, more = place + 1, shift + 5, bool(digit & 32)
            if not more and digit & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return bool(runs) and min(runs) >= 0 and sum(runs) == pixels


def mixed(rng: random.Random, draw: np.random.Generator) -> list[dict[str, Any]]:
    """A few masks of various sizes, from empty to full, with holes and without; some of their codes are damaged."""
    masks = []
    for _ in range(rng.randint(1, 6)):
        height, width = rng.randint(1, 40), rng.randint(1, 40)
        share = rng.choice([0.0, 0.1, 0.5, 1.0])
        pixels = (draw.random((height, width, 1)) < share).astype(np.uint8, order="F")
        code = bytearray(coco.encode(pixels)[0]["counts"])
        if rng.random() < 0.4:
            at = rng.randrange(len(code))
            some = [rng.choice([rng.randrange(256), rng.randrange(48, 112)]) for _ in range(rng.randint(0, 2))]
            code[at : at + rng.randint(0, 2)] = bytes(some)
        if rng.random() < 0.1:
            code = bytearray(b"P" * rng.randint(0, 9) + b"0" * rng.randint(0, 2))
        masks.append({"size": [height, width], "counts": bytes(code)})
    return masks


@pytest.mark.parametrize("together", [1, 50, 1 << 16])
def test_codes_are_sound_where_their_runs_fill_the_image(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_length_codes, "_BYTES", together)
    rng, draw = random.Random(together), np.random.default_rng(together)
    good = bad = 0
    for _ in range(500):
        masks: Any = mixed(rng, draw)
        expected = [fills(mask["counts"], mask["size"][0] * mask["size"][1]) for mask in masks]
        assert sound(RunLengths.of(masks)).tolist() == expected, masks
        good, bad = good + sum(expected), bad + expected.count(False)
        for mask in (mask for mask, whole in zip(masks, expected, strict=True) if whole):
            assert coco.decode(mask).shape == tuple(mask["size"])
    assert good > 500
    assert bad > 200


def test_large_images_and_long_runs() -> None:
    height, width = 30_000, 40_000
    runs = [0, 1, height * width - 2, 1]
    (code,) = coco.frPyObjects([{"size": [height, width], "counts": runs}], height, width)
    masks = RunLengths.of([code] * 3)
    assert sound(masks).all()
    assert not first_fault(masks)
    assert masks.areas().tolist() == [2.0] * 3
    other = RunLengths(masks.sizes + np.array([[0, 0], [0, 1], [0, 0]]), masks.lengths, masks.code)
    assert sound(other).tolist() == [True, False, True]


def three(**changed: Any) -> RunLengths:
    """The masks of three images with something else in their columns."""
    masks = RunLengths.of(coco.encode(np.asfortranarray(np.eye(7, 9, dtype=np.uint8)[..., None])) * 3)
    return RunLengths(**{**{name: getattr(masks, name) for name in ("sizes", "lengths", "code")}, **changed})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a size less": ({"sizes": np.full((2, 2), 7)}, "2 sizes of 3 masks"),
    "lengths of another sum": ({"lengths": three().lengths + 1}, "do not add up to"),
    "lengths that overflow": ({"lengths": np.full(3, 2**62)}, "do not add up to"),
    "a negative length": ({"lengths": np.array([-5, 5, len(three().code)])}, "do not add up to"),
    "no pixels": ({"sizes": np.array([[7, 9], [0, 9], [7, 9]])}, "mask 1 is of 0 x 9 pixels"),
    "more pixels than count": ({"sizes": np.array([[7, 9], [7, 9], [2**31, 2**31]])}, f"mask 2 is of {2**31} x"),
    "sides that overflow": ({"sizes": np.array([[2**62, 4], [7, 9], [7, 9]])}, f"mask 0 is of {2**62} x 4"),
    "another size": ({"sizes": np.array([[7, 9], [9, 8], [7, 9]])}, "mask 1 has a code .* 9 x 8 pixels"),
    "an empty code": ({"lengths": np.array([len(three().code), 0, 0])}, "mask 0 has a code"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_first_fault_is_named(what: str) -> None:
    changed, message = WRONG[what]
    assert not first_fault(three())
    with pytest.raises(ValueError, match=message):
        raise ValueError(first_fault(three(**changed)))


def test_no_masks_have_no_fault() -> None:
    assert not first_fault(RunLengths.of([]))
    assert sound(RunLengths.of([])).tolist() == []


def test_areas_of_more_masks_than_pycocotools_takes() -> None:
    shapes = [np.tril(np.ones((9, 9), dtype=np.uint8), k=place % 9 - 4) for place in range(700)]
    masks = RunLengths.of([coco.encode(np.asfortranarray(one)) for one in shapes])
    assert masks.areas().tolist() == [float(one.sum()) for one in shapes]
    assert len(list(masks)) == 700
    assert RunLengths.of([]).areas().tolist() == []
