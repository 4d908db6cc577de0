"""Pasting: detectron2's masks to the last pixel, in COCO's own codes, whatever is pasted at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from detr_container.datasets.run_lengths import RunLengths
from detr_container.tasks.detection.pasting import paste


def some(seed: int, size: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Masks, smooth and noisy, and boxes of every kind within an image, the last one the whole of it."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]], dtype=torch.float32)
    corners = torch.rand(count, 2, generator=generator) * limits * 0.8
    sides = torch.rand(count, 2, generator=generator) * limits * 1.2 + 0.01
    boxes = torch.cat([corners, torch.minimum(corners + sides, limits)], dim=1)
    boxes = boxes.round() if seed % 3 == 0 else boxes
    boxes[-1] = torch.cat([torch.zeros(2), limits])
    boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(dim=1)]
    masks = torch.rand(len(boxes), 28, 28, generator=generator)
    return F.avg_pool2d(masks, 5, 1, 2) if seed % 2 else masks, boxes


def by_hand(mask: Tensor, box: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One mask, pixel by pixel: the four nearest cells, and zeros around."""
    cells = np.pad(mask.double().numpy(), 1)
    x1, y1, x2, y2 = box.double().tolist()
    found = np.zeros(size, dtype=np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            y = (row + 0.5 - y1) / (y2 - y1) * len(mask) + 0.5
            x = (column + 0.5 - x1) / (x2 - x1) * len(mask) + 0.5
            if 0 <= y < len(cells) - 1 and 0 <= x < len(cells) - 1:
                i, j, v, u = int(y), int(x), y % 1, x % 1
                near = cells[i : i + 2, j : j + 2]
                found[row, column] = np.array([1 - v, v]) @ near @ np.array([1 - u, u]) >= 0.5
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_pixel_is_the_mean_of_the_nearest_cells(seed: int) -> None:
    size = (23, 31)
    masks, boxes = some(seed, size, 5)
    found = paste(masks, boxes, size)
    assert found.sizes.tolist() == [[*size]] * len(boxes)
    for mask, box, code in zip(masks, boxes, found, strict=True):
        np.testing.assert_array_equal(coco.decode(code), by_hand(mask, box, size))


def test_what_is_pasted_at_once_changes_nothing_and_codes_are_pycocotools_own() -> None:
    size = (150, 90)
    masks, boxes = some(5, size, 12)
    # Down to its foot and from its head: runs that go on in the next column.
    masks[-1] = 1.0
    found = paste(masks, boxes, size)
    for limit in (1, 100, 3000, 1 << 24):
        for name, column in vars(paste(masks, boxes, size, limit)).items():
            np.testing.assert_array_equal(column, getattr(found, name), err_msg=name)
    assert list(found) == [coco.encode(np.asfortranarray(coco.decode(code))) for code in found]
    assert coco.decode(found[len(found) - 1])[[0, -1], 45].all()


def test_boxes_with_nothing_in_the_image_have_empty_masks() -> None:
    boxes = torch.tensor(
        [[5, 5, 5, 9], [9, 5, 5, 9], [-9, -9, -1, -1], [30, 0, 50, 20], [float("nan"), 0, 9, 9], [0, 0, torch.inf, 9]]
    )
    found = paste(torch.ones(len(boxes), 28, 28), boxes, (20, 30))
    assert found.areas().tolist() == [0.0] * 6
    partly = paste(torch.ones(2, 28, 28), torch.tensor([[-10.0, -10, 5, 5], [-10, -10, 50, 50]]), (20, 30))
    assert partly.areas().tolist() == [25.0, 600.0]
    nothing = paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30))
    assert len(nothing) == 0
    assert paste(torch.full((1, 28, 28), torch.nan), torch.tensor([[0.0, 0, 9, 9]]), (20, 30)).areas().tolist() == [0.0]


def test_half_precision_is_pasted_in_single() -> None:
    masks, boxes = some(1, (60, 80), 4)
    halves = masks.bfloat16()
    assert list(paste(halves, boxes, (60, 80))) == list(paste(halves.float(), boxes, (60, 80)))


@pytest.mark.gpu
def test_a_gpu_pastes_the_same() -> None:
    """But for pixels that are as likely as not, which rounding decides."""
    size = (300, 400)
    masks, boxes = some(7, size, 40)
    own, other = paste(masks, boxes, size), paste(masks.cuda(), boxes.cuda(), size)
    for one, two in zip(own, other, strict=True):
        assert (coco.decode(one) != coco.decode(two)).sum() <= 3


@pytest.mark.parametrize("seed", range(12))
def test_detectron2_pastes_the_same(seed: int) -> None:
    mask_ops = pytest.importorskip(
        "detectron2.layers.mask_ops", reason="detectron2 is not installed: docs/detectron2.md says how"
    )
    size = (20 + 20 * seed, 300 - 20 * seed)
    masks, boxes = some(seed, size, 8)
    expected = mask_ops.paste_masks_in_image(masks, boxes, size).numpy().astype(np.uint8)
    found = paste(masks, boxes, size, limit=(1 << 20, 5000, 300)[seed % 3])
    assert list(found) == list(RunLengths.of([coco.encode(np.asfortranarray(one)) for one in expected]))
