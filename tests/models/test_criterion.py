from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from packed_criterion import pack, pairs_of
from scenes import Scene, scene, scenes, sliced
from torchvision.ops import box_convert, generalized_box_iou

from detr_container.models.criterion import Criterion, Losses, diagnostics
from detr_container.models.detector import Output
from detr_container.models.matcher import Matcher

CRITERIA = {"softmax": Criterion(), "focal": Criterion("focal", class_weight=2.0)}
MATCHERS = {"softmax": Matcher(), "focal": Matcher("focal", cost_class=2.0)}
both = pytest.mark.parametrize("kind", ["softmax", "focal"])


def matched(kind: str, shown: Scene) -> torch.Tensor:
    return MATCHERS[kind](shown.output, shown.targets)


def losses_of(kind: str, shown: Scene, normalisers: torch.Tensor | None = None) -> Losses:
    return CRITERIA[kind](shown.output, shown.targets, matched(kind, shown), normalisers)


def naive(kind: str, shown: Scene) -> dict[str, list[float]]:
    """The published losses of every layer, object by object."""
    output, targets, matches = shown.output, pack(shown.targets), pairs_of(matched(kind, shown), shown.targets)
    terms: dict[str, list[float]] = {"class": [], "l1": [], "giou": []}
    objects = max(sum(shown.targets.counts), 1)
    pairs = {
        (layer, image, query): target
        for layer, image, query, target in zip(
            *(part.tolist() for part in (matches.layer, matches.image, matches.query, matches.target)), strict=True
        )
    }
    for layer, (logits, boxes) in enumerate(zip(output.logits.double(), output.boxes.double(), strict=True)):
        price = weight = l1 = giou = 0.0
        for image in range(len(shown.targets.counts)):
            for query in range(logits.shape[1]):
                target = pairs.get((layer, image, query))
                row = logits[image, query]
                if kind == "softmax":
                    label = shown.classes if target is None else int(targets.labels[target])
                    share = 0.1 if target is None else 1.0
                    price -= share * row.log_softmax(-1)[label].item()
                    weight += share
                else:
                    for column, p in enumerate(row.sigmoid()):
                        hit = target is not None and int(targets.labels[target]) == column
                        right = p if hit else 1 - p
                        price -= float((0.25 if hit else 0.75) * (1 - right) ** 2 * right.log())
                if target is not None:
                    expected = targets.boxes[target].double()
                    l1 += (boxes[image, query] - expected).abs().sum().item()
                    two = (box_convert(box[None], "cxcywh", "xyxy") for box in (boxes[image, query], expected))
                    giou += 1 - generalized_box_iou(*two).item()
        terms["class"].append(price / (weight if kind == "softmax" else objects))
        terms["l1"].append(l1 / objects)
        terms["giou"].append(giou / objects)
    return terms


@both
@given(data=st.data())
def test_losses_are_those_of_naive_loops(kind: str, data: st.DataObject) -> None:
    shown = data.draw(scenes(softmax=kind == "softmax"))
    losses, expected = losses_of(kind, shown), naive(kind, shown)
    for name, values in expected.items():
        assert losses.terms[name].tolist() == pytest.approx(values, rel=1e-4, abs=1e-6)
    weights = CRITERIA[kind]
    total = sum(
        weights.class_weight * a + weights.l1_weight * b + weights.giou_weight * c
        for a, b, c in zip(expected["class"], expected["l1"], expected["giou"], strict=True)
    )
    assert losses.total.item() == pytest.approx(total, rel=1e-4)


def test_softmax_is_torchs_weighted_cross_entropy() -> None:
    shown = scene((3, 0, 2), layers=2, queries=7, classes=4)
    matches = matched("softmax", shown)
    weight = torch.tensor([1.0, 1, 1, 1, 0.3])
    ours = replace(CRITERIA["softmax"], no_object_weight=0.3)(shown.output, shown.targets, matches).terms["class"]
    pairs = pairs_of(matches, shown.targets)
    for layer in range(2):
        labels = torch.full((3, 7), 4)
        of_layer = pairs.layer == layer
        labels[pairs.image[of_layer], pairs.query[of_layer]] = pack(shown.targets).labels[pairs.target[of_layer]]
        expected = F.cross_entropy(shown.output.logits[layer].transpose(1, 2), labels, weight)
        torch.testing.assert_close(ours[layer], expected)


