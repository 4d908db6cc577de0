"""Settings of a backbone, whatever its task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import with_config

from detr_container.base.limits import Share, between, natural

from .settings import STRICT, Experiment
from .traits import FIXED, MAY_CHANGE, Topic


@with_config(STRICT)
@dataclass(frozen=True)
class BackboneConfig:
    """The feature extractor. Freezing and learning rates go by stage, never by parameter name."""

    name: str = "resnet50"
    """resnet18/34/50/101, container_light, container, mh_dw, self_attention, container_pam, mh_mlp, or timm/<any timm
    model>; all of ours but the first four also with _tiny, and resnet18, container_light, container, mh_dw and
    self_attention with _small, for small images and CPUs. The ResNets are torchvision's; resnet50_msra and
    resnet101_msra are those of detectron2's models, with the strides and pixels of MSRA's."""
    weights: Annotated[str, MAY_CHANGE, Topic("pretraining")] = "imagenet"
    """`imagenet` (the published classification weights), `none` (random), or the path of a checkpoint file or a run."""
    file_weights: Annotated[Literal["auto", "ema", "model"], MAY_CHANGE] = "auto"
    """Of a checkpoint file that has both: the averaged weights (`ema`), the raw ones (`model`), or averaged if any."""
    dense: Literal["refuse", "interpolate"] = "refuse"
    """container_pam and mh_mlp only, whose static affinities belong to one size of image. `refuse`: they are built for
    the size of the settings' images, and take no other; `interpolate`: they are built for images of 224 pixels at most
    (the tiny ones 64), and interpolated bicubically over both positions for others, as are weights of another size."""
    dilation: bool = False
    """ResNet only: stride 1 and dilation 2 in the last stage (DC5), so that its features have stride 16."""
    frozen_stages: Annotated[int, natural(1000), Topic("frozen stages")] = 2
    """How many leading stages keep their weights. A ResNet's stages are stem, layer1 .. layer4; CONTAINER has
    four; those of container_pam and mh_mlp are embed, block1 .. block12."""
    norm: Annotated[Literal["frozen", "batch", "sync"], Topic("norm policy")] = "frozen"
    """BatchNorm layers: `frozen` keeps statistics and scales fixed, `batch` trains them, `sync` does so with the
    statistics of all processes together."""
    drop_path: Share = 0.0
    """Stochastic depth: the largest drop probability, reached in the last block (all but ResNets)."""
    stage: Annotated[int, between(-1000, 1000)] = -1
    """Which feature map the head reads, counted from the end: -1 is the last, -2 has half its stride."""
    stride: Annotated[int, natural(1024)] = 0
    """The feature map by its stride in pixels instead, the same one for every backbone; 0: as `stage` says."""

    @property
    def label(self) -> str:
        """The backbone as tables name it."""
        return self.name + (" DC5" if self.dilation else "")


def has_dense(name: str) -> bool:
    """Whether a backbone has static affinities of one size of image (`BackboneConfig.dense`)."""
    return name.startswith(("container_pam", "mh_mlp"))


@with_config(STRICT)
@dataclass(frozen=True)
class BackboneExperiment(Experiment):
    """What experiments have in common whose model is a backbone with something on it."""

    backbone: Annotated[BackboneConfig, FIXED, Topic("backbone settings")] = field(default_factory=BackboneConfig)

    @property
    def parts(self) -> dict[str, str]:
        """See `Experiment`."""
        return {"backbone": self.backbone.name}

    @property
    def inputs(self) -> dict[str, Path]:
        """See `Experiment`."""
        weights = self.backbone.weights
        return ({} if weights in ("none", "imagenet") else {"backbone.weights": Path(weights)}) | super().inputs

    def untrained(self) -> Self:
        """See `Experiment`."""
        return replace(super().untrained(), backbone=replace(self.backbone, weights="none"))

    def idle(self) -> Iterator[tuple[str, bool, str]]:
        """See `Experiment`."""
        name, drops = self.backbone.name, self.backbone.drop_path > 0
        yield from super().idle()
        yield "backbone.drop_path", drops and name.startswith("resnet"), "on a ResNet"
        yield "backbone.dense", not has_dense(name), f"on {name}, which has no dense affinities"
