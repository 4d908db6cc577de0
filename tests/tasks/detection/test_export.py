"""Exports: what a layout cannot say is refused, and what is written opens as the same model, in transformers too."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import pattern
from test_trained import CLASSES, CPU, SMALL, SMCA, model_of, outputs
from torch import Tensor

from detr_container.commands import cli
from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import FOCAL
from detr_container.config.settings import to_dict
from detr_container.tasks.detection.export import write_export
from detr_container.tasks.detection.trained import Trained, open_trained

DC5 = replace(SMALL, backbone=replace(SMALL.backbone, name="resnet50", dilation=True))
ODD = replace(SMALL, head=replace(SMALL.head, heads=4, position="learned"))
DEEP = replace(SMALL, backbone=replace(SMALL.backbone, name="resnet50"), head=replace(SMALL.head, encoder_layers=0))
BASIC = {
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "out_features": ["stage4"],
}
PLAIN = {int, float, bool}
SIZED = replace(SMALL, data=replace(SMALL.data, eval_size=96, max_size=160))


def trained(experiment: DetectionExperiment, **facts: Any) -> Trained:
    """A model whose queries differ."""
    model = model_of(experiment, 3)
    model.load_state_dict(pattern.fill(model.state_dict()))
    return Trained(model, experiment, CLASSES, Path("run"), 0, **facts)


def padded() -> tuple[Tensor, Tensor, Tensor]:
    """Two images in one batch, their sizes, and the same as a mask of pixels."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 64, 96, dtype=torch.int64)
    mask[0], mask[1, :40, :50] = 1, 1
    return images * mask[:, None], torch.tensor([[64, 96], [40, 50]]), mask


@pytest.mark.parametrize("layout", ["hugging-face", "hugging-face-folder"])
@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (SMCA, "has no smca head on resnet18"),
        (replace(SMALL, loss=FOCAL), r"only a DETR with softmax classes \(here focal\)"),
        (replace(SMALL, backbone=replace(SMALL.backbone, name="container_light_tiny")), "on container_light_tiny"),
        (DC5, r"backbone\.dilation=True cannot be exported .*\(DC5\)"),
        (replace(SMALL, head=replace(SMALL.head, pre_norm=True)), r"head\.pre_norm=True cannot be exported"),
        (replace(SMALL, backbone=replace(SMALL.backbone, stage=-2)), r"backbone\.stage=-2 cannot be exported"),
        (replace(SMALL, backbone=replace(SMALL.backbone, stride=16)), r"backbone\.stride=16 cannot be exported"),
    ],
)
def test_what_no_folder_says_is_refused(
    experiment: DetectionExperiment, message: str, layout: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"{message}.*--layout published") as caught:
        write_export(Trained(model_of(experiment, 3), experiment, CLASSES, Path("run"), 0), target, layout, "id")
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 4}, r"head\.heads=4 .*mean 8"), ({"position": "learned"}, r"head\.position=learned .*mean sine")],
)
def test_what_only_a_config_says_is_refused_of_a_file(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = trained(replace(SMALL, head=replace(SMALL.head, **change)))
    with pytest.raises(ValueError, match=rf"{message} \(--layout hugging-face-folder does\)"):
        write_export(model, tmp_path / "out.bin", "hugging-face", "id")
    write_export(model, tmp_path / "folder", "hugging-face-folder", "id")


@pytest.mark.parametrize("rows", ["id", "order"])
@pytest.mark.parametrize(
    "experiment", [SMALL, ODD, DEEP, SIZED], ids=["usual", "heads and positions", "no encoder", "sizes"]
)
def test_a_folder_opens_here_as_the_same_model(experiment: DetectionExperiment, rows: Any, tmp_path: Path) -> None:
    before = trained(experiment)
    assert write_export(before, tmp_path / "hub", "hugging-face-folder", rows) > 60
    again = open_trained(tmp_path / "hub", CPU)
    assert again.experiment.head == replace(experiment.head, dropout=again.experiment.head.dropout)
    for name in ("eval_size", "max_size", "resize"):
        assert getattr(again.experiment.data, name) == getattr(experiment.data, name)
    (logits, boxes), (expected, same) = outputs(again.model), outputs(before.model)
    assert torch.equal(boxes, same)
    if rows == "order":
        assert torch.equal(logits, expected)
        assert [category.name for category in again.classes] == ["cat", "dog", "zebra"]
        return
    assert [(c.id, c.name) for c in again.classes if "unused" not in c.name] == [(c.id, c.name) for c in CLASSES]
    torch.testing.assert_close(logits[..., [1, 3, 7, 8]], expected)
    # And once more, as a file without a class list is exported.
    write_export(again, tmp_path / "copy", "hugging-face-folder", rows)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "hub" / name).read_bytes()


