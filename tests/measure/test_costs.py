"""Costs without running: the same as of a real forward pass, the published numbers, and means over images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import tiny
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_container.config.classification import ClassificationExperiment
from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named
from detr_container.datasets.annotations import read_annotations
from detr_container.engine.classifiers import build_classifier
from detr_container.engine.trials import trials_of
from detr_container.measure import costs as module
from detr_container.measure.costs import Gflops, costs, count_parameters, padded_size
from detr_container.models.detector import Detector
from detr_container.tasks.detection.build import build_detector
from detr_container.tasks.detection.evaluate import open_validation
from detr_container.tasks.detection.largest import validation_sizes


def on_backbone(name: str, head: str) -> DetectionExperiment:
    """A small head on any backbone, as it comes."""
    debug = named("debug").experiment
    backbone = replace(debug.backbone, name=name, norm="frozen")
    return replace(debug, backbone=backbone, head=replace(debug.head, kind=head))


def count_flops(model: Detector, size: tuple[int, int]) -> Gflops:
    """Those of an image that is padded to what the model wants."""
    inputs = trials_of(named("debug").experiment).inputs
    return module.count_flops(model, padded_size(size, model.backbone.size_multiple), inputs)


def really(call: Callable[[], object]) -> int:
    """FLOPs of what is computed in a call."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("resnet18", "detr"),
        ("container_light_small", "smca"),
        ("container_light_tiny", "detr"),
        ("timm/convnext_atto", "smca"),
    ],
)
def test_nothing_is_computed_and_all_is_counted(backbone: str, head: str) -> None:
    model = build_detector(on_backbone(backbone, head), 3, weights=False).eval()
    multiple = model.backbone.size_multiple
    height, width = (-(-side // multiple) * multiple for side in (50, 77))
    image, size = torch.zeros(1, 3, height, width), torch.tensor([[height, width]])
    total, part = really(lambda: model(image, size)), really(lambda: model.backbone(image))
    assert count_flops(model, (50, 77)) == Gflops(total / 1e9, part / 1e9, (total - part) / 1e9)
    assert 0 < part < total


def test_a_image_far_too_large_to_compute() -> None:
    """The attention over its positions alone would take 34 GB."""
    experiment = named("debug").experiment
    positions, width = (4096 // 16) ** 2, experiment.head.width
    assert count_flops(build_detector(experiment, 3), (4096, 4096)).head > 2 * 2 * positions**2 * width / 1e9


def test_a_model_that_reads_values_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_detector(named("debug").experiment, 3)
    expected, forward = count_flops(model, (64, 64)), model.backbone.forward

    def reads(images: Tensor) -> list[Tensor]:
        return forward(images if images.sum() < 1 else images[:0])

    monkeypatch.setattr(model.backbone, "forward", reads)
    assert count_flops(model, (64, 64)) == expected


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_a_model_as_it_was(training: bool) -> None:
    model = build_detector(tiny(Path("data"), backbone__norm="batch"), 3).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model, (64, 64))
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_flops_are_those_of_the_layers() -> None:
    """Of a ResNet-50 they are 4.09 billion multiply-adds at 224 pixels without its classifier (He et al. 2016)."""
    experiment = named("detr_r50_50e").experiment
    full = costs(experiment, 3, [(224, 224)])
    small = replace(experiment.head, encoder_layers=1, decoder_layers=1)
    less = costs(replace(experiment, head=small), 3, [(224, 224)])
    positions, width, queries, hidden = 49, 256, 100, 2048
    encoder = positions * (4 * width**2 + 2 * positions * width + 2 * width * hidden)
    decoder = queries * (4 * width**2 + 2 * queries * width + 2 * width * hidden)
    decoder += queries * (2 * width**2 + 2 * positions * width) + positions * 2 * width**2
    # Every layer but one more of each, and the heads are applied to every decoder layer.
    heads = queries * (width * 4 + 2 * width**2 + width * 4)
    assert full.gflops.head - less.gflops.head == pytest.approx(2 * 5 * (encoder + decoder + heads) / 1e9, rel=1e-6)
    assert less.gflops.head == pytest.approx(2 * (encoder + decoder + heads + positions * 2048 * width) / 1e9, rel=1e-6)
    assert full.gflops.backbone == less.gflops.backbone == pytest.approx(2 * 4.09, rel=0.002)
    assert full.gflops.total == full.gflops.backbone + full.gflops.head


def test_flops_of_container_light() -> None:
    """3.85 billion multiply-adds at 224 pixels; its paper rounds to 3.8 (Gao et al. 2021, table 1)."""
    experiment = named("detr_container_light_50e").experiment
    assert costs(experiment, 3, [(224, 224)]).gflops.backbone == pytest.approx(2 * 3.85, rel=0.002)


def test_the_mean_is_over_images_and_each_size_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = named("debug").experiment
    model = build_detector(experiment, 3)
    small, large = count_flops(model, (64, 64)), count_flops(model, (96, 128))
    seen = []
    count = module.count_flops
    monkeypatch.setattr(
        module, "count_flops", lambda model, size, inputs: (seen.append(size), count(model, size, inputs))[1]
    )
    found = costs(experiment, 3, [(64, 64), (90, 120), (49, 60)])
    assert seen == [(64, 64), (96, 128)]
    for part in ("total", "backbone", "head"):
        mean = (2 * getattr(small, part) + getattr(large, part)) / 3
        assert getattr(found.gflops, part) == pytest.approx(mean, rel=1e-12)


def test_parameters_by_part() -> None:
    debug = named("debug").experiment
    model = build_detector(replace(debug, backbone=replace(debug.backbone, frozen_stages=1)), 3)
    counts = count_parameters(model)
    stages = model.backbone.count_parameters()
    assert counts.total == sum(value.numel() for value in dict(model.named_parameters()).values())
    assert counts.backbone == sum(trained + frozen for _, trained, frozen in stages)
    assert counts.total - counts.trained == sum(frozen for _, _, frozen in stages) > 0
    assert counts.head == counts.total - counts.backbone
    assert costs(debug, 7, [(64, 64)]).parameters.head == counts.head + 4 * (debug.head.width + 1)


def test_no_sizes() -> None:
    with pytest.raises(ValueError, match=r"no image sizes are given.*name one"):
        costs(named("debug").experiment, 3, [])


def test_validation_sizes_are_what_evaluation_sees(tmp_path: Path) -> None:
    """The first hundred by id, resized: the published rounding passes the limit of 1333 by a little."""
    disk = {9: (480, 640), 3: (640, 480), 5: (200, 1000), **{20 + k: (300, 300 + k) for k in range(110)}}
    images = [{"id": n, "file_name": f"{n}.jpg", "height": h, "width": w} for n, (h, w) in disk.items()]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    base = named("detr_r50_50e").experiment
    data = replace(base.data, val_images=tmp_path, val_annotations=path)
    annotations = read_annotations(path, tmp_path)
    sizes = validation_sizes(replace(base, data=data), annotations)
    assert sizes[:4] == [(1066, 800), (267, 1335), (800, 1066), (800, 800)]
    dataset = open_validation(replace(base, data=data))
    assert sizes == [dataset.plan((0, index)).size for index in range(100)]
    assert len(validation_sizes(base, annotations, 1000)) == 113
    canvas = replace(base, data=replace(data, canvas=1408))
    assert validation_sizes(canvas, annotations, 2) == [(1408, 1408), (1408, 1408)]


def test_a_backbone_whose_parts_are_called_is_counted_apart() -> None:
    """A classifier reads the last tokens of a network without stages, not its maps: its linear layer is the rest."""
    base = named("classify_demo").experiment
    assert isinstance(base, ClassificationExperiment)
    experiment = replace(base, backbone=replace(base.backbone, name="mh_mlp_tiny"), data=replace(base.data, size=32))
    found = costs(experiment, 7, [(32, 32)])
    model = build_classifier(experiment.backbone, 7, 32, weights=False)
    width = model.features(torch.zeros(1, 3, 32, 32)).shape[1]
    assert found.gflops.head == pytest.approx(2 * width * 7 / 1e9)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(1, 3, 32, 32))
    assert found.gflops.total == pytest.approx(counter.get_total_flops() / 1e9)
