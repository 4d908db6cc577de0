"""What a mask head learns: as detectron2 cuts it from polygons, and as a loop over cells would."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reads import Reads
from scipy import ndimage
from torch import Tensor

from detr_container.datasets.masks import SIDE, rasters
from detr_container.datasets.segmentations import Segmentations
from detr_container.datasets.transforms import Plan
from detr_container.models.mask_targets import mask_targets

TARGET = 28
IMAGE = (300, 300)
OBJECTS = 200


def polygons() -> list[list[NDArray[np.float64]]]:
    """Of objects of 30 to 250 pixels, one or two polygons each."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(OBJECTS):
        radius = generator.uniform(20, 125)
        each = []
        for _ in range(1 + number % 2):
            corners = int(generator.integers(3, 24))
            angles = (np.arange(corners) + generator.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
            radii = radius * generator.uniform(0.6, 1.0, corners)
            points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
            each.append((points * generator.uniform(0.5, 1.0, 2) + generator.uniform(140, 160, 2)).ravel())
        found.append(each)
    return found


def boxes_of(objects: list[list[NDArray[np.float64]]]) -> Tensor:
    """[n, 4] xyxy, tight."""
    corners = [np.concatenate([polygon.reshape(-1, 2) for polygon in each]) for each in objects]
    return torch.tensor(np.array([[*each.min(axis=0), *each.max(axis=0)] for each in corners]), dtype=torch.float32)


def iou(a: Tensor, b: Tensor) -> Tensor:
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - shared)


def proposals_of(boxes: Tensor) -> Tensor:
    """[n, 4] that overlap with boxes by an IoU of 0.5 or more, as those that learn masks, and not by 1."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    found = boxes + 0.01 * sides
    for _ in range(30):
        tried = boxes + (torch.rand(boxes.shape) * 0.6 - 0.3) * sides
        good = iou(tried, boxes) >= 0.5
        found[good] = tried[good]
    assert iou(found, boxes).min() >= 0.5
    return found


def test_targets_are_those_of_detectron2_but_for_few_cells_at_the_border() -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")
    from detectron2.structures import PolygonMasks

    objects = polygons()
    boxes = boxes_of(objects)
    proposals = proposals_of(boxes)
    theirs = PolygonMasks(objects).crop_and_resize(proposals, TARGET)
    kept, faults = Segmentations.checked(
        [[polygon.tolist() for polygon in each] for each in objects], np.full((OBJECTS, 2), IMAGE)
    )
    assert faults == {}
    masks = rasters(kept, np.arange(OBJECTS), Plan(False, (), IMAGE), IMAGE, boxes.double().numpy())
    ours = mask_targets(masks, boxes, proposals, TARGET)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.bool
    share = theirs.float().mean().item()
    assert 0.3 < share < 0.8
    differ = (ours != theirs).numpy()
    assert differ.mean() < 0.01
    assert differ.mean(axis=(1, 2)).max() < 0.03
    # To neither side more than to the other.
    assert abs(ours.float().mean().item() - share) < 0.002
    for mine, expected in zip(differ, theirs.numpy(), strict=True):
        # One cell from the border, or at the edge of the proposal.
        inside, outside = (ndimage.binary_erosion(part, np.ones((3, 3))) for part in (expected, ~expected))
        assert not (mine & (inside | outside)).any()


def by_loops(mask: NDArray[np.bool_], box: list[float], proposal: list[float], side: int) -> NDArray[np.bool_]:
    found = np.zeros((side, side), dtype=bool)
    for row in range(side):
        for column in range(side):
            x = proposal[0] + (column + 0.5) / side * (proposal[2] - proposal[0])
            y = proposal[1] + (row + 0.5) / side * (proposal[3] - proposal[1])
            if box[0] <= x < box[2] and box[1] <= y < box[3]:
                across, down = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
                found[row, column] = mask[int(down * mask.shape[0]), int(across * mask.shape[1])]
    return found


def test_every_cell_is_that_of_the_raster_in_which_its_centre_lies() -> None:
    """Of numbers that floats hold exactly, so that no centre lies on either side of an edge."""
    generator = np.random.default_rng(1)
    masks = torch.from_numpy(generator.random((20, 16, 16)) < 0.5)
    boxes = torch.from_numpy(generator.integers(0, 8, (20, 4))).float()
    boxes[:, 2:] = boxes[:, :2] + 16
    proposals = boxes + torch.from_numpy(generator.integers(-3, 4, (20, 4))) + 0.125
    found = mask_targets(masks, boxes, proposals, 8).numpy()
    for mask, box, proposal, target in zip(masks.numpy(), boxes.tolist(), proposals.tolist(), found, strict=True):
        assert np.array_equal(target, by_loops(mask, box, proposal, 8))
    assert 0.2 < found.mean() < 0.6


def test_a_proposal_that_is_the_box_shows_the_mask() -> None:
    masks = torch.rand(5, 28, 28) < 0.5
    boxes = torch.tensor([[10.0, 20.0, 38.0, 76.0]]).repeat(5, 1)
    assert torch.equal(mask_targets(masks, boxes, boxes, 28), masks)
    # Twice as large to the right and below: the rest is empty.
    wider = boxes + torch.tensor([0.0, 0.0, 28.0, 56.0])
    found = mask_targets(masks, boxes, wider, 56)
    assert torch.equal(found[:, :28, :28], masks)
    assert not found[:, 28:].any()
    assert not found[:, :, 28:].any()


def test_nothing_and_what_has_no_area_have_targets() -> None:
    nothing = mask_targets(torch.zeros(0, SIDE, SIDE, dtype=torch.bool), torch.zeros(0, 4), torch.zeros(0, 4), TARGET)
    assert (nothing.shape, nothing.dtype) == ((0, TARGET, TARGET), torch.bool)
    masks, point = torch.ones(2, SIDE, SIDE, dtype=torch.bool), torch.tensor([[5.0, 5, 5, 5]] * 2)
    box = torch.tensor([[0.0, 0, 10, 10]] * 2)
    assert not mask_targets(masks, point, box, TARGET).any()
    assert mask_targets(masks, box, point, TARGET).all()
    assert not mask_targets(masks, box, point + 1e9, TARGET).any()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_nobody_waits_for_the_device(device: str) -> None:
    masks = torch.rand(6, SIDE, SIDE, device=device) < 0.5
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 6, device=device)
    with Reads() as reads:
        mask_targets(masks, boxes, boxes + 1, TARGET)
    assert not reads.found
