"""The CONTAINER family as detection backbones: what is said of dense affinities, and that heads work on every one."""

from dataclasses import replace

import pytest
import torch

from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import FOCAL, named
from detr_container.config.settings import validate
from detr_container.engine.backbones import OWN
from detr_container.engine.classifiers import build_classifier
from detr_container.models.backbones.plain import PLAIN
from detr_container.models.backbones.resnet import DEPTHS
from detr_container.tasks.detection.build import build_detector, check_backbone, longest_side, size_multiple

NEW = [name for name in OWN if name not in DEPTHS and not name.startswith("container_light")]


def small(name: str, side: int = 64, **settings: object) -> DetectionExperiment:
    """A small detector of square images."""
    base = named("debug").experiment
    usual = {"name": name, "weights": "none", "frozen_stages": 0}
    data = replace(base.data, resize="square", scales=(side,), eval_size=side, max_size=1333)
    return replace(base, backbone=replace(base.backbone, **(usual | settings)), data=data)


@pytest.mark.parametrize("name", NEW)
def test_a_head_learns_on_every_one(name: str) -> None:
    experiment = small(name)
    kind = "smca" if NEW.index(name) % 2 else "detr"
    loss = FOCAL if kind == "smca" else experiment.loss
    model = build_detector(replace(experiment, head=replace(experiment.head, kind=kind), loss=loss), 3).train()
    images, sizes = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64], [50, 64]])
    output = model(images, sizes)
    (output.logits.square().mean() + output.boxes.square().mean()).backward()
    trained = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    assert output.boxes.isfinite().all()
    assert trained
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


@pytest.mark.parametrize("name", [name for name in NEW if name in PLAIN])
def test_what_is_said_of_dense_affinities(name: str) -> None:
    own = PLAIN[name].side
    said = check_backbone(small(name, own))
    assert said.startswith(f"{name} takes one size only: all images are padded to {own} x {own} pixels")
    assert f"{PLAIN[name].static(own) / 1e6:.1f} M numbers" in said
    assert size_multiple(small(name, own)) == own
    either = small(name, 8 * own, dense="interpolate")
    assert check_backbone(either).endswith("which are interpolated for each size of image")
    assert size_multiple(either) == PLAIN[name].patch
    assert validate(either) == []


def test_affinities_that_no_machine_would_hold_are_refused_with_the_remedy() -> None:
    experiment = named("detr_r50_50e").experiment
    large = replace(experiment, backbone=replace(experiment.backbone, name="container_pam", weights="none"))
    assert longest_side(large.data) == 1333
    with pytest.raises(ValueError, match=r"1344 x 1344 pixels has 3\.6 billion numbers .* --data\.scales 224 .* inter"):
        check_backbone(large)
    fewer = replace(large.data, resize="square", scales=(224,), eval_size=224)
    assert "224 x 224" in check_backbone(replace(large, data=fewer))
    with pytest.raises(ValueError, match=r"1024 x 1024 pixels has 1\.2 billion numbers .* --data\.size 224, or inter"):
        build_classifier(large.backbone, 10, 1024)


def test_others_have_none_and_take_any_size() -> None:
    for name in NEW:
        if name not in PLAIN:
            assert check_backbone(small(name)) == ""
            assert size_multiple(small(name)) in (1, 16, 32)
            (warning,) = validate(small(name, dense="interpolate"))
            assert warning == f"backbone.dense has no effect on {name}, which has no dense affinities"