@both
@given(data=st.data())
def test_small_batches_add_up_to_the_large_one(kind: str, data: st.DataObject) -> None:
    """Gradient accumulation and several processes: losses and gradients are those of one batch."""
    counts = tuple(data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=6)))
    whole = scene(counts, seed=data.draw(st.integers(0, 2**32 - 1)), queries=4, softmax=kind == "softmax")
    cut = data.draw(st.integers(1, len(counts) - 1))
    whole.output.logits.requires_grad_()
    whole.output.boxes.requires_grad_()
    total = losses_of(kind, whole).total
    gradients = torch.autograd.grad(total, (whole.output.logits, whole.output.boxes))
    parts = [sliced(whole, slice(0, cut)), sliced(whole, slice(cut, len(counts)))]
    sums = [CRITERIA[kind].normalisers(part.targets.counts, queries=4) for part in parts]
    shared = torch.tensor([sum(column) for column in zip(*sums, strict=True)])
    split = [losses_of(kind, part, shared) for part in parts]
    torch.testing.assert_close(sum(part.total for part in split), total, rtol=1e-5, atol=1e-6)
    for name in ("class", "l1", "giou"):
        expected = losses_of(kind, whole).terms[name]
        torch.testing.assert_close(sum(part.terms[name] for part in split), expected, rtol=1e-5, atol=1e-6)
    again = torch.autograd.grad(sum(part.total for part in split), (whole.output.logits, whole.output.boxes))
    for ours, theirs in zip(again, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@both
@pytest.mark.parametrize("counts", [(3, 1, 0, 2), (0, 0, 0, 1), (0, 0, 0, 0)])
def test_each_micro_batch_as_a_process_of_the_published_code(kind: str, counts: tuple[int, ...]) -> None:
    """Two processes of two micro batches: the mean of four losses, boxes over the mean number of objects."""
    criterion = replace(CRITERIA[kind], normalise="process")
    whole = scene(counts, queries=4, softmax=kind == "softmax")
    parts = [sliced(whole, slice(image, image + 1)) for image in range(4)]
    sums = [criterion.normalisers(part.targets.counts, queries=4) for part in parts]
    shared = torch.tensor(sums).sum(dim=0)
    norms = [*criterion.of_step(sums[:2], shared, world=2), *criterion.of_step(sums[2:], shared, world=2)]
    # `naive` divides by an image's own objects, which are none or more.
    own = [naive(kind, part) for part in parts]
    boxes = max(sum(counts) / 4, 1)
    for name in ("class", "l1", "giou"):
        scale = [1.0 if (name, kind) == ("class", "softmax") else max(count, 1) / boxes for count in counts]
        expected = sum(torch.tensor(each[name]) * factor for each, factor in zip(own, scale, strict=True)) / 4
        found = [
            criterion(part.output, part.targets, matched(kind, part), norm).terms[name]
            for part, norm in zip(parts, norms, strict=True)
        ]
        torch.testing.assert_close(sum(found), expected, rtol=1e-4, atol=1e-6)


@both
def test_a_batch_without_objects_teaches_only_that_there_are_none(kind: str) -> None:
    shown = scene((0, 0), softmax=kind == "softmax")
    shown.output.logits.requires_grad_()
    shown.output.boxes.requires_grad_()
    losses = losses_of(kind, shown)
    assert losses.terms["l1"].tolist() == losses.terms["giou"].tolist() == [0.0, 0.0]
    assert (losses.terms["class"] > 0).all()
    logits, boxes = torch.autograd.grad(losses.total, (shown.output.logits, shown.output.boxes))
    assert not boxes.any()
    if kind == "softmax":
        assert (logits[..., -1] < 0).all()
        assert (logits[..., :-1] > 0).all()
    else:
        assert (logits > 0).all()


@both
def test_normalisers_without_objects_on_one_process(kind: str) -> None:
    """A process without objects divides by what the others have seen."""
    shown = scene((0,), softmax=kind == "softmax")
    alone = losses_of(kind, shown, torch.tensor(CRITERIA[kind].normalisers((0,), 5)))
    with_others = losses_of(kind, shown, torch.tensor(CRITERIA[kind].normalisers((0, 4), 5)))
    ratio = (alone.total / with_others.total).item()
    assert ratio == pytest.approx((4 + 0.1 * 6) / (0.1 * 5) if kind == "softmax" else 4.0, rel=1e-5)


@both
def test_more_objects_than_queries(kind: str) -> None:
    shown = scene((9, 2), queries=4, softmax=kind == "softmax")
    losses, expected = losses_of(kind, shown), naive(kind, shown)
    assert losses.terms["class"].tolist() == pytest.approx(expected["class"], rel=1e-4)
    assert losses.terms["l1"].tolist() == pytest.approx(expected["l1"], rel=1e-4)


@both
def test_degenerate_predictions_have_a_finite_gradient(kind: str) -> None:
    shown = scene((3, 1), softmax=kind == "softmax")
    shown.output.boxes[..., 2:] = 0
    shown.targets.boxes[0, 0, 2:] = 0
    shown.output.boxes[:, 0, 0] = shown.targets.boxes[0, 0]
    shown.output.logits.mul_(100).requires_grad_()
    shown.output.boxes.requires_grad_()
    losses_of(kind, shown).total.backward()
    assert shown.output.boxes.grad is not None
    assert shown.output.boxes.grad.isfinite().all()
    assert shown.output.logits.grad is not None
    assert shown.output.logits.grad.isfinite().all()


@given(scenes())
def test_diagnostics_are_those_of_naive_loops(shown: Scene) -> None:
    matches = matched("softmax", shown)
    ours = diagnostics(shown.output, shown.targets, matches, softmax=True)
    top = shown.output.logits[-1].argmax(dim=-1)
    hits = []
    for image, queries in enumerate(matches[-1].tolist()):
        for slot, query in enumerate(queries):
            if query >= 0:
                hits.append(bool(top[image, query] == shown.targets.labels[image, slot]))
    assert ours["class_error"].item() == pytest.approx(100 - 100 * sum(hits) / max(len(hits), 1), abs=1e-3)
    missed = [
        abs(sum(label != shown.classes for label in row) - count)
        for row, count in zip(top.tolist(), shown.targets.counts, strict=True)
    ]
    assert ours["cardinality_error"].item() == pytest.approx(sum(missed) / len(missed))
    assert "cardinality_error" not in diagnostics(shown.output, shown.targets, matches, softmax=False)


def test_without_auxiliary_layers_only_the_last_counts() -> None:
    shown = scene((2, 1), layers=3)
    last = Scene(Output(shown.output.logits[-1:], shown.output.boxes[-1:]), shown.targets, shown.classes)
    alone, all_layers = losses_of("softmax", last), losses_of("softmax", shown)
    for name, values in alone.terms.items():
        torch.testing.assert_close(values, all_layers.terms[name][-1:])
    assert alone.total < all_layers.total
