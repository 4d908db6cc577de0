"""Whether compressed run-length codes can be decoded, found out before pycocotools, which checks nothing, sees them.

A code is text: each character from "0" to "o" holds six bits, five of a number and one that says whether more of it
follow. The numbers are the lengths of runs down the columns, of zeros first; from the fourth on each is the difference
to the last but one. Decoded, runs of another sum than the image's pixels are written, and read, beyond its memory.

Sizes: n masks, m numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .run_lengths import RunLengths

Whole = NDArray[np.int64]
_BYTES = 1 << 16
"""Of code that are looked at together, since what is set aside for so many stays in a core's cache."""
_LONGEST = 7
"""Characters of a number: of 33 bits, the difference of two lengths."""
_PIXELS = 1 << 32
"""More than a length can count."""


def first_fault(masks: RunLengths) -> str:
    """What is wrong with the first mask that cannot be decoded; empty where all can."""
    count, size, lengths, sides = len(masks.lengths), len(masks.code), masks.lengths, masks.sizes
    if len(sides) != count:
        return f"there are {len(sides)} sizes of {count} masks"
    # Each by itself first, since sums of arbitrary numbers may come out right.
    if (count and not 0 <= lengths.min() <= lengths.max() <= size) or lengths.sum() != size:
        return f"the lengths of its masks' codes do not add up to {size} bytes"
    wrong: NDArray[np.bool_] = np.any((sides < 1) | (sides >= _PIXELS), axis=1)
    wrong[~wrong] = sides[~wrong].prod(axis=1, dtype=np.uint64) >= _PIXELS
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        return f"mask {row} is of {' x '.join(map(str, sides[row].tolist()))} pixels, which no image has"
    bad = np.flatnonzero(~sound(masks))
    if len(bad):
        height, width = sides[bad[0]].tolist()
        return f"mask {bad[0]} has a code whose runs do not add up to its {height} x {width} pixels"
    return ""


def sound(masks: RunLengths) -> NDArray[np.bool_]:
    """[n] which codes are runs that fill their images. Lengths must be those of codes, and sizes those of images."""
    ends, pixels = np.cumsum(masks.lengths), masks.sizes.prod(axis=1)
    found = np.ones(len(masks), dtype=bool)
    row = 0
    while row < len(masks):
        start = int(ends[row] - masks.lengths[row])
        part = slice(row, max(row + 1, int(np.searchsorted(ends, start + _BYTES, side="right"))))
        found[part] = _sound(pixels[part], masks.lengths[part], masks.code[start : ends[part][-1]])
        row = part.stop
    return found


def _sound(pixels: Whole, lengths: Whole, code: NDArray[np.uint8]) -> NDArray[np.bool_]:
    # What is below "0" wraps round, and is too large as well.
    digits, ends = code - np.uint8(48), np.cumsum(lengths)
    last = digits & 32 == 0
    good = lengths > 0
    good[good] = last[ends[good] - 1]
    good[np.searchsorted(ends, np.flatnonzero(digits > 63), side="right")] = False
    stops = np.flatnonzero(last)
    if good.all():
        long = stops[np.diff(stops, prepend=-1) > _LONGEST]
        good[np.searchsorted(ends, long, side="right")] = False
    if not good.all():
        # By themselves, so that no number runs on from one into the next.
        if good.any():
            good[good] = _sound(pixels[good], lengths[good], code[np.repeat(good, lengths)])
        return good
    first = np.searchsorted(stops, ends - lengths)
    runs = np.diff(first, append=len(stops))
    counts = _undone(_numbers(digits, stops), first, runs)
    impossible = (counts < 0) | (counts > np.repeat(pixels, runs))
    sums = np.add.reduceat(np.where(impossible, 0, counts), first)
    filled: NDArray[np.bool_] = ~np.logical_or.reduceat(impossible, first) & (sums == pixels)
    return filled


def _numbers(digits: NDArray[np.uint8], stops: Whole) -> Whole:
    """[m] as written, the lowest bits first; stops: where each one's last character stands."""
    sizes = np.diff(stops, prepend=-1)
    starts = stops - sizes + 1
    numbers = (digits[starts] & 31).astype(np.int64)
    rows = np.arange(len(stops))
    for place in range(1, int(sizes.max())):
        rows = rows[sizes[rows] > place]
        numbers[rows] |= (digits[starts[rows] + place] & 31).astype(np.int64) << 5 * place
    negative = np.flatnonzero(digits[stops] & 16)
    numbers[negative] -= np.int64(1) << 5 * sizes[negative]
    return numbers


def _undone(numbers: Whole, first: Whole, runs: Whole) -> Whole:
    """[m] lengths of runs, from differences to the last but one; first, runs: where each code's begin, and how many."""
    # Over all codes at once: every other number, added up, but for what had been added up where the code began.
    sums = np.zeros(len(numbers) + 2, dtype=np.int64)
    for parity in (0, 1):
        sums[2 + parity :: 2] = np.cumsum(numbers[parity::2])
    # sums[k + 2] is that up to number k. Of a code from g on, lengths g + 1, g + 3, ... start at number g + 1, and
    # g + 2, g + 4, ... at g + 2: its first number is no difference's base.
    before = np.repeat(np.stack([sums[first + 2], sums[first + 1]], axis=1), runs, axis=0)
    place = np.arange(len(numbers)) - np.repeat(first, runs)
    counts: Whole = sums[2:] - before[np.arange(len(numbers)), place & 1]
    counts[first] = numbers[first]
    return counts
