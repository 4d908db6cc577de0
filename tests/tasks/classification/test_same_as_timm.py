"""timm's weights from a file give here what they give on timm's own validation path: the same logits and top-1."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from golden import pattern
from PIL import Image
from runs import one_thread
from safetensors.torch import save_file
from timm.data import ImageDataset, create_transform, resolve_data_config
from torch import Tensor

from detr_container.commands import cli
from detr_container.datasets.folders import open_folder
from detr_container.tasks.classification.build import evaluation_images
from detr_container.tasks.classification.class_names import imagenet_ids
from detr_container.tasks.classification.mixing import Normalisation
from detr_container.tasks.classification.predictions import NAME, Predictions
from detr_container.tasks.classification.trained import Asked, open_trained

NAMES = ("test_resnet", "test_vit")
CLASSES = ("Platelets", "RBC", "WBC")


@pytest.fixture(params=NAMES)
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, torch.nn.Module, Path]:
    """A timm model of random weights and statistics, and where a file of them is to be."""
    torch.manual_seed(1)
    model = timm.create_model(request.param, num_classes=len(CLASSES)).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(std=0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    # Far apart, so that no rounding decides which class is the most probable.
    model.get_classifier().weight.data.normal_(std=1.0)
    return request.param, model, tmp_path / "model.safetensors"


def drawn(root: Path) -> Path:
    """Images of many shapes and of both usual formats, larger and smaller than the input, in colour and grey."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number, (height, width) in enumerate(((61, 90), (180, 161), (300, 120), (24, 200), (160, 160))):
            pixels = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            image = image.convert("L") if number == label else image
            image.save(root / name / f"{number}{'.png' if number % 2 else '.jpg'}", quality=95)
    return root


@torch.inference_mode()
def of_timm(model: torch.nn.Module, folder: Path) -> tuple[Tensor, Tensor]:
    """Logits and labels of every image, as timm validates."""
    config = resolve_data_config({}, model=model, use_test_size=True)
    images = ImageDataset(str(folder), transform=create_transform(**config, is_training=False))
    rows = [images[index] for index in range(len(images))]
    return model(torch.stack([image for image, _ in rows])), torch.tensor([label for _, label in rows])


@torch.inference_mode()
def ours(name: str, path: Path, folder: Path) -> tuple[Tensor, Tensor]:
    trained = open_trained(str(path), torch.device("cpu"), Asked(backbone=f"timm/{name}"))
    images = evaluation_images(open_folder(folder), trained.experiment)
    batch = images.joining(None)([images[0, index] for index in range(len(images))])
    model = trained.model
    return model(Normalisation(model.mean, model.std, model.memory_format)(batch.images)), batch.labels


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def compared(weights: tuple[str, torch.nn.Module, Path], folder: Path, out: Path) -> None:
    """The same logits, and by `evaluate` the same top-1, image by image."""
    name, model, path = weights
    # So that each class is the most probable one of some images.
    model.get_classifier().bias.data -= of_timm(model, folder)[0].mean(dim=0)
    save_file(model.state_dict(), path)
    expected, labels = of_timm(model, folder)
    found, own = ours(name, path, folder)
    assert torch.equal(own, labels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    line = ["evaluate", path, "--backbone", f"timm/{name}", "--images", folder, "--output", out, "--device", "cpu"]
    assert cli.main([str(word) for word in (*line, "--workers", 0)]) == 0
    predicted = Predictions.read(out / NAME)
    np.testing.assert_array_equal(predicted.classes[:, 0], expected.argmax(dim=1).numpy())
    np.testing.assert_array_equal(predicted.top(1), (expected.argmax(dim=1) == labels).numpy())
    probabilities = expected.softmax(dim=1).sort(dim=1, descending=True).values.numpy()
    np.testing.assert_allclose(predicted.probabilities, probabilities, atol=1e-5)
    assert len(set(predicted.classes[:, 0].tolist())) > 1


def test_on_images_of_many_shapes(weights: tuple[str, torch.nn.Module, Path], tmp_path: Path) -> None:
    compared(weights, drawn(tmp_path / "images"), tmp_path / "out")


def test_a_classifier_of_a_name_of_its_own(tmp_path: Path) -> None:
    """Of a network that is named, timm says what its linear layer is called: here `head.linear`."""
    torch.manual_seed(0)
    model = timm.create_model("efficientvit_m0", num_classes=len(CLASSES)).eval()
    model.get_classifier().weight.data.normal_(std=1.0)
    path, folder = tmp_path / "model.safetensors", drawn(tmp_path / "images")
    save_file(model.state_dict(), path)
    torch.testing.assert_close(
        ours("efficientvit_m0", path, folder)[0], of_timm(model, folder)[0], atol=1e-5, rtol=1e-5
    )


def test_a_network_that_timm_evaluates_on_whole_images_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"stem.weight": torch.ones(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors holds no classifier"):
        open_trained(str(tmp_path / "weights.safetensors"), torch.device("cpu"), Asked(backbone="timm/efficientnet_b5"))
    assert "timm/efficientnet_b5: timm evaluates it on whole images (crop_mode=squash)" in caplog.text


@pytest.mark.shared
def test_on_blood_cells(weights: tuple[str, torch.nn.Module, Path], shared_data: Path, tmp_path: Path) -> None:
    compared(weights, shared_data / "cells_imagefolder" / "val", tmp_path / "out")


def test_weights_by_name_are_those_that_timm_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where timm's downloads lie, without a network: the classes of ImageNet, by their folders."""
    name, ids = "test_resnet", imagenet_ids()
    model = timm.create_model(name).eval()
    model.load_state_dict(pattern.fill(model.state_dict()))
    place = tmp_path / "hub" / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    for folder in ("refs", f"snapshots/{40 * 'a'}"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text(40 * "a")
    save_file(model.state_dict(), place / "snapshots" / (40 * "a") / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "images"
    for old, new in zip(sorted(drawn(folder).iterdir()), (ids[5], ids[700], ids[999]), strict=True):
        old.rename(folder / new)
    line = ["evaluate", f"timm/{name}", "--images", folder, "--output", tmp_path / "out", "--device", "cpu"]
    assert cli.main([str(word) for word in (*line, "--workers", 0)]) == 0
    found = Predictions.read(tmp_path / "out" / NAME)
    expected, labels = of_timm(model, folder)
    assert found.labels.tolist() == [(5, 700, 999)[label] for label in labels]
    chances = expected.softmax(dim=1)
    np.testing.assert_array_equal(found.classes, chances.argsort(dim=1, descending=True)[:, :5].numpy())
    true = chances[torch.arange(len(labels)), torch.from_numpy(found.labels)]
    np.testing.assert_allclose(found.true_probability, true.numpy(), rtol=1e-4)
