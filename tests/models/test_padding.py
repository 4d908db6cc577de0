"""Padding, precision, and every shape that a setting can ask for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig
from detr_container.config.experiments import FOCAL
from detr_container.datasets.batch import Targets
from detr_container.models.detector import Detector
from detr_container.tasks.detection.build import build_criterion, build_detector, build_matcher

TINY = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=0)
RESNET = BackboneConfig(name="resnet18", weights="none")
DETR = HeadConfig(queries=7, width=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=48, dropout=0.0)
HEADS = {
    "detr": DetectionExperiment(head=DETR),
    "detr pre-norm": DetectionExperiment(head=replace(DETR, pre_norm=True)),
    "detr learned": DetectionExperiment(head=replace(DETR, position="learned")),
    "smca": DetectionExperiment(head=replace(DETR, kind="smca"), loss=FOCAL),
    "smca type4": DetectionExperiment(head=replace(DETR, kind="smca", gaussian="type4"), loss=FOCAL),
}
BOXES = torch.tensor([[0.5, 0.5, 0.3, 0.4]] * 3)
TARGETS = Targets.of_images(torch.tensor([0, 2, 1]).split((2, 1)), BOXES.split((2, 1)))


def built(experiment: DetectionExperiment) -> Detector:
    return build_detector(experiment, 3, weights=False)


def padded_images(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """uint8 images in one batch, padded to its largest sides, to multiples of 32 pixels."""
    height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randint(256, (3, h, w))
    return images, torch.tensor(sizes)


@pytest.mark.parametrize("backbone", [RESNET, TINY], ids=["resnet18", "container"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_image_does_not_see_its_neighbours(head: str, backbone: BackboneConfig) -> None:
    model = built(replace(HEADS[head], backbone=backbone)).eval()
    images, sizes = padded_images((96, 128), (70, 101), (33, 64))
    together = model(images, sizes)
    for index in range(3):
        alone = model(images[index : index + 1], sizes[index : index + 1])
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_what_lies_on_padding_is_never_seen(head: str) -> None:
    model = built(replace(HEADS[head], backbone=TINY)).eval()
    images, sizes = padded_images((96, 128), (70, 101))
    clean = model(images, sizes)
    images[1, :, 70:] = 255
    images[1, :, :, 101:] = 7
    dirty = model(images, sizes)
    assert torch.equal(clean.logits, dirty.logits)
    assert torch.equal(clean.boxes, dirty.boxes)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_without_padding_the_mask_can_be_left_out(head: str) -> None:
    model = built(replace(HEADS[head], backbone=TINY)).eval()
    images, sizes = padded_images((64, 96), (64, 96))
    with_mask, without = model(images, sizes), model(images, sizes, padded=False)
    torch.testing.assert_close(with_mask.logits, without.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_mask.boxes, without.boxes, rtol=0, atol=1e-5)


@torch.no_grad()
def test_uint8_is_normalised_as_the_backbone_wants_it() -> None:
    model = built(DetectionExperiment(head=DETR, backbone=TINY))
    images, sizes = padded_images((32, 64), (20, 33))
    ours = model.normalise(images, sizes, padded=True)
    mean, std = (torch.tensor(each)[:, None, None] for each in (model.backbone.mean, model.backbone.std))
    expected = torch.zeros(2, 3, 32, 64)
    for image, raw, (height, width) in zip(expected, images, sizes.tolist(), strict=True):
        image[:, :height, :width] = ((raw / 255 - mean) / std)[:, :height, :width]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    floats = torch.randn(2, 3, 32, 64)
    assert model.normalise(floats, sizes, padded=True) is floats


@pytest.mark.parametrize(
    ("backbone", "change", "stride"),
    [
        (BackboneConfig(name="resnet50", weights="none", dilation=True), {}, 16),
        (replace(RESNET, stage=-2), {"kind": "smca"}, 16),
        (replace(RESNET, stage=-3, frozen_stages=1), {}, 8),
        (TINY, {"kind": "smca", "width": 24, "heads": 3, "queries": 150}, 16),
        (TINY, {"width": 64, "heads": 1, "encoder_layers": 0, "decoder_layers": 1}, 16),
        (replace(TINY, norm="batch"), {"kind": "smca", "gaussian": "type1", "encoder_layers": 3}, 16),
        (BackboneConfig(name="timm/test_resnet", weights="none"), {"kind": "smca"}, 32),
    ],
)
def test_other_shapes_train(backbone: BackboneConfig, change: dict[str, object], stride: int) -> None:
    head = replace(DETR, **change)
    experiment = DetectionExperiment(
        backbone=backbone, head=head, loss=FOCAL if head.kind == "smca" else DetectionExperiment().loss
    )
    model = built(experiment).train()
    assert model.backbone.strides[-1] == stride
    images, sizes = padded_images((64, 96), (50, 64))
    output = model(images, sizes)
    classes = 3 + int(experiment.loss.classification == "softmax")
    assert output.logits.shape == (head.decoder_layers, 2, head.queries, classes)
    assert output.boxes.shape == (head.decoder_layers, 2, head.queries, 4)
    matches = build_matcher(experiment)(output, TARGETS)
    build_criterion(experiment)(output, TARGETS, matches).total.backward()
    untrained = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("backbone", [RESNET, TINY], ids=["resnet18", "container"])
@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_gives_float32_boxes_and_finite_losses(head: str, backbone: BackboneConfig) -> None:
    experiment = replace(HEADS[head], backbone=backbone)
    model = built(experiment).train()
    images, sizes = padded_images((64, 96), (50, 64))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, sizes)
    exact = model(images, sizes)
    assert output.logits.dtype == output.boxes.dtype == torch.float32
    # Boxes that went through bfloat16 would all be multiples of 2**-9 or coarser.
    assert ((output.boxes * 512) % 1 != 0).float().mean() > 0.9
    assert (output.boxes - exact.boxes).abs().max() < 0.1
    losses = build_criterion(experiment)(output, TARGETS, build_matcher(experiment)(output, TARGETS))
    assert losses.total.isfinite()
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


def test_the_head_starts_the_same_over_every_backbone() -> None:
    first, second = (built(replace(HEADS["smca"], backbone=backbone)).state_dict() for backbone in (RESNET, TINY))
    shared = [name for name in first if not name.startswith(("backbone.", "input_proj."))]
    assert len(shared) > 40
    assert all(torch.equal(first[name], second[name]) for name in shared)