@pytest.mark.parametrize(
    "experiment", [SMALL, ODD, DEEP, SIZED], ids=["usual", "heads and positions", "no encoder", "sizes"]
)
def test_transformers_opens_a_folder_as_the_same_model(experiment: DetectionExperiment, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    before = trained(experiment)
    write_export(before, tmp_path, "hugging-face-folder", "id")
    other, loading = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), (
        loading
    )
    images, sizes, mask = padded()
    with torch.no_grad():
        output, expected = before.model(images, sizes), other.eval()(pixel_values=images, pixel_mask=mask)
    torch.testing.assert_close(expected.logits[..., [1, 3, 7, 8]], output.logits[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expected.pred_boxes, output.boxes[-1], rtol=0, atol=1e-5)
    assert output.logits[-1].std(dim=1).mean() > 0.01
    assert [other.config.id2label[row] for row in (1, 3, 7)] == ["cat", "dog", "zebra"]
    assert other.config.label2id["zebra"] == 7
    size = transformers.AutoImageProcessor.from_pretrained(tmp_path).size
    assert (size["shortest_edge"], size["longest_edge"]) == (experiment.data.eval_size, experiment.data.max_size)


@pytest.mark.parametrize("kind", ["Detr", "TableTransformer"])
@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "resnet18", "position_embedding_type": "learned"},
        {"backbone": "resnet50", "dilation": True},
        {"use_timm_backbone": False, "backbone": None, "backbone_config": BASIC},
    ],
    ids=["learned positions", "DC5", "own ResNet"],
)
def test_folders_that_transformers_saves_open_here(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """DETR has the norm last, Table Transformer first; a backbone is timm's, or their own."""
    transformers = pytest.importorskip("transformers")
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"num_queries": 6, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_labels": 3}
    if isinstance(own := settings.get("backbone_config"), dict):
        settings = settings | {"backbone_config": transformers.ResNetConfig(**own)}
    config = getattr(transformers, f"{kind}Config")(**sizes, **settings, use_pretrained_backbone=False)
    other = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    other.load_state_dict(pattern.fill(other.state_dict()))
    with torch.no_grad():
        other.model.query_position_embeddings.weight.normal_(generator=torch.Generator().manual_seed(1))
    other.save_pretrained(tmp_path)
    ours = open_trained(tmp_path, CPU)
    assert ours.experiment.head.pre_norm == (kind == "TableTransformer")
    assert ours.experiment.backbone.dilation == ("dilation" in settings)
    images, sizes_of, mask = padded()
    with torch.no_grad():
        output, expected = ours.model(images, sizes_of), other(pixel_values=images, pixel_mask=mask)
    torch.testing.assert_close(output.logits[-1], expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-5)
    assert expected.logits.std(dim=1).mean() > 0.01


@pytest.mark.parametrize("layout", ["published", "hugging-face"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_is_what_its_name_says(name: str, layout: Any, tmp_path: Path) -> None:
    before = trained(SMALL)
    write_export(before, tmp_path / name, layout, "order")
    for ours, theirs in zip(outputs(open_trained(tmp_path / name, CPU).model), outputs(before.model), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "experiment",
    [
        replace(SMALL, head=replace(SMALL.head, heads=4)),
        replace(SMCA, head=replace(SMCA.head, heads=2, smooth=3.0)),
        DC5,
    ],
    ids=["heads", "smca", "DC5"],
)
def test_what_no_tensor_shows_stands_beside_published_weights(experiment: DetectionExperiment, tmp_path: Path) -> None:
    before = trained(experiment)
    write_export(before, tmp_path / "file.pth", "published", "order")
    assert {type(value) for value in torch.load(tmp_path / "file.pth", weights_only=True)["args"].values()} <= PLAIN
    for ours, theirs in zip(
        outputs(open_trained(tmp_path / "file.pth", CPU).model), outputs(before.model), strict=True
    ):
        torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs)
    with pytest.raises(ValueError, match=r"file\.safetensors: a file of safetensors holds weights alone.*in \.pth"):
        write_export(before, tmp_path / "file.safetensors", "published", "order")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(SMALL)))
    with pytest.raises(ValueError, match=r"run holds other things: name a new folder"):
        write_export(trained(SMALL), run, "hugging-face-folder", "id")
    assert [path.name for path in run.iterdir()] == ["config.json"]
    for _ in range(2):
        write_export(trained(SMALL), tmp_path / "hub", "hugging-face-folder", "id")
    # As Hugging Face keeps what it has downloaded: every file is a link to where all that use it look.
    blob = tmp_path / "blob"
    (tmp_path / "hub" / "model.safetensors").rename(blob)
    (tmp_path / "hub" / "model.safetensors").symlink_to(blob)
    kept = blob.read_bytes()
    with pytest.raises(OSError, match=r"model\.safetensors is a symbolic link"):
        write_export(trained(replace(SMALL, seed=1)), tmp_path / "hub", "hugging-face-folder", "id")
    assert blob.read_bytes() == kept


def test_class_names_that_were_given_are_exported(tmp_path: Path) -> None:
    """Of a file without a class list, whose rows stay where they are."""
    before = trained(SMALL)
    write_export(before, tmp_path / "file.pth", "published", "order")
    listed = tmp_path / "annotations.json"
    listed.write_text(json.dumps({"categories": [{"id": c.id, "name": c.name} for c in CLASSES]}))
    named = open_trained(tmp_path / "file.pth", CPU, classes=listed)
    write_export(named, tmp_path / "hub", "hugging-face-folder", "id")
    again = open_trained(tmp_path / "hub", CPU)
    assert [category.name for category in again.classes] == ["cat", "dog", "zebra"]
    assert torch.equal(outputs(again.model)[0], outputs(before.model)[0])


def test_the_command_replaces_no_file_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "detector.pth", tmp_path / "again.pth"
    write_export(trained(SMALL), source, "published", "order")
    content = source.read_bytes()
    target.symlink_to(source)
    for name in (source, target):
        assert cli.main(["export", str(source), str(name)]) == 2
        assert "choose another name" in capsys.readouterr().err
    assert source.read_bytes() == content
    target.unlink()
    assert cli.main(["export", str(source), str(target), "--rows", "order"]) == 0
    assert torch.load(target, weights_only=True).keys() == {"model", "args"}
