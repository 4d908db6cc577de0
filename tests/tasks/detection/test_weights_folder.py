"""Folders of Hugging Face: weights, shards, class names, sizes of images, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_trained import CLASSES, CPU, SMALL, model_of

from detr_container.models.weights.hugging_face import to_hugging_face
from detr_container.tasks.detection.build import start_from
from detr_container.tasks.detection.trained import open_trained

OURS = model_of(SMALL, 3).state_dict()


def hub_folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    state = {name: value.contiguous() for name, value in to_hugging_face(OURS).items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "detr", **config}))
    return folder


def test_a_folder_of_hugging_face_with_its_class_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = hub_folder(tmp_path / "hub", id2label={"0": "cat", "2": "zebra"}, encoder_attention_heads=4)
    for path in (folder, folder / "model.safetensors"):
        trained = open_trained(path, CPU)
        assert [category.name for category in trained.classes] == ["cat", "class 1", "zebra"]
        assert trained.experiment.head.heads == 4
    loaded = start_from(model_of(SMALL, 3), SMALL, CLASSES, folder)
    assert (loaded.classes, loaded.fresh) == (("cat", "zebra"), ("dog",))
    assert "4 class rows as its config.json names them" in caplog.text
    (folder / "config.json").write_text(json.dumps({"model_type": "rt_detr"}))
    with pytest.raises(ValueError, match=r"model_type 'rt_detr': .*detr and table-transformer can be loaded"):
        open_trained(folder, CPU)


def test_sizes_of_images_come_from_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Hugging Face's image processors have written them over the years."""
    folder = hub_folder(tmp_path / "hub")
    usual = open_trained(folder, CPU).experiment.data
    assert (usual.resize, usual.eval_size, usual.max_size) == ("shortest", 800, 1333)
    cases: list[tuple[dict[str, Any], tuple[str, int, int]]] = [
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, ("shortest", 480, 640)),
        ({"size": 600, "max_size": 1000}, ("shortest", 600, 1000)),
        ({"size": {"height": 512, "width": 512}}, ("square", 512, 1333)),
        ({"size": {"height": 512, "width": 640}}, ("shortest", 800, 1333)),
        ({"size": {"shortest_edge": "x"}}, ("shortest", 800, 1333)),
    ]
    for values, expected in cases:
        caplog.clear()
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        data = open_trained(folder, CPU).experiment.data
        assert (data.resize, data.eval_size, data.max_size) == expected
        assert ("does not say a size" in caplog.text) == (values in (cases[-1][0], cases[-2][0]))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"_config\.json: image_mean is \[0\.5, 0\.5, 0\.5\], and images are"):
        open_trained(folder, CPU)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 10**9}}))
    with pytest.raises(ValueError, match=r"hub: data\.eval_size=1000000000: it must be"):
        open_trained(folder, CPU)


def test_a_folder_of_another_decoder_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", auxiliary_loss=True)
    with pytest.raises(ValueError, match=r"config\.json: with auxiliary_loss their decoder hands normalised features"):
        open_trained(folder, CPU)


def test_dilation_is_what_a_config_says(tmp_path: Path) -> None:
    """In words, or as the stride of timm's backbone."""
    dilated = replace(SMALL, backbone=replace(SMALL.backbone, name="resnet50", dilation=True))
    state = {name: value.contiguous() for name, value in to_hugging_face(model_of(dilated, 3).state_dict()).items()}
    for number, config in enumerate(({"dilation": True}, {"backbone_config": {"output_stride": 16}}, {})):
        folder = hub_folder(tmp_path / f"hub{number}", **config)
        save_file(state, folder / "model.safetensors")
        assert open_trained(folder, CPU).experiment.backbone.dilation == bool(config)


def test_shards_are_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    state = {name: value.contiguous() for name, value in to_hugging_face(OURS).items()}
    names = list(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    opened = open_trained(folder, CPU).model.state_dict()
    assert all(torch.equal(opened[name], OURS[name]) for name in OURS)
    for wrong, message in (
        ({"weight_map": {"a": "../a.safetensors"}}, r"names no shards beside it"),
        ({"weight_map": {}}, r"names no shards beside it"),
        ({"weight_map": []}, r"index\.json: weight_map=a list: input should be a valid dict"),
        ({"weight_map": {"a": 3}}, r"index\.json: weight_map\.a=3: input should be a valid string"),
        ({}, r"index\.json: weight_map is missing"),
        ([], r"index\.json: the whole=a list"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            open_trained(folder, CPU)


def test_a_config_that_is_not_as_it_was_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in to_hugging_face(OURS).items()}, folder / "model.safetensors")
    for key, value in (
        ("encoder_attention_heads", "8"),
        ("encoder_attention_heads", 0),
        ("id2label", ["cat"]),
        ("id2label", {"one": "cat"}),
        ("id2label", {"9" * 5000: "cat"}),
        ("backbone_config", 3),
        ("dilation", "no"),
    ):
        (folder / "config.json").write_text(json.dumps({"model_type": "detr", key: value}))
        with pytest.raises(ValueError, match=rf"hub/config\.json: {key}.*Download it again") as caught:
            open_trained(folder, CPU)
        assert len(str(caught.value)) < 400
    for text in ("[" * 100_000, "[1]", '{"model_type": NaN', ""):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"hub/config\.json"):
            open_trained(folder, CPU)
