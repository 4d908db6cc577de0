"""The published code's outputs, losses, matching and detections, from the published code's weights."""

from dataclasses import dataclass

import pytest
import torch
from golden import published
from packed_criterion import pairs_of
from torch import Tensor

from detr_container.config.detection import DetectionExperiment
from detr_container.models.criterion import diagnostics
from detr_container.models.detector import Output
from detr_container.models.postprocess import postprocess
from detr_container.models.weights.layouts import to_published
from detr_container.tasks.detection.build import build_criterion, build_matcher

POST_SIZES = [(480, 640), (400, 560)]


@dataclass
class Case:
    """One published model: its reference arrays, and what ours gives."""

    name: str
    golden: dict[str, Tensor]
    shapes: dict[str, list[int]]
    experiment: DetectionExperiment
    output: Output
    matches: Tensor


@pytest.fixture(scope="module", params=published.DETECTORS)
def case(request: pytest.FixtureRequest) -> Case:
    experiment = published.experiment(request.param)
    model = published.detector(request.param).eval()
    with torch.no_grad():
        output = model(*published.images())
    matches = build_matcher(experiment)(output, published.targets())
    shapes = {name: list(value.shape) for name, value in to_published(model.state_dict()).items()}
    return Case(request.param, published.arrays(request.param), shapes, experiment, output, matches)


def strided(ours: Tensor, golden: Tensor) -> Tensor:
    """The queries that were stored."""
    step = ours.shape[1] // golden.shape[1]
    kept = ours[:, ::step]
    assert kept.shape == golden.shape
    return kept


def suffixes(layers: int) -> list[str]:
    """What the published code appends to the names of each layer's losses; the last layer's have none."""
    return [*(f"_{layer}" for layer in range(layers - 1)), ""]


def test_the_model_has_every_published_tensor_and_no_other(case: Case) -> None:
    assert case.shapes == published.shapes(case.name)


def test_logits_and_boxes(case: Case) -> None:
    for layer, name in ((-1, "pred"), (0, "aux0")):
        boxes = case.golden[f"{name}_boxes"]
        torch.testing.assert_close(strided(case.output.boxes[layer], boxes), boxes, rtol=0, atol=1e-5)
        if f"{name}_logits" in case.golden:
            logits = case.golden[f"{name}_logits"]
            torch.testing.assert_close(strided(case.output.logits[layer], logits), logits, rtol=0, atol=1e-5)


def test_matching(case: Case) -> None:
    counts, last = published.targets().counts, len(case.output.logits) - 1
    pairs = pairs_of(case.matches, published.targets())
    for image, start in enumerate((0, counts[0])):
        of_image = (pairs.layer == last) & (pairs.image == image)
        ours = torch.stack((pairs.query[of_image], pairs.target[of_image] - start))
        assert torch.equal(ours, case.golden[f"match{image}"])


def test_every_loss_term_of_every_layer(case: Case) -> None:
    losses = build_criterion(case.experiment)(case.output, published.targets(), case.matches)
    names = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
    compared = 0
    for ours, theirs in names.items():
        for layer, suffix in enumerate(suffixes(len(case.output.logits))):
            golden = case.golden[f"loss/{theirs}{suffix}"]
            torch.testing.assert_close(losses.terms[ours][layer], golden, rtol=1e-5, atol=1e-6)
            compared += 1
    stored = [key for key in case.golden if key.startswith("loss/loss_")]
    assert compared == len(stored) == 18
    torch.testing.assert_close(losses.total, case.golden["total_loss"], rtol=1e-5, atol=0)


def test_weights_of_the_losses(case: Case) -> None:
    loss = case.experiment.loss
    ours = {"loss_ce": loss.class_weight, "loss_bbox": loss.l1_weight, "loss_giou": loss.giou_weight}
    for suffix in suffixes(len(case.output.logits)):
        assert {name: float(case.golden[f"weight/{name}{suffix}"]) for name in ours} == ours


def test_diagnostics(case: Case) -> None:
    layers = len(case.output.logits)
    for layer, suffix in enumerate(suffixes(layers)):
        upto = Output(case.output.logits[: layer + 1], case.output.boxes[: layer + 1])
        ours = diagnostics(upto, published.targets(), case.matches[: layer + 1], softmax=True)
        assert float(ours["cardinality_error"]) == float(case.golden[f"loss/cardinality_error{suffix}"])
        if layer == layers - 1:
            assert float(ours["class_error"]) == pytest.approx(float(case.golden["loss/class_error"]))


def test_post_processing(case: Case) -> None:
    found = postprocess(case.output, POST_SIZES, case.experiment.loss.classification)
    for image in range(len(POST_SIZES)):
        ours = found.image(image)
        golden = {name: case.golden[f"post{image}/{name}"] for name in ("scores", "labels", "boxes")}
        assert len(ours.scores) == case.experiment.head.queries
        torch.testing.assert_close(ours.scores[:20], golden["scores"], rtol=0, atol=1e-5)
        assert torch.equal(ours.labels[:20], golden["labels"])
        # Boxes in pixels of images up to 640 wide: 1e-5 of a side.
        torch.testing.assert_close(ours.boxes[:20], golden["boxes"], rtol=0, atol=1e-5 * 640)
