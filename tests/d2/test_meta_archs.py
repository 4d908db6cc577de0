"""DETR and SMCA-DETR as detectron2's models compute what they are here, from detectron2's inputs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_runs import BACKBONE, CLASSES, FOCAL, HEAD
from runs import environment, free_port
from torch import Tensor

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig, LossConfig
from detr_container.d2.meta_archs import DETR, SMCADETR, QueryMetaArch
from detr_container.d2.settings import add_detr_container_config, add_keys
from detr_container.datasets.batch import Sample, collate
from detr_container.datasets.padding import Padding
from detr_container.models.postprocess import postprocess
from detr_container.tasks.detection.build import build_criterion, build_detector, build_matcher

SIZES = ((64, 96), (50, 70))
SHOWN = ((128, 190), (333, 500))
LOSSES = {"DETR": LossConfig(), "SMCADETR": LossConfig(**FOCAL)}
CLASS = {"DETR": DETR, "SMCADETR": SMCADETR}
both = pytest.mark.parametrize("name", list(CLASS))


def experiment(name: str, **backbone: Any) -> DetectionExperiment:
    """Ours."""
    kind = CLASS[name].kind
    settings = BackboneConfig(**{**BACKBONE, **backbone})
    return DetectionExperiment(backbone=settings, head=HeadConfig(kind=kind, **HEAD), loss=LOSSES[name])


def model(name: str, **changed: Any) -> QueryMetaArch:
    """detectron2's, with the same weights whenever it is made."""
    torch.manual_seed(5)
    parts = {"backbone": BackboneConfig(**BACKBONE), "head": HeadConfig(**HEAD), "loss": LOSSES[name]}
    built = CLASS[name](**{**parts, "num_classes": CLASSES, **changed})
    assert isinstance(built, QueryMetaArch)
    return built.eval()


def pictures() -> list[Tensor]:
    """RGB images of two sizes, in which no channel is like another."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    for image in drawn:
        image[2] //= 4
    return drawn


def objects() -> list[tuple[Tensor, Tensor]]:
    """Boxes xyxy in pixels and classes of both images."""
    return [
        (torch.tensor([[5.0, 6.0, 40.0, 60.0], [10.0, 20.0, 90.0, 50.0]]), torch.tensor([0, 5])),
        (torch.tensor([[1.0, 2.0, 30.0, 44.0]]), torch.tensor([3])),
    ]


def given(images: list[Tensor], known: bool = False) -> list[dict[str, Any]]:
    """What detectron2 gives a model; known: with the objects."""
    inputs = []
    for image, (height, width), (boxes, classes) in zip(images, SHOWN, objects(), strict=True):
        inputs.append({"image": image, "height": height, "width": width})
        if known:
            instances = Instances((image.shape[1], image.shape[2]))
            instances.gt_boxes, instances.gt_classes = Boxes(boxes), classes
            inputs[-1]["instances"] = instances
    return inputs


def batch_of_ours(multiple: int) -> Any:
    """The same images and objects as our loader gives them."""
    samples = []
    for image, (boxes, classes), shown in zip(pictures(), objects(), SHOWN, strict=True):
        height, width = image.shape[1:]
        x0, y0, x1, y1 = (boxes / torch.tensor([width, height, width, height])).unbind(1)
        cxcywh = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)
        samples.append(Sample(image, cxcywh, classes, 1, shown))
    return collate(samples, Padding(multiple))


def detected(name: str, built: QueryMetaArch) -> Any:
    """What our detector finds with a model's weights: of both images together, each image's neighbour padding it."""
    detector = build_detector(experiment(name), CLASSES)
    detector.load_state_dict(built.detector.state_dict())
    batch = batch_of_ours(detector.size_multiple)
    with torch.no_grad():
        output = detector.eval()(batch.images, batch.sizes, batch.padded)
    return postprocess(output, batch.original_sizes, LOSSES[name].classification)


@both
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_detections_are_ours(name: str, order: str) -> None:
    built = model(name, input_format=order)
    images = [image if order == "RGB" else image.flip(0) for image in pictures()]
    with torch.no_grad():
        found = [each["instances"] for each in built(given(images))]
    expected = detected(name, built)
    for place, instances in enumerate(found):
        assert instances.image_size == SHOWN[place]
        assert (instances.pred_boxes.tensor - expected.boxes[place]).abs().max() < 1e-3
        assert (instances.scores - expected.scores[place]).abs().max() < 1e-5
        assert torch.equal(instances.pred_classes, expected.labels[place])


@both
def test_another_order_of_channels_is_noticed(name: str) -> None:
    built = model(name, input_format="BGR")
    with torch.no_grad():
        found = [each["instances"] for each in built(given(pictures()))]
    expected = detected(name, built)
    assert max(float((a.scores - b).abs().max()) for a, b in zip(found, expected.scores, strict=True)) > 1e-4


def test_images_are_padded_to_the_backbones_multiple() -> None:
    """Of a patch of 8 pixels, which no side here is a multiple of both times."""
    settings = BackboneConfig(name="container_pam_tiny", weights="none", dense="interpolate", frozen_stages=0)
    built = model("DETR", backbone=settings)
    assert built.detector.size_multiple > 1
    shapes: list[torch.Size] = []
    built.detector.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[-2:]))
    with torch.no_grad():
        built([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8)}])
    multiple = built.detector.size_multiple
    assert shapes == [torch.Size((-(-50 // multiple) * multiple, -(-70 // multiple) * multiple))]


@both
def test_floats_are_taken_for_the_same_pixels(name: str) -> None:
    """As detectron2's DefaultPredictor has them."""
    built, images = model(name), pictures()
    with torch.no_grad():
        whole = built(given(images))[0]["instances"]
        floats = built(given([image.float() for image in images]))[0]["instances"]
    assert torch.equal(whole.scores, floats.scores)


