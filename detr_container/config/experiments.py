"""The named experiments. Each is a short function that derives from a base; its docstring says what to expect of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from .backbones import BackboneConfig
from .detection import (
    DataConfig,
    DetectionExperiment,
    DetectionTrainConfig,
    HeadConfig,
    LossConfig,
    PyramidConfig,
    detection,
)
from .published import Published, PublishedAp
from .settings import Experiment
from .tasks import known

FOCAL = LossConfig(classification="focal", class_weight=2.0, cost_class=2.0)


@dataclass(frozen=True)
class Named:
    """An experiment with its summary and what was published of it, the nearest setting first."""

    experiment: Experiment
    published: tuple[Published, ...]
    summary: str


Builder = Callable[[], Experiment]
B = TypeVar("B", bound=Builder)
_BUILDERS: dict[str, tuple[Builder, tuple[Published, ...]]] = {}


def experiment(*published: Published) -> Callable[[B], B]:
    """Register a function as a named experiment, with what was published of it."""

    def register(build: B) -> B:
        _BUILDERS[build.__name__] = build, published
        return build

    return register


@experiment(
    PublishedAp(34.9, "Conditional DETR (Meng et al. 2021), table 1"),
    PublishedAp(32.3, "Container (Gao et al. 2021, arXiv 2106.01401): 38.9 - 6.6"),
)
def detr_r50_50e() -> DetectionExperiment:
    """DETR, ResNet-50, 50 epochs.

    Carion et al. 2020 with Conditional DETR's 50-epoch schedule. About 25 hours on 8 V100. The class loss is divided by
    the targets of the whole batch; the published code divides it on each process by its own (`loss.normalise=process`).
    """
    return DetectionExperiment(name="detr_r50_50e")


@experiment()
def detr_r50_dc5_50e() -> DetectionExperiment:
    """DETR, ResNet-50 with a dilated last stage (stride 16), 50 epochs; one image per process and forward pass."""
    base = detr_r50_50e()
    return replace(
        base,
        name="detr_r50_dc5_50e",
        backbone=replace(base.backbone, dilation=True),
        data=replace(base.data, eval_batch=1),
        train=replace(base.train, micro_batch=1),
    )


def container_light(base: DetectionExperiment, name: str) -> DetectionExperiment:
    """The same experiment on CONTAINER-LIGHT.

    Its authors say "8 GPUs x 2 images, AdamW, each repository's own defaults", and no more. Ours to choose were:
    BatchNorm frozen, as in their RetinaNet and Mask R-CNN recipes; every stage trained, at the backbone's usual
    learning rate; no drop-path.
    """
    backbone = BackboneConfig(name="container_light", frozen_stages=0, norm="frozen", drop_path=0.0)
    return replace(base, name=name, backbone=backbone)


@experiment(PublishedAp(38.9, "Container (Gao et al. 2021, arXiv 2106.01401)"))
def detr_container_light_50e() -> DetectionExperiment:
    """DETR, CONTAINER-LIGHT, 50 epochs (Gao et al. 2021, "Container")."""
    return container_light(detr_r50_50e(), "detr_container_light_50e")


@experiment(
    PublishedAp(41.0, "SMCA-DETR (Gao et al. 2021, arXiv 2101.07448), single scale", 62.2, 43.6, 21.9, 44.3, 59.1)
)
def smca_r50_50e() -> DetectionExperiment:
    """SMCA-DETR, single scale, ResNet-50, 50 epochs (Gao et al. 2021, "Fast convergence of DETR").

    About 25 hours on 8 V100.
    """
    base = detr_r50_50e()
    head = HeadConfig(kind="smca", queries=300)
    return replace(base, name="smca_r50_50e", head=head, loss=FOCAL)


@experiment(PublishedAp(44.2, "Container (Gao et al. 2021, arXiv 2106.01401) and SMCA-DETR's code"))
def smca_container_light_50e() -> DetectionExperiment:
    """SMCA-DETR, single scale, CONTAINER-LIGHT, 50 epochs (Gao et al. 2021, "Container")."""
    return container_light(smca_r50_50e(), "smca_container_light_50e")


_CONTAINER = "Container (Gao et al. 2021, arXiv 2106.01401)"


@experiment(PublishedAp(36.5, f"{_CONTAINER}: 43.8 - 7.3"))
def retinanet_r50_1x() -> DetectionExperiment:
    """RetinaNet, ResNet-50, 12 epochs (Lin et al. 2017), built by detectron2, with the recipe of "Container".

    AdamW at 1e-4, which falls at epochs 8 and 11, 500 steps of warm-up, no clipping, 8 processes of 2 images, BatchNorm
    frozen: what "Container" (Gao et al. 2021) states. It does not state the scales: images have a shorter side of 800
    pixels and are flipped, as in the toolbox whose baselines it quotes. Images without objects are shown as well, 1,021
    of COCO's, which that toolbox and detectron2 leave out.
    """
    base = detr_r50_50e()
    return replace(
        base,
        name="retinanet_r50_1x",
        head=HeadConfig(kind="retinanet"),
        data=replace(base.data, augment="flip", scales=(800,)),
        train=replace(
            base.train,
            epochs=12,
            lr_drop=8,
            lr_drop_again=11,
            lr_backbone=1e-4,
            weight_decay=0.05,
            warmup_steps=500,
            clip=0.0,
        ),
    )


@experiment(PublishedAp(43.8, _CONTAINER))
def retinanet_container_light_1x() -> DetectionExperiment:
    """RetinaNet, CONTAINER-LIGHT, 12 epochs (Gao et al. 2021, "Container"), built by detectron2.

    Left open there and chosen here: every stage trains, no drop-path (`backbone.drop_path`), and no norm between the
    backbone's maps and the pyramid (`pyramid.map_norm`).
    """
    return container_light(retinanet_r50_1x(), "retinanet_container_light_1x")


@experiment(PublishedAp(38.2, f"{_CONTAINER}: 45.1 - 6.9 box, 41.3 - 6.6 mask", mask_ap=34.7))
def mask_rcnn_r50_1x() -> DetectionExperiment:
    """Mask R-CNN, ResNet-50, 12 epochs (He et al. 2017), built by detectron2, with the recipe of "Container".

    As `retinanet_r50_1x`; masks are learnt from 112 x 112 cells of each object's box.
    """
    return replace(retinanet_r50_1x(), name="mask_rcnn_r50_1x", head=HeadConfig(kind="mask_rcnn"))


@experiment(PublishedAp(45.1, _CONTAINER, mask_ap=41.3))
def mask_rcnn_container_light_1x() -> DetectionExperiment:
    """Mask R-CNN, CONTAINER-LIGHT, 12 epochs (Gao et al. 2021, "Container"), built by detectron2.

    Left open there and chosen here is what `retinanet_container_light_1x` says.
    """
    return container_light(mask_rcnn_r50_1x(), "mask_rcnn_container_light_1x")


@experiment()
def demo() -> DetectionExperiment:
    """SMCA-DETR on a small CONTAINER-LIGHT from random weights, for the synthetic shapes: minutes on two CPU cores."""
    return DetectionExperiment(
        name="demo",
        backbone=BackboneConfig(name="container_light_small", weights="none", frozen_stages=0, norm="batch"),
        head=HeadConfig(
            kind="smca",
            queries=25,
            width=128,
            heads=8,
            encoder_layers=2,
            decoder_layers=3,
            feedforward=256,
            dropout=0.0,
        ),
        # Without pretraining the classes are what is slow to learn, so they weigh more than in the paper.
        loss=replace(FOCAL, class_weight=4.0),
        data=DataConfig(
            root=Path("data/shapes"),
            make_shapes=(2000, 200, 128),
            augment="flip",
            scales=(128,),
            max_size=128,
            eval_size=128,
            eval_batch=32,
            workers=0,
        ),
        train=DetectionTrainConfig(
            epochs=15,
            batch=8,
            micro_batch=8,
            lr=3e-4,
            lr_backbone=3e-4,
            schedule="cosine",
            warmup_steps=200,
            eval_every=5,
            log_every=50,
        ),
    )


@experiment()
def retinanet_demo() -> DetectionExperiment:
    """RetinaNet on a small CONTAINER-LIGHT from random weights, for the synthetic shapes; needs detectron2."""
    base = demo()
    return replace(
        base,
        name="retinanet_demo",
        head=HeadConfig(kind="retinanet"),
        # Shapes have sides of 28 to 64 pixels; the finest of the pyramid's levels has stride 8.
        pyramid=PyramidConfig(channels=64, convolutions=2, anchor_size=24),
        loss=LossConfig(),
        train=replace(base.train, epochs=4, lr=1e-3, lr_backbone=1e-3, clip=10.0, eval_every=1),
    )


@experiment()
def mask_rcnn_demo() -> DetectionExperiment:
    """Mask R-CNN on a small CONTAINER-LIGHT from random weights, for the synthetic shapes; needs detectron2."""
    base = retinanet_demo()
    return replace(
        base,
        name="mask_rcnn_demo",
        head=HeadConfig(kind="mask_rcnn"),
        pyramid=replace(base.pyramid, hidden=128, proposals=100, samples=64, anchor_size=16),
        train=replace(base.train, epochs=2),
    )


@experiment()
def compare_demo() -> DetectionExperiment:
    """What `make compare-demo` compares backbones and heads with: the demo shortened, so that eight runs fit.

    Images of 96 pixels, two decoder layers and no encoder: of seven recipes that were tried, what the small
    CONTAINER-LIGHT under SMCA-DETR learns most with from 7,500 images, which favours it. None of the models has
    learnt what it could by then.
    """
    base = demo()
    return replace(
        base,
        name="compare_demo",
        # The last map of the small CONTAINER-LIGHT; a ResNet's would be 3 x 3 positions of such an image.
        backbone=replace(base.backbone, stride=16),
        head=replace(base.head, encoder_layers=0, decoder_layers=2),
        data=replace(
            base.data,
            root=Path("data/shapes-compare"),
            make_shapes=(1500, 200, 96),
            scales=(96,),
            max_size=96,
            eval_size=96,
        ),
        train=replace(
            base.train,
            epochs=5,
            batch=4,
            micro_batch=4,
            lr=5e-4,
            lr_backbone=5e-4,
            warmup_steps=100,
            eval_every=2,
        ),
    )


@experiment()
def debug() -> DetectionExperiment:
    """A tiny SMCA-DETR on a few synthetic shapes: every part of a run in seconds."""
    base = demo()
    return replace(
        base,
        name="debug",
        backbone=replace(base.backbone, name="container_light_tiny"),
        head=replace(base.head, queries=10, width=32, heads=2, encoder_layers=1, decoder_layers=2, feedforward=64),
        data=replace(
            base.data,
            root=Path("data/shapes-debug"),
            make_shapes=(32, 12, 64),
            scales=(64,),
            max_size=64,
            eval_size=64,
            eval_batch=4,
        ),
        train=replace(base.train, epochs=2, batch=4, micro_batch=2, warmup_steps=0, eval_every=1, log_every=2),
    )


def names() -> list[str]:
    """Of all named experiments, those of other packages' tasks last."""
    for task in known().values():
        task.load()
    return list(_BUILDERS)


def find(name: str) -> Named | None:
    """The experiment of that name, if there is one."""
    if name not in _BUILDERS and name not in names():
        return None
    build, published = _BUILDERS[name]
    return Named(build(), published, (build.__doc__ or "").split("\n")[0])


def named(name: str) -> Named:
    """The experiment of that name. Raises ValueError with the nearest names when there is none."""
    found = find(name)
    if found is None:
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names())}."
        raise ValueError(f"there is no experiment {name!r}: {hint} `detr-container experiments` describes them all")
    return found


def detection_named(name: str) -> DetectionExperiment:
    """As `named`, of detection alone."""
    return detection(named(name).experiment)
