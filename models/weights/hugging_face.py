"""DETR as Hugging Face's transformers names it, both ways: present names, and the older ones of files on its hub."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .layouts import Rules, rename, reverse

_HF_LAYER = [
    ("self_attn.out_proj", "self_attn.o_proj"),
    ("cross_attn.out_proj", "encoder_attn.o_proj"),
    ("ffn.linear1", "mlp.fc1"),
    ("ffn.linear2", "mlp.fc2"),
    ("norm1", "self_attn_layer_norm"),
]
_HF_CONV = [(f"conv{k}", f"bn{k}", f"layer.{k - 1}") for k in (1, 2, 3)]
_HF_STAGES: Rules = [
    rule
    for stage in range(4)
    for ours, theirs in [
        (f"backbone.body.layer{stage + 1}.{{i}}", f"model.backbone.model.encoder.stages.{stage}.layers.{{i}}")
    ]
    for rule in [
        (f"{ours}.downsample.0.{{rest}}", f"{theirs}.shortcut.convolution.{{rest}}"),
        (f"{ours}.downsample.1.{{rest}}", f"{theirs}.shortcut.normalization.{{rest}}"),
        *[(f"{ours}.{conv}.{{rest}}", f"{theirs}.{layer}.convolution.{{rest}}") for conv, _, layer in _HF_CONV],
        *[(f"{ours}.{norm}.{{rest}}", f"{theirs}.{layer}.normalization.{{rest}}") for _, norm, layer in _HF_CONV],
    ]
]
HUGGING_FACE: Rules = [
    *[
        (f"{side}.layers.{{i}}.{ours}.{{rest}}", f"model.{side}.layers.{{i}}.{theirs}.{{rest}}")
        for side in ("encoder", "decoder")
        for ours, theirs in _HF_LAYER
    ],
    ("encoder.layers.{i}.norm2.{rest}", "model.encoder.layers.{i}.final_layer_norm.{rest}"),
    ("decoder.layers.{i}.norm2.{rest}", "model.decoder.layers.{i}.encoder_attn_layer_norm.{rest}"),
    ("decoder.layers.{i}.norm3.{rest}", "model.decoder.layers.{i}.final_layer_norm.{rest}"),
    ("encoder.norm.{rest}", "model.encoder.layernorm.{rest}"),
    ("decoder.norm.{rest}", "model.decoder.layernorm.{rest}"),
    ("query_embed.weight", "model.query_position_embeddings.weight"),
    ("input_proj.{rest}", "model.input_projection.{rest}"),
    ("class_embed.{rest}", "class_labels_classifier.{rest}"),
    ("bbox_embed.{rest}", "bbox_predictor.{rest}"),
    ("position.row_embed.{rest}", "model.position_embedding.row_embeddings.{rest}"),
    ("position.col_embed.{rest}", "model.position_embedding.column_embeddings.{rest}"),
    ("backbone.body.conv1.{rest}", "model.backbone.model.embedder.embedder.convolution.{rest}"),
    ("backbone.body.bn1.{rest}", "model.backbone.model.embedder.embedder.normalization.{rest}"),
    *_HF_STAGES,
    # Backbones that Hugging Face takes from timm keep torchvision's names.
    ("backbone.body.{rest}", "model.backbone.conv_encoder.model.{rest}"),
]
_HF_OLD: Rules = [
    *[
        (f"model.{side}.layers.{{i}}.fc{k}.{{rest}}", f"model.{side}.layers.{{i}}.mlp.fc{k}.{{rest}}")
        for side in ("encoder", "decoder")
        for k in (1, 2)
    ],
    *[
        (
            f"model.{side}.layers.{{i}}.{attention}.out_proj.{{rest}}",
            f"model.{side}.layers.{{i}}.{attention}.o_proj.{{rest}}",
        )
        for side in ("encoder", "decoder")
        for attention in ("self_attn", "encoder_attn")
    ],
    ("model.backbone.position_embedding.{rest}", "model.position_embedding.{rest}"),
    ("model.backbone.conv_encoder.model.embedder.{rest}", "model.backbone.model.embedder.{rest}"),
    ("model.backbone.conv_encoder.model.encoder.{rest}", "model.backbone.model.encoder.{rest}"),
    ("model.backbone.model.layer{rest}", "model.backbone.conv_encoder.model.layer{rest}"),
    ("model.backbone.model.conv1.{rest}", "model.backbone.conv_encoder.model.conv1.{rest}"),
    ("model.backbone.model.bn1.{rest}", "model.backbone.conv_encoder.model.bn1.{rest}"),
]
_SPLIT = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(self|encoder)_attn\.([qkv])_proj\.(weight|bias)")


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face DETR's state dict under our names: separate query, key and value projections are packed."""
    plain: dict[str, Tensor] = {}
    split: dict[str, dict[str, Tensor]] = {}
    for name, value in rename(state, _HF_OLD).items():
        if match := _SPLIT.fullmatch(name):
            side, layer, kind, part, tensor = match.groups()
            attention = "self_attn" if kind == "self" else "cross_attn"
            split.setdefault(f"{side}.layers.{layer}.{attention}.in_proj_{tensor}", {})[part] = value
        elif not name.endswith("num_batches_tracked"):
            plain[name] = value
    for name, parts in split.items():
        if len(parts) < 3 or len({tuple(part.shape) for part in parts.values()}) > 1 or parts["q"].dim() == 0:
            raise ValueError(f"of {name}, the query, key and value parts are not all there or not of one size")
    packed = {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in split.items()}
    return rename(plain, reverse(HUGGING_FACE)) | packed


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our DETR's state dict under Hugging Face's present names."""
    result = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not name.split(".")[-1].startswith("in_proj_"):
            result[name] = value
            continue
        prefix, tensor = name.rsplit(".in_proj_", 1)
        theirs = f"model.{prefix}".replace("cross_attn", "encoder_attn")
        result |= {f"{theirs}.{part}_proj.{tensor}": value for part, value in zip("qkv", value.chunk(3), strict=True)}
    return rename(result, HUGGING_FACE)