def test_detectron2s_predictor_takes_it() -> None:
    """Which is given BGR images as OpenCV reads them, whatever the model wants."""
    torch.manual_seed(5)
    predictor = DefaultPredictor(yacs("DETR", INPUT__MIN_SIZE_TEST=0))
    image = pictures()[0]
    found = predictor(image.flip(0).permute(1, 2, 0).numpy())["instances"]
    with torch.no_grad():
        expected = predictor.model([{"image": image}])[0]["instances"]
    assert found.image_size == SIZES[0]
    assert torch.equal(found.scores, expected.scores)


def test_without_a_size_boxes_are_of_the_image_itself() -> None:
    built = model("DETR")
    with torch.no_grad():
        found = built([{"image": pictures()[1]}])[0]["instances"]
    assert found.image_size == SIZES[1]


@both
def test_losses_add_up_to_ours(name: str) -> None:
    built = model(name).train()
    losses = built(given(pictures(), known=True))
    assert set(losses) == {"loss_class", "loss_l1", "loss_giou"}
    settings, batch = experiment(name), batch_of_ours(built.detector.size_multiple)
    ours = build_detector(settings, CLASSES)
    ours.load_state_dict(model(name).detector.state_dict())
    output = ours.train()(batch.images, batch.sizes, batch.padded)
    expected = build_criterion(settings)(output, batch.targets, build_matcher(settings)(output, batch.targets))
    assert output.logits.shape[0] == 2, "both layers are supervised"
    torch.testing.assert_close(sum(losses.values()), expected.total)
    for term, weight in (("class", settings.loss.class_weight), ("l1", 5.0), ("giou", 2.0)):
        torch.testing.assert_close(losses[f"loss_{term}"].detach(), weight * expected.terms[term].sum())
    sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in built.parameters() if parameter.requires_grad]
    assert all(gradient is not None for gradient in gradients)


def test_an_image_without_objects_has_losses_too() -> None:
    inputs = given(pictures(), known=True)
    for each in inputs:
        each["instances"] = each["instances"][:0]
    losses = model("DETR").train()(inputs)
    assert losses["loss_l1"].item() == 0
    assert losses["loss_class"].item() > 0


@both
def test_what_is_no_loss_goes_to_the_storage(name: str) -> None:
    with EventStorage() as storage:
        losses = model(name).train()(given(pictures(), known=True))
        written = storage.latest()
    expected = {"class_error", "cardinality_error"} if name == "DETR" else {"class_error"}
    assert set(written) == expected
    assert not set(losses) & expected


def yacs(name: str, **changed: Any) -> CfgNode:
    """Settings of the same model. changed: keys as `INPUT__FORMAT`."""
    cfg = get_cfg()
    add_detr_container_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = name, "cpu"
    node = cfg.MODEL.DETR_CONTAINER
    node.NUM_CLASSES = CLASSES
    loss = FOCAL if name == "SMCADETR" else {}
    for part, settings in (("BACKBONE", BACKBONE), ("HEAD", HEAD), ("LOSS", loss)):
        node[part].merge_from_list([word for key, value in settings.items() for word in (key.upper(), value)])
    for key, value in changed.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@both
def test_yacs_and_lazy_configs_build_the_same(name: str) -> None:
    torch.manual_seed(5)
    from_yacs = build_model(yacs(name))
    parts = {
        "backbone": LazyCall(BackboneConfig)(**BACKBONE),
        "head": LazyCall(HeadConfig)(**HEAD),
        "loss": LazyCall(LossConfig)(**(FOCAL if name == "SMCADETR" else {})),
    }
    torch.manual_seed(5)
    lazy = instantiate(LazyCall(CLASS[name])(**parts, num_classes=CLASSES))
    assert (from_yacs.matcher, from_yacs.criterion) == (lazy.matcher, lazy.criterion)
    a, b = from_yacs.state_dict(), lazy.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    with torch.no_grad():
        one, other = (each.eval()(given(pictures()))[0]["instances"] for each in (from_yacs, lazy))
    assert torch.equal(one.scores, other.scores)


