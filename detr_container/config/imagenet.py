"""The named experiments of classification: ImageNet-1k with the DeiT recipe, and a small one of synthetic images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .classification import ClassificationExperiment, ClassificationTrainConfig, FoldersConfig
from .experiments import experiment
from .published import PublishedTop1

CONTAINER = "Container (Gao et al. 2021, arXiv 2106.01401)"


@experiment(PublishedTop1(82.7, CONTAINER))
def container_in1k() -> ClassificationExperiment:
    """CONTAINER on ImageNet-1k, 300 epochs of the DeiT recipe; published with 22 M parameters and 8.1 GFLOPs."""
    return _on("container", "container_in1k")


@experiment(
    PublishedTop1(82.26, "the released checkpoint's README (allenai/container)", 96.2),
    PublishedTop1(82.0, CONTAINER),
)
def container_light_in1k() -> ClassificationExperiment:
    """CONTAINER-LIGHT on ImageNet-1k, 300 epochs of the DeiT recipe, 8 x 128 images."""
    return ClassificationExperiment(name="container_light_in1k")


@experiment()
def container_pam_in1k() -> ClassificationExperiment:
    """CONTAINER-PAM on ImageNet-1k: DeiT-S with a static affinity beside each attention's, the DeiT recipe."""
    return _on("container_pam", "container_pam_in1k")


@experiment(PublishedTop1(79.85, "DeiT's README (facebookresearch/deit)", 94.97), PublishedTop1(79.9, CONTAINER))
def deit_s_in1k() -> ClassificationExperiment:
    """DeiT-S/16 on ImageNet-1k, 300 epochs (Touvron et al. 2021)."""
    return _on("timm/deit_small_patch16_224", "deit_s_in1k")


@experiment(PublishedTop1(76.13, "torchvision's IMAGENET1K_V1, of 90 epochs with SGD", 92.862))
def resnet50_in1k() -> ClassificationExperiment:
    """ResNet-50 on ImageNet-1k with the DeiT recipe, for comparison; what was published of it is of other recipes."""
    base = _on("resnet50", "resnet50_in1k")
    return replace(base, backbone=replace(base.backbone, drop_path=0.0))


def _on(backbone: str, name: str) -> ClassificationExperiment:
    base = container_light_in1k()
    return replace(base, name=name, backbone=replace(base.backbone, name=backbone))


@experiment()
def classify_debug() -> ClassificationExperiment:
    """As `container_light_in1k` in everything, but tiny: whether it works at all, in seconds."""
    base = ClassificationExperiment()
    return replace(
        base,
        name="classify_debug",
        backbone=replace(base.backbone, name="container_light_tiny"),
        data=FoldersConfig(
            root=Path("data/single-shapes-debug"), make_shapes=(40, 20, 40), size=32, eval_batch=8, workers=0
        ),
        train=ClassificationTrainConfig(epochs=2, batch=8, micro_batch=4, lr_batch=0, warmup_epochs=1, log_every=2),
    )


@experiment()
def classify_demo() -> ClassificationExperiment:
    """A tiny CONTAINER-LIGHT from random weights on images of single shapes: a minute on two CPU cores."""
    base = ClassificationExperiment()
    return replace(
        base,
        name="classify_demo",
        backbone=replace(base.backbone, name="container_light_tiny", drop_path=0.0),
        data=FoldersConfig(
            root=Path("data/single-shapes"),
            make_shapes=(1600, 400, 56),
            size=48,
            area=(0.7, 1.0),
            auto_augment="",
            erasing=0.0,
            repeats=1,
            mixup=0.0,
            cutmix=0.0,
            eval_batch=100,
            workers=1,
        ),
        train=ClassificationTrainConfig(
            epochs=15,
            batch=32,
            micro_batch=32,
            lr=4e-3,
            lr_batch=0,
            schedule="cosine",
            warmup_steps=100,
            eval_every=3,
            log_every=50,
        ),
    )


@experiment()
def classify_small() -> ClassificationExperiment:
    """A tiny CONTAINER-LIGHT from random weights on some hundred or thousand small images of your own.

    On 743 crops of blood cells it takes a minute on a CPU core; with more images to learn, give a larger backbone.
    """
    base = classify_demo()
    return replace(
        base,
        name="classify_small",
        data=replace(base.data, root=None, make_shapes=(0, 0, 0), area=(0.4, 1.0), workers=0),
        train=replace(base.train, epochs=30, lr=2e-3, warmup_steps=50, eval_every=5, log_every=25),
    )
