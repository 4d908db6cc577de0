import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_criterion import pack, pairs_of
from scenes import Scene, scene, scenes
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from detr_container.models.matcher import Matcher, NonFiniteOutputError

SOFTMAX, FOCAL = Matcher(), Matcher("focal", cost_class=2.0)


def published_costs(matcher: Matcher, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
    """[Q, N] of one image, as the published matchers write it."""
    if matcher.classification == "softmax":
        price = -logits.softmax(-1)[:, labels]
    else:
        p = logits.sigmoid()
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
        price = (positive - negative)[:, labels]
    l1 = torch.cdist(boxes, target_boxes, p=1)
    overlap = generalized_box_iou(*(box_convert(each, "cxcywh", "xyxy") for each in (boxes, target_boxes)))
    return 5 * l1 + matcher.cost_class * price - 2 * overlap


def per_image(matcher: Matcher, shown: Scene) -> list[tuple[int, int, int, Tensor]]:
    """(layer, image, first target row, published costs) of every image and layer."""
    output, targets = shown.output, pack(shown.targets)
    rows = []
    for layer in range(len(output.logits)):
        for image, count in enumerate(shown.targets.counts):
            own = slice(targets.starts[image], targets.starts[image] + count)
            costs = published_costs(
                matcher,
                output.logits[layer, image],
                output.boxes[layer, image],
                targets.labels[own],
                targets.boxes[own],
            )
            rows.append((layer, image, own.start, costs))
    return rows


@pytest.mark.parametrize("matcher", [SOFTMAX, FOCAL], ids=["softmax", "focal"])
@given(data=st.data())
def test_matches_are_those_of_the_published_costs(matcher: Matcher, data: st.DataObject) -> None:
    shown = data.draw(scenes(softmax=matcher.classification == "softmax"))
    matches = pairs_of(matcher(shown.output, shown.targets), shown.targets)
    expected = []
    for layer, image, start, costs in per_image(matcher, shown):
        for query, target in zip(*linear_sum_assignment(costs), strict=True):
            expected.append((layer, image, int(query), start + int(target)))
    ours = torch.stack((matches.layer, matches.image, matches.query, matches.target), dim=1)
    assert [tuple(row) for row in ours.tolist()] == expected


@pytest.mark.parametrize("matcher", [SOFTMAX, FOCAL], ids=["softmax", "focal"])
@settings(max_examples=40)
@given(data=st.data())
def test_no_other_assignment_is_cheaper(matcher: Matcher, data: st.DataObject) -> None:
    shown = data.draw(scenes(softmax=matcher.classification == "softmax"))
    matches = pairs_of(matcher(shown.output, shown.targets), shown.targets)
    for layer, image, start, costs in per_image(matcher, shown):
        chosen = (matches.layer == layer) & (matches.image == image)
        queries, own = matches.query[chosen].tolist(), (matches.target[chosen] - start).tolist()
        pairs = min(costs.shape)
        assert len(queries) == len(set(queries)) == len(set(own)) == pairs
        assert queries == sorted(queries)
        paid = math.fsum(costs[query, target].item() for query, target in zip(queries, own, strict=True))
        table = costs if costs.shape[0] <= costs.shape[1] else costs.T
        best = min(
            math.fsum(table[row, column].item() for row, column in enumerate(columns))
            for columns in itertools.permutations(range(table.shape[1]), pairs)
        )
        assert paid == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("matcher", [SOFTMAX, FOCAL], ids=["softmax", "focal"])
@given(data=st.data())
def test_costs_are_the_published_ones(matcher: Matcher, data: st.DataObject) -> None:
    shown = data.draw(scenes(softmax=matcher.classification == "softmax"))
    ours = matcher.costs(shown.output, shown.targets)
    for layer, image, _, costs in per_image(matcher, shown):
        torch.testing.assert_close(ours[layer, image, :, : costs.shape[1]], costs, rtol=1e-5, atol=1e-5)


def test_a_image_with_more_objects_than_queries_has_a_pair_for_every_query() -> None:
    shown = scene((9, 1), layers=1, queries=4)
    matches = pairs_of(SOFTMAX(shown.output, shown.targets), shown.targets)
    assert matches.query[matches.image == 0].tolist() == [0, 1, 2, 3]
    assert len(set(matches.target[matches.image == 0].tolist())) == 4
    assert matches.target[matches.image == 1].tolist() == [9]


def test_a_image_of_another_image_s_objects_is_never_matched_with_them() -> None:
    shown = scene((2, 0, 3), layers=2, queries=6)
    matches = pairs_of(SOFTMAX(shown.output, shown.targets), shown.targets)
    owners = torch.tensor([0, 0, 2, 2, 2])
    assert torch.equal(owners[matches.target], matches.image)
    assert len(matches.target) == 2 * 5


def test_a_batch_without_objects_has_no_pairs() -> None:
    shown = scene((0, 0))
    matches = SOFTMAX(shown.output, shown.targets)
    assert matches.shape == (2, 2, 0)
    assert matches.dtype == torch.int64


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["logits", "boxes"])
@pytest.mark.parametrize(("layer", "image"), [(0, 0), (1, 1), (2, 2)])
def test_what_is_not_finite_is_named(layer: int, image: int, field: str, bad: float) -> None:
    # The middle image has no objects, so no cost of it would show.
    shown = scene((2, 0, 3), layers=3)
    getattr(shown.output, field)[layer, image, -1, 0] = bad
    with pytest.raises(NonFiniteOutputError, match=f"layer {layer} .* image {image} ") as caught:
        SOFTMAX(shown.output, shown.targets)
    assert (caught.value.layer, caught.value.image) == (layer, image)


def test_large_logits_are_not_taken_for_infinite_ones() -> None:
    for matcher in (SOFTMAX, FOCAL):
        shown = scene((2, 1), softmax=matcher.classification == "softmax")
        shown.output.logits.mul_(1e4)
        assert (matcher(shown.output, shown.targets) >= 0).sum() == 2 * 3
