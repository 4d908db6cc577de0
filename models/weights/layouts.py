"""The same weights under other people's names: how published checkpoints call what our models hold, both ways.

A layout is a table of pairs (our name, their name) in which `{i}`, `{j}` stand for numbers and `{rest}` for anything.
Where the first pair that fits says nothing else, a name stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

Rules = list[tuple[str, str]]


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for name, wild in (("i", r"\d+"), ("j", r"\d+"), ("rest", r".+")):
        escaped = escaped.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>{wild})")
    return re.compile(escaped)


def rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Every name that fits a rule's left side gets its right side."""
    compiled = [(_pattern(left), right) for left, right in rules]
    renamed = {}
    for name, value in state.items():
        fits = ((pattern.fullmatch(name), right) for pattern, right in compiled)
        renamed[next((right.format(**match.groupdict()) for match, right in fits if match), name)] = value
    return renamed


def reverse(rules: Iterable[tuple[str, str]]) -> Rules:
    """The same table read from right to left."""
    return [(right, left) for left, right in rules]


def _container_stage(stage: int, last: bool) -> Rules:
    ours, theirs = f"blocks.{stage - 1}.{{i}}", f"blocks{stage}.{{i}}"
    kernel = ("aggregation.static.kernel", "conv") if last else ("aggregation.kernel", "attn")
    parts = [
        kernel,
        ("aggregation.mix", "sa_weight"),
        ("position", "pos_embed"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.2", "mlp.fc2"),
    ]
    rules = [(f"{ours}.{a}.{{rest}}", f"{theirs}.{b}.{{rest}}") for a, b in parts if a != "aggregation.mix"]
    return [
        (f"embeds.{stage - 1}.{{rest}}", f"patch_embed{stage}.{{rest}}"),
        (f"{ours}.aggregation.mix", f"{theirs}.sa_weight"),
        *rules,
        (f"{ours}.{{rest}}", f"{theirs}.{{rest}}"),
    ]


# The released ImageNet checkpoint of CONTAINER-LIGHT.
CONTAINER: Rules = [rule for stage in range(1, 5) for rule in _container_stage(stage, last=stage == 4)]

# DETR's and SMCA-DETR's own checkpoints. A CONTAINER backbone keeps its released names below `backbone.0.body`.
_LAYERS: Rules = [
    (f"{side}.layers.{{i}}.{ours}.{{rest}}", f"transformer.{side}.layers.{{i}}.{theirs}.{{rest}}")
    for side in ("encoder", "decoder")
    for ours, theirs in (("ffn.linear1", "linear1"), ("ffn.linear2", "linear2"), ("cross_attn", "multihead_attn"))
]
_PRIORS: Rules = [
    (f"decoder.priors.{{i}}.{ours}.{{rest}}", f"transformer.decoder.layers.{{i}}.{theirs}.{{rest}}")
    for ours, theirs in (("norm", "norm4"), ("offset", "point2"), ("scale", "point3"))
]
PUBLISHED: Rules = [
    *_LAYERS,
    *_PRIORS,
    ("decoder.reference.{rest}", "transformer.decoder.layers.0.point1.{rest}"),
    ("encoder.{rest}", "transformer.encoder.{rest}"),
    ("decoder.{rest}", "transformer.decoder.{rest}"),
    ("position.{rest}", "backbone.1.{rest}"),
    *[(f"backbone.{ours}", f"backbone.0.body.{theirs}") for ours, theirs in CONTAINER],
    ("backbone.body.{rest}", "backbone.0.body.{rest}"),
]


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DETR or SMCA-DETR state dict under our names."""
    return rename(state, reverse(PUBLISHED))


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our detector's state dict under DETR's and SMCA-DETR's names."""
    return rename(state, PUBLISHED)


def from_container(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released classifier's state dict under the names of `BackboneClassifier` on a `Container`."""
    return {
        name if name.split(".")[0] in ("norm", "head") else f"backbone.{name}": value
        for name, value in rename(state, reverse(CONTAINER)).items()
    }


def to_container(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_container`."""
    return rename({name.removeprefix("backbone."): value for name, value in state.items()}, CONTAINER)
