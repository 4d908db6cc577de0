"""Detectors from files: published, Hugging Face's, exported and foreign ones."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import published
from safetensors.torch import save_file
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import DetectionExperiment, HeadConfig
from detr_container.config.experiments import FOCAL
from detr_container.config.settings import to_dict
from detr_container.datasets.annotations import Category
from detr_container.engine.checkpoint import load
from detr_container.models.detector import Detector
from detr_container.models.weights.detectors import fine_tune_from
from detr_container.models.weights.hugging_face import to_hugging_face
from detr_container.models.weights.layouts import to_published
from detr_container.tasks.detection.build import build_detector, start_from
from detr_container.tasks.detection.export import exported
from detr_container.tasks.detection.trained import Trained, guess, open_trained

CPU = torch.device("cpu")
SMALL = DetectionExperiment(
    backbone=BackboneConfig(name="resnet18", weights="none"),
    head=HeadConfig(queries=6, width=32, heads=8, encoder_layers=1, decoder_layers=2, feedforward=48),
)
SMCA = replace(SMALL, head=replace(SMALL.head, kind="smca"), loss=FOCAL)
BARE = replace(SMALL, head=replace(SMALL.head, encoder_layers=0))
BARE_SMCA = replace(SMCA, head=replace(SMCA.head, encoder_layers=0))
CLASSES = (Category(1, "cat"), Category(3, "dog"), Category(7, "zebra"))


def model_of(experiment: DetectionExperiment, classes: int) -> Detector:
    return build_detector(experiment, classes, weights=False).eval()


def saved(path: Path, state: dict[str, Tensor], **entries: object) -> Path:
    torch.save({"model": state, **entries}, path)
    return path


@torch.no_grad()
def outputs(model: Detector) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    output = model(images, torch.tensor([[64, 96], [40, 50]]))
    return output.logits, output.boxes


@pytest.mark.parametrize("name", ["detr_r50", "detr_r50_dc5", "smca_r50_type1", "smca_r50_type4"])
def test_a_published_file_is_taken_for_what_it_is(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    arguments = argparse.Namespace(dilation="dc5" in name, nheads=8, lr=1e-4)
    path = saved(tmp_path / "file.pth", published.weights(name), epoch=49, args=arguments)
    with caplog.at_level(logging.WARNING):
        trained = open_trained(path, CPU)
    assert "does not state what it is" in caplog.text
    ours, expected = trained.experiment, published.experiment(name)
    assert ours.head == replace(expected.head, dropout=ours.head.dropout)
    assert ours.loss == expected.loss
    assert (ours.backbone.name, ours.backbone.dilation) == ("resnet50", "dc5" in name)
    assert not trained.model.training
    names = {category.id: category.name for category in trained.classes}
    assert (names[1], names[18], names[90]) == ("person", "dog", "toothbrush")
    assert len(names) == published.classes(expected)
    golden = published.arrays(name)
    with torch.no_grad():
        output = trained.model(*published.images())
    step = output.boxes.shape[2] // golden["pred_boxes"].shape[1]
    torch.testing.assert_close(output.boxes[-1, :, ::step], golden["pred_boxes"], rtol=0, atol=1e-5)


def test_the_named_experiment_overrules_the_guess(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path / "file.pth", published.weights("detr_r50_dc5"))
    # Without its arguments a file does not show that it was dilated.
    assert not guess(open_trained(path, CPU).model.state_dict()).backbone.dilation
    caplog.clear()
    assert open_trained(path, CPU, "detr_r50_dc5_50e").experiment.backbone.dilation
    assert caplog.text == ""
    with pytest.raises(ValueError, match=r"does not fit smca_r50_50e: .*--experiment"):
        open_trained(path, CPU, "smca_r50_50e")


@pytest.mark.parametrize("change", [{}, {"pre_norm": True, "position": "learned"}, {"queries": 3, "width": 64}])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_every_size_is_guessed_from_the_tensors(backbone: str, change: dict[str, object]) -> None:
    head = replace(SMALL.head, **change)
    experiment = replace(SMALL, head=head, backbone=replace(SMALL.backbone, name=backbone))
    found = guess(model_of(experiment, 91).state_dict())
    assert found.head == replace(head, dropout=found.head.dropout)
    assert found.backbone.name == backbone
    for gaussian in ("type1", "type2", "type3", "type4"):
        smca = replace(SMCA, head=replace(SMCA.head, gaussian=gaussian))
        assert guess(model_of(smca, 92).state_dict()).head.gaussian == gaussian


@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
def test_a_hugging_face_file_opens(tmp_path: Path, form: str) -> None:
    model = model_of(SMALL, 91)
    state = {name: value.contiguous() for name, value in to_hugging_face(model.state_dict()).items()}
    path = tmp_path / form
    save_file(state, path) if form.endswith("safetensors") else torch.save(state, path)
    trained = open_trained(path, CPU)
    assert trained.experiment.head.kind == "detr"
    for ours, theirs in zip(outputs(trained.model), outputs(model), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("experiment", [SMCA, BARE, BARE_SMCA], ids=["smca", "no encoder", "smca, no encoder"])
def test_our_own_checkpoint_opens_with_its_classes(experiment: DetectionExperiment, tmp_path: Path) -> None:
    model = model_of(experiment, 3)
    classes = [[category.id, category.name] for category in CLASSES]
    path = saved(tmp_path / "c.pt", model.state_dict(), experiment=to_dict(experiment), classes=classes, step=12)
    trained = open_trained(path, CPU)
    assert (trained.classes, trained.step, trained.experiment) == (CLASSES, 12, experiment)
    for ours, theirs in zip(outputs(trained.model), outputs(model), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", ["published", "hugging face"])
@pytest.mark.parametrize(
    "experiment", [SMALL, SMCA, BARE, BARE_SMCA], ids=["detr", "smca", "no encoder", "smca, no encoder"]
)
def test_an_exported_model_comes_back(tmp_path: Path, experiment: DetectionExperiment, layout: str) -> None:
    trained = Trained(model_of(experiment, 3), experiment, CLASSES, Path("run"), 0)
    if layout == "hugging face" and experiment.head.kind == "smca":
        with pytest.raises(ValueError, match=r"no smca head on resnet18: .*--layout published"):
            exported(trained, layout)
        return
    again = open_trained(saved(tmp_path / "exported.pth", exported(trained, layout)), CPU)
    logits, boxes = outputs(again.model)
    before, same = outputs(trained.model)
    assert torch.equal(boxes, same)
    ids = [category.id for category in CLASSES]
    # Rows are now those of COCO's ids; the others can never win.
    assert logits.shape[-1] == 9
    torch.testing.assert_close(logits[..., ids], before[..., :3])
    unused = [row for row in range(8) if row not in ids]
    assert (logits[..., unused] == -1e4).all()
    if experiment is SMALL:
        torch.testing.assert_close(logits.softmax(-1)[..., [*ids, 8]], before.softmax(-1))


@pytest.mark.parametrize("name", ["detr_r50", "smca_r50_type2"])
def test_a_published_file_can_be_written_as_it_was(tmp_path: Path, name: str) -> None:
    state = published.weights(name)
    trained = open_trained(saved(tmp_path / "file.pth", state), CPU)
    written = exported(trained, "published")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)


def test_fine_tuning_keeps_the_rows_of_classes_that_both_know(tmp_path: Path) -> None:
    source = model_of(SMALL, 91)
    path = saved(tmp_path / "coco.pth", to_published(source.state_dict()))
    ours = (Category(5, "Zebra"), Category(6, "robot"), Category(9, "person"))
    model = model_of(replace(SMALL, seed=1), 3)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = start_from(model, SMALL, ours, path)
    state, other = model.state_dict(), source.state_dict()
    for name in other:
        if not name.startswith("class_embed."):
            assert torch.equal(state[name], other[name]), name
    for part in ("class_embed.weight", "class_embed.bias"):
        assert torch.equal(state[part][0], other[part][24])
        assert torch.equal(state[part][1], fresh[part][1])
        assert torch.equal(state[part][2], other[part][1])
        assert torch.equal(state[part][3], other[part][91])
    assert loaded.tensors == len(state)
    assert loaded.classes == ("Zebra", "person")
    assert loaded.fresh == ("robot",)
    assert loaded.unused == ()
    assert "class rows kept for 2: Zebra, person" in str(loaded)
    assert "class rows started anew for 1: robot" in str(loaded)


def test_fine_tuning_from_a_run_uses_its_own_class_list(tmp_path: Path) -> None:
    source = model_of(SMCA, 3)
    classes = [[category.id, category.name] for category in CLASSES]
    path = saved(tmp_path / "c.pt", source.state_dict(), experiment=to_dict(SMCA), classes=classes, step=1)
    model = model_of(SMCA, 2)
    loaded = start_from(model, SMCA, (Category(1, "dog"), Category(2, "horse")), path)
    assert (loaded.classes, loaded.fresh) == (("dog",), ("horse",))
    assert torch.equal(model.state_dict()["class_embed.weight"][0], source.state_dict()["class_embed.weight"][1])


def test_a_head_of_unknown_classes_gives_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path / "other.pth", to_published(model_of(SMALL, 20).state_dict()))
    loaded = start_from(model_of(SMALL, 2), SMALL, (Category(1, "person"), Category(2, "dog")), path)
    assert loaded.classes == ()
    assert "has 21 class rows and no class list" in caplog.text


def test_other_shapes_are_refused_with_the_setting_that_fixes_them() -> None:
    state = model_of(SMALL, 3).state_dict()
    names = [category.name for category in CLASSES]
    for change, message in (
        ({"queries": 9}, r"query_embed\.weight is \[6, 32\], not \[9, 32\] \(the file has 6 queries: head\.queries\)"),
        ({"decoder_layers": 3}, r"decoder\.layers\.2\..* is missing.*Make head\.\* and backbone\.\* those"),
        ({"feedforward": 64}, r"linear1\.weight is \[48, 32\], not \[64, 32\]"),
    ):
        model = model_of(replace(SMALL, head=replace(SMALL.head, **change)), 3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            fine_tune_from(model, state, names, names, softmax=True)
        # Nothing was half loaded.
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_without_a_detector_is_refused(tmp_path: Path) -> None:
    classifier = saved(tmp_path / "classifier.pth", {"fc.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="not a detector's weights"):
        open_trained(classifier, CPU)
    nothing = tmp_path / "nothing.pth"
    torch.save({"epoch": 3}, nothing)
    with pytest.raises(ValueError, match="holds no weights"):
        open_trained(nothing, CPU)
    text = tmp_path / "text.pth"
    text.write_text("hello")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        open_trained(text, CPU)
    with pytest.raises(FileNotFoundError, match=r"did you mean classifier\.pth"):
        open_trained(tmp_path / "clasifier.pth", CPU)


def test_published_arguments_are_read_without_running_code(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", {"transformer.x": torch.zeros(1)}, args=argparse.Namespace(nheads=4))
    assert load(path)["args"].nheads == 4
