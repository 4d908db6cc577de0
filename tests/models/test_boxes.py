import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import random_boxes
from torchvision.ops import box_convert, generalized_box_iou

from detr_container.models.boxes import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 6))
def test_generalized_iou_of_every_pair_is_torchvisions(seed: int, first: int, second: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (cxcywh_to_xyxy(random_boxes(generator, count)) for count in (first, second))
    ours = generalized_iou(a[:, None], b[None])
    torch.testing.assert_close(ours, generalized_box_iou(a, b), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_conversion_is_torchvisions_and_can_be_undone(seed: int) -> None:
    boxes = random_boxes(torch.Generator().manual_seed(seed), 2, 7)
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners, box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0),  # the same point
        ((0.2, 0.2, 0.2, 0.2), (0.4, 0.6, 0.4, 0.6), -1.0),  # two points, far apart
        ((0.2, 0.2, 0.4, 0.2), (0.2, 0.2, 0.4, 0.2), 0.0),  # the same line
        ((0.2, 0.2, 0.4, 0.2), (0.3, 0.1, 0.5, 0.3), -1 / 3),  # a line and a square: hull 0.06, union 0.04
        ((0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), 0.0),  # a point in the whole image
    ],
)
def test_boxes_without_area(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    one, other = torch.tensor(a, requires_grad=True), torch.tensor(b)
    value = generalized_iou(one, other)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert one.grad is not None
    assert one.grad.isfinite().all()


@given(st.integers(0, 2**32 - 1))
def test_generalized_iou_keeps_its_range(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Sides of 0, of 1e-8 and of 0.3: what a detector may predict early on.
    boxes = random_boxes(generator, 12)
    boxes[:, 2:] *= torch.tensor([0.0, 1e-8, 1.0])[torch.randint(3, (12, 2), generator=generator)]
    corners = cxcywh_to_xyxy(boxes)
    values = generalized_iou(corners[:, None], corners[None])
    assert values.isfinite().all()
    assert values.min() >= -1 - 1e-6
    assert values.max() <= 1 + 1e-6