def test_keys_are_the_settings_of_ours() -> None:
    cfg = get_cfg()
    add_keys(cfg)
    node = cfg.MODEL.DETR_CONTAINER
    for part, kind in (("BACKBONE", BackboneConfig), ("HEAD", HeadConfig), ("LOSS", LossConfig)):
        expected = {key.upper(): value for key, value in vars(kind()).items() if key != "kind"}
        assert dict(node[part]) == expected
    assert cfg.INPUT.FORMAT == "BGR", "detectron2's own keys are left alone"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"INPUT__FORMAT": "L"}, "INPUT.FORMAT=L.*RGB or BGR"),
        ({"INPUT__FORMAT": "BGR"}, r"MODEL.PIXEL_MEAN=.*made for \[103.53, 116.28, 123.675\] of BGR"),
        ({"MODEL__PIXEL_STD": [1.0, 1.0, 1.0]}, r"MODEL.PIXEL_STD=.*\[58.395, 57.12, 57.375\] of RGB"),
        ({"MODEL__DETR_CONTAINER__HEAD__WIDTH": 33}, "head.width=33 cannot be shared"),
        ({"MODEL__DETR_CONTAINER__BACKBONE__NAME": "resnet51"}, "no backbone 'resnet51'"),
    ],
)
def test_contradictions_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_model(yacs("DETR", **changed))


def test_bgr_with_its_own_mean_is_fine() -> None:
    mean, std = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
    assert build_model(yacs("DETR", INPUT__FORMAT="BGR", MODEL__PIXEL_MEAN=mean, MODEL__PIXEL_STD=std))


def test_settings_without_our_keys_are_told_so() -> None:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DETR"
    with pytest.raises(ValueError, match=r"call detr_container\.d2\.settings\.add_detr_container_config"):
        build_model(cfg)


def test_a_head_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head\.kind=smca: DETR is detr"):
        model("DETR", head=replace(HeadConfig(**HEAD), kind="smca"))


def test_smca_with_detrs_loss_is_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    """What yacs settings that say no more than SMCADETR would train."""
    model("SMCADETR", loss=LossConfig())
    assert "published with focal loss" in caplog.text
    caplog.clear()
    model("SMCADETR")
    assert caplog.text == ""


def test_inputs_that_do_not_fit_are_refused() -> None:
    built = model("DETR").train()
    with pytest.raises(ValueError, match="without `instances` in training"):
        built(given(pictures()))
    inputs = given(pictures(), known=True)
    inputs[0]["instances"].gt_classes += 3
    with pytest.raises(ValueError, match=f"of class 8, counted from 0, and the model has {CLASSES}"):
        built(inputs)


def test_what_is_not_finite_is_named() -> None:
    built = model("DETR").train()
    with torch.no_grad():
        built.detector.class_embed.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="decoder layer 0 predicts NaN"):
        built(given(pictures(), known=True))


FROZEN = BackboneConfig(**{**BACKBONE, "norm": "frozen"})
# Of two images with 2 and 1 objects: the weight of their targets, 1 for each object and 0.1 for each other query.
CLASS_SHARES = {"global": (2.8 / 4.7, 1.9 / 4.7), "process": (0.5, 0.5)}


def test_several_processes_divide_as_ours_do(tmp_path: Path) -> None:
    """Two processes with an image each: `global` divides by all targets, `process` as the published code does."""
    (tmp_path / "given.json").write_text(json.dumps({"port": str(free_port()), "modes": list(CLASS_SHARES)}))
    script = str(Path(__file__).parent.parent / "detectron2_ranks.py")
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", script, str(tmp_path), str(rank)], env=environment())
        for rank in range(2)
    ]
    try:
        assert [rank.wait(300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    inputs = given(pictures(), known=True)
    for mode, shares in CLASS_SHARES.items():
        alone = model("DETR", backbone=FROZEN).train()
        for one, share, count in zip(inputs, shares, (2, 1), strict=True):
            losses = alone([one])
            (share * losses["loss_class"] + count / 3 * (losses["loss_l1"] + losses["loss_giou"])).backward()
        gradients = {name: parameter.grad for name, parameter in alone.named_parameters() if parameter.requires_grad}
        for rank in range(2):
            found = torch.load(tmp_path / f"{mode}-{rank}.pt", weights_only=True)
            assert set(found) == set(gradients)
            for name, gradient in gradients.items():
                torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


@both
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_losses_and_boxes_are_float32(name: str, kind: torch.dtype) -> None:
    """As detectron2's AMPTrainer calls a model."""
    built = model(name)
    with torch.autocast("cpu", kind):
        losses = built.train()(given(pictures(), known=True))
        with torch.no_grad():
            found = built.eval()(given(pictures()))[0]["instances"]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found.pred_boxes.tensor.dtype == found.scores.dtype == torch.float32
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in built.parameters() if p.requires_grad)
    exact = model(name).train()(given(pictures(), known=True))
    for term, loss in losses.items():
        assert loss.item() == pytest.approx(exact[term].item(), rel=0.05)
