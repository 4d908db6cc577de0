"""Padded objects are matched, and give the losses and gradients, as packed ones do."""

from dataclasses import replace

import packed_criterion as reference
import pytest
import torch
from packed_criterion import pack, pairs_of
from scenes import Scene, scene
from torch import Tensor

from detr_container.datasets.batch import Targets
from detr_container.models.boxes import cxcywh_to_xyxy, generalized_iou
from detr_container.models.criterion import Criterion, Losses, diagnostics
from detr_container.models.detector import Output
from detr_container.models.matcher import Matcher

CRITERIA = {"softmax": Criterion(), "focal": Criterion("focal", class_weight=2.0)}
MATCHERS = {"softmax": Matcher(), "focal": Matcher("focal", cost_class=2.0)}
# The last has images of more objects than queries.
SCENES = [((0, 120, 7), 100), ((3, 1), 100), ((0, 0), 10), ((120,), 300), ((50, 0, 120, 9), 30)]
every = [
    pytest.mark.parametrize("kind", CRITERIA),
    pytest.mark.parametrize("dtype", [torch.float32, torch.float64]),
    pytest.mark.parametrize(("counts", "queries"), SCENES),
]


def cases(test: object) -> object:
    for mark in every:
        test = mark(test)
    return test


def shown_as(kind: str, dtype: torch.dtype, counts: tuple[int, ...], queries: int) -> Scene:
    shown = scene(counts, seed=sum(counts), layers=3, queries=queries, classes=91, softmax=kind == "softmax")
    output = Output(shown.output.logits.to(dtype), shown.output.boxes.to(dtype))
    targets = replace(shown.targets, boxes=shown.targets.boxes.to(dtype))
    return replace(shown, output=output, targets=targets)


def with_more_slots(targets: Targets, more: int) -> Targets:
    labels, boxes = targets.labels, targets.boxes
    own = [slice(0, count) for count in targets.counts]
    rows = [[values[image, part] for image, part in enumerate(own)] for values in (labels, boxes)]
    return Targets.of_images(rows[0], rows[1], labels.shape[1] + more)


def gradients(total: Tensor, output: Output) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, (output.logits, output.boxes))


@cases
def test_matches_are_those_of_packed_objects(
    kind: str, dtype: torch.dtype, counts: tuple[int, ...], queries: int
) -> None:
    shown = shown_as(kind, dtype, counts, queries)
    ours = pairs_of(MATCHERS[kind](shown.output, shown.targets), shown.targets)
    theirs = reference.match(MATCHERS[kind], shown.output, pack(shown.targets))
    assert len(ours.query) == 3 * sum(min(count, queries) for count in counts)
    for name in ("layer", "image", "query", "target"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


@cases
@pytest.mark.parametrize("normalise", ["global", "process"])
def test_losses_diagnostics_and_gradients_are_those_of_packed_objects(
    kind: str, dtype: torch.dtype, counts: tuple[int, ...], queries: int, normalise: str
) -> None:
    shown = shown_as(kind, dtype, counts, queries)
    criterion = replace(CRITERIA[kind], normalise=normalise)
    output, packed = shown.output, pack(shown.targets)
    output.logits.requires_grad_()
    output.boxes.requires_grad_()
    matches = MATCHERS[kind](output, shown.targets)
    pairs = pairs_of(matches, shown.targets)
    # Of two micro batches on two processes, of which this is one.
    mine = [criterion.normalisers(counts, queries), criterion.normalisers((2, 5), queries)]
    norms = criterion.of_step(mine, torch.tensor(mine).sum(dim=0) * 2, world=2)[0]
    theirs = reference.losses(criterion, output, packed, pairs, norms)
    weights = {"class": criterion.class_weight, "l1": criterion.l1_weight, "giou": criterion.giou_weight}
    expected = sum(weights[name] * term.sum() for name, term in theirs.items())
    goal = gradients(expected, output)
    near = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}

    def check(losses: Losses) -> None:
        torch.testing.assert_close(losses.total, expected, **near)
        for name, term in theirs.items():
            torch.testing.assert_close(losses.terms[name], term.detach(), **near)
        for got, wanted in zip(gradients(losses.total, output), goal, strict=True):
            torch.testing.assert_close(got, wanted, **near)

    check(criterion(output, shown.targets, matches, norms))
    wider = with_more_slots(shown.targets, 13)
    assert wider.labels.shape[1] == max(counts) + 13
    found = MATCHERS[kind](output, wider)
    assert torch.equal(found[..., : max(counts)], matches)
    assert (found[..., max(counts) :] == -1).all()
    check(criterion(output, wider, found, norms))
    if kind == "softmax":
        told = reference.diagnostics(output, packed, pairs)
        for targets, place in ((shown.targets, matches), (wider, found)):
            ours = diagnostics(output, targets, place, softmax=True)
            assert {name: float(value) for name, value in ours.items()} == pytest.approx(told, rel=1e-6)


def test_surplus_objects_of_no_size_add_nothing() -> None:
    """A box of no area overlaps by 0 even with itself."""
    shown = scene((9, 1), queries=4)
    shown.targets.boxes[..., 2:] = 0
    matches = MATCHERS["softmax"](shown.output, shown.targets)
    pairs, objects = pairs_of(matches, shown.targets), pack(shown.targets).boxes
    found = shown.output.boxes[pairs.layer, pairs.image, pairs.query]
    overlap = generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(objects[pairs.target]))
    expected = [float((1 - overlap)[pairs.layer == layer].sum()) / 10 for layer in range(2)]
    assert CRITERIA["softmax"](shown.output, shown.targets, matches).terms["giou"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", CRITERIA)
def test_what_a_query_without_an_object_predicts_as_its_box_is_without_consequence(kind: str) -> None:
    """Not even as a NaN in a gradient."""
    shown = scene((2, 0), queries=6, softmax=kind == "softmax")
    matches = MATCHERS[kind](shown.output, shown.targets)
    free = torch.ones(2, 2, 6, dtype=torch.bool)
    for layer, query in enumerate(matches[:, 0].tolist()):
        free[layer, 0, query] = False
    clean = CRITERIA[kind](shown.output, shown.targets, matches)
    shown.output.boxes[free] = torch.nan
    shown.output.boxes.requires_grad_()
    losses = CRITERIA[kind](shown.output, shown.targets, matches)
    assert losses.total == clean.total
    (gradient,) = torch.autograd.grad(losses.total, shown.output.boxes)
    assert not gradient[free].any()
    assert (gradient[~free] != 0).any(dim=-1).all()
