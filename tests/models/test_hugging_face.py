"""Hugging Face's DETR: the same weights give the same outputs, both ways."""

import pytest
import torch
from golden import pattern
from torch import Tensor

from detr_container.models.backbones.resnet import ResNetBackbone
from detr_container.models.detr import Detr
from detr_container.models.weights.hugging_face import from_hugging_face, to_hugging_face

transformers = pytest.importorskip("transformers")

SETTINGS = {"queries": 9, "width": 64, "heads": 4, "encoder_layers": 2, "decoder_layers": 3, "feedforward": 96}


def theirs(name: str, position: str = "sine") -> torch.nn.Module:
    """A small DETR of theirs."""
    deep = name == "resnet50"
    backbone = transformers.ResNetConfig(
        layer_type="bottleneck" if deep else "basic",
        depths=[3, 4, 6, 3] if deep else [2, 2, 2, 2],
        hidden_sizes=[256, 512, 1024, 2048] if deep else [64, 128, 256, 512],
        out_features=["stage4"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=backbone,
        use_pretrained_backbone=False,
        num_labels=5,
        num_queries=SETTINGS["queries"],
        d_model=SETTINGS["width"],
        encoder_layers=SETTINGS["encoder_layers"],
        decoder_layers=SETTINGS["decoder_layers"],
        encoder_attention_heads=SETTINGS["heads"],
        decoder_attention_heads=SETTINGS["heads"],
        encoder_ffn_dim=SETTINGS["feedforward"],
        decoder_ffn_dim=SETTINGS["feedforward"],
        position_embedding_type=position,
        # With auxiliary losses their decoder feeds each layer the normalised output of the last, unlike DETR.
        auxiliary_loss=False,
    )
    return transformers.DetrForObjectDetection(config).eval()


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep queries apart, and norms that are not the identity."""
    model.load_state_dict(pattern.fill(model.state_dict()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("query_embed.weight", "model.query_position_embeddings.weight"):
                parameter.normal_()
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(3)
            elif name.endswith("v_proj.weight"):
                parameter.mul_(0.5)
    return model


def ours(name: str, position: str = "sine") -> Detr:
    return Detr(ResNetBackbone(name).at_strides(32), 6, **SETTINGS, position=position).eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two padded images, their sizes, and the same as a mask of pixels."""
    sizes = torch.tensor([[96, 128], [70, 90]])
    images, mask = torch.zeros(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.int64)
    for image, pixels, (height, width) in zip(images, mask, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
        pixels[:height, :width] = 1
    return images, sizes, mask


@torch.no_grad()
def compare(model: Detr, other: torch.nn.Module) -> None:
    images, sizes, mask = batch()
    output, expected = model(images, sizes), other(pixel_values=images, pixel_mask=mask)
    torch.testing.assert_close(output.logits[-1], expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-5)
    # Queries and images differ by far more than that, so wrong weights would show.
    assert expected.logits.std(dim=1).mean() > 0.03
    assert expected.pred_boxes.std(dim=1).mean() > 0.003
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 0.05


@pytest.mark.parametrize(("name", "position"), [("resnet18", "sine"), ("resnet50", "sine"), ("resnet18", "learned")])
def test_their_weights_in_our_model(name: str, position: str) -> None:
    other, model = filled(theirs(name, position)), ours(name, position)
    model.load_state_dict(from_hugging_face(other.state_dict()), strict=True)
    compare(model, other)


def test_our_weights_in_their_model() -> None:
    other, model = theirs("resnet18"), filled(ours("resnet18"))
    state = to_hugging_face(model.state_dict())
    missing, unexpected = other.load_state_dict(state, strict=False)
    # Their classifier's backbone counts batches in training; nothing else may be missing.
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert unexpected == []
    compare(model, other)


def old_names(state: dict[str, Tensor], timm: bool) -> dict[str, Tensor]:
    """As the files on the hub were written: other names for layers, and a backbone of timm's."""
    renamed = {}
    for key, value in state.items():
        old = key.replace(".mlp.fc", ".fc").replace("attn.o_proj", "attn.out_proj")
        old = old.replace("model.position_embedding.", "model.backbone.position_embedding.")
        if timm:
            prefix = "model.backbone.conv_encoder.model."
            old = old.replace("model.backbone.model.embedder.embedder.convolution", f"{prefix}conv1")
            old = old.replace("model.backbone.model.embedder.embedder.normalization", f"{prefix}bn1")
            parts = old.split(".")
            if "stages" in parts:
                stage, block = int(parts[parts.index("stages") + 1]) + 1, parts[parts.index("layers") + 1]
                rest = parts[parts.index("layers") + 2 :]
                where = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
                if rest[0] == "shortcut":
                    name = f"downsample.{where[rest[1]][1]}"
                else:
                    name = f"{where[rest[2]][0]}{int(rest[1]) + 1}"
                old = f"{prefix}layer{stage}.{block}.{name}.{parts[-1]}"
        else:
            old = old.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        renamed[old] = value
    assert len(renamed) == len(state)
    return renamed


@pytest.mark.parametrize("timm", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_hubs_older_names(name: str, timm: bool) -> None:
    model = Detr(ResNetBackbone(name).at_strides(32), 6, **SETTINGS, position="learned")
    present = to_hugging_face(model.state_dict())
    old = old_names(present, timm)
    examples = {
        "model.encoder.layers.0.fc1.weight",
        "model.decoder.layers.1.encoder_attn.out_proj.bias",
        "model.backbone.position_embedding.row_embeddings.weight",
        "model.backbone.conv_encoder.model."
        + ("layer1.0.conv1.weight" if timm else "encoder.stages.0.layers.0.layer.0.convolution.weight"),
    }
    assert examples <= old.keys()
    loaded = from_hugging_face(old)
    state = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
