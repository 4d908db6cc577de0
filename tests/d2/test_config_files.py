"""Our configurations load by name and by path, say what they are meant to, and mistakes are answered in one line."""

import re
from pathlib import Path
from typing import Any

import pytest
from detectron2_runs import BACKBONE, CLASSES, HEAD, lazy_config, yacs_config

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

from detectron2.config import LazyConfig, instantiate
from detectron2.data.transforms import AugInput
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling import RetinaNet as TheirRetinaNet

from detr_container.config.experiments import detection_named
from detr_container.d2.augmentations import detr_augmentations, from_settings
from detr_container.d2.config_files import config_file, load, names
from detr_container.d2.meta_archs import DETR, SMCADETR
from detr_container.d2.settings import EPOCHS, IMAGES

PARTS = ["train", "model", "optimizer", "lr_multiplier", "dataloader"]
MODELS: dict[str, Any] = {
    "detr": DETR,
    "smca": SMCADETR,
    "retinanet": TheirRetinaNet,
    "mask_rcnn": GeneralizedRCNN,
}
NAMES = [f"{head}_{backbone}_50e" for head in ("detr", "smca") for backbone in ("r50", "container_light")]
NAMES += [f"{head}_{backbone}_1x" for head in ("retinanet", "mask_rcnn") for backbone in ("r50", "container_light")]


def head_of(name: str) -> str:
    return next(head for head in MODELS if name.startswith(head))


def section(cfg: Any, name: str) -> Any:
    """Where the backbone's settings are."""
    return cfg.model.backbone if head_of(name) in ("detr", "smca") else cfg.model.backbone.bottom_up


def test_all_are_there() -> None:
    assert names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_and_is_built(name: str) -> None:
    cfg = LazyConfig.load(config_file(name))
    assert list(cfg) == PARTS
    section(cfg, name).update(name="container_light_tiny", weights="none")
    if head_of(name) in ("detr", "smca"):
        cfg.model.head.update(HEAD)
    built = instantiate(cfg.model)
    assert type(built) is MODELS[head_of(name)]
    cfg.optimizer.params.model = built
    optimizer = instantiate(cfg.optimizer)
    trained = sum(parameter.requires_grad for parameter in built.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == trained
    assert 0 < instantiate(cfg.lr_multiplier)(0.0) <= 1
    mapper = cfg.dataloader.train.mapper
    assert mapper.image_format == cfg.dataloader.test.mapper.image_format == built.input_format == "RGB"
    assert mapper.use_instance_mask is (head_of(name) == "mask_rcnn")
    assert instantiate(mapper).is_train
    assert cfg.dataloader.train.total_batch_size == 16
    # Images without objects are shown where the steps are counted with them.
    images = IMAGES if head_of(name) in ("detr", "smca") else 117_266
    assert cfg.dataloader.train.dataset.filter_empty is (images != IMAGES)
    assert cfg.train.max_iter == round((EPOCHS if images == IMAGES else 12) * images / 16)
    assert cfg.train.checkpointer.period == cfg.train.eval_period == round(images / 16)
    assert cfg.train.amp.enabled is False


@pytest.mark.parametrize("name", NAMES)
def test_backbone_and_head_are_those_of_the_named_experiment(name: str) -> None:
    """So that both loops train the same."""
    cfg, ours = LazyConfig.load(config_file(name)), detection_named(name)
    given = section(cfg, name)
    for key in ("name", "weights", "frozen_stages", "norm", "drop_path"):
        assert given[key] == getattr(ours.backbone, key), key
    assert cfg.optimizer.lr == ours.train.lr
    assert cfg.optimizer.weight_decay == ours.train.weight_decay
    if head_of(name) in ("detr", "smca"):
        assert instantiate(cfg.model.head).queries == ours.head.queries
        assert instantiate(cfg.model.loss) == ours.loss
        assert cfg.optimizer.params.lr_backbone == ours.train.lr_backbone
        assert cfg.optimizer.clip == ours.train.clip


def test_both_meta_architectures_are_registered() -> None:
    assert META_ARCH_REGISTRY.get("DETR") is DETR
    assert META_ARCH_REGISTRY.get("SMCADETR") is SMCADETR


def test_settings_on_top() -> None:
    loaded = load("detr_r50_50e", ["optimizer.lr=2e-4", "model.backbone.dilation=True", "+model.head.dropout=0.2"])
    assert loaded.cfg.optimizer.params.lr == 2e-4, "the groups follow"
    assert loaded.cfg.model.backbone.dilation is True
    assert instantiate(loaded.cfg.model.head).dropout == 0.2
    assert loaded.output == Path("output/detr_r50_50e")


@pytest.mark.parametrize(
    ("config", "overrides", "words"),
    [
        ("detr_r50", [], "no configuration 'detr_r50': did you mean detr_r50_50e"),
        ("nothing.py", [], r"nothing\.py: there is no such configuration"),
        (
            "detr_r50_50e",
            ["optimizer.lrr=1"],
            r"optimizer\.lrr: .*ClippedAdamW takes no such argument; did you mean optimizer\.lr",
        ),
        (
            "detr_r50_50e",
            ["model.backbone.stages=1"],
            r"BackboneConfig takes no such argument; did you mean model\.backbone\.stage",
        ),
        ("detr_r50_50e", ["train=1.x.y=3"], "train=1.x.y=3"),
        ("detr_r50_50e", ["optimizer.lr=["], r"optimizer\.lr=\["),
        ("detr_r50_50e", ["~optimizer.lr"], "a key cannot be taken away"),
        (
            "detr_r50_50e",
            ["+model.head.dropuot=0.1"],
            r"model\.head\.dropuot: .*HeadConfig takes no such argument; did you mean model\.head\.dropout",
        ),
        ("detr_r50_50e", ["train.max_iter.x=1"], r"train\.max_iter\.x"),
    ],
)
def test_mistakes_are_one_line(config: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        load(config, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = (", r"syntax error|SyntaxError"),
        ("train = dict()\n\nmodel = nothing", r"mine\.py, line 3: NameError: name 'nothing' is not defined"),
        ("from .absent import model", r"absent\.py does not exist"),
        ("train = dict(output_dir='o')", "has no model, optimizer, lr_multiplier"),
    ],
)
def test_a_configuration_with_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load(str(path))
    assert "mine.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_configuration_that_detectron2_has_kept_loads_again(tmp_path: Path, root: Path) -> None:
    loaded = load(str(lazy_config(tmp_path, root)))
    kept = tmp_path / "config.yaml"
    LazyConfig.save(loaded.cfg, str(kept))
    again = load(str(kept), ["train.max_iter=9"])
    assert again.lazy
    assert again.cfg.train.max_iter == 9
    assert type(instantiate(again.cfg.model)) is DETR


def test_a_configuration_may_use_the_model_zoo(tmp_path: Path) -> None:
    """Whose import fails by itself, for want of pkg_resources."""
    path = tmp_path / "theirs.py"
    keys = ", ".join(PARTS)
    path.write_text(
        "from detectron2 import model_zoo\n"
        'cfg = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")\n'
        f"{keys} = (cfg[key] for key in {PARTS})\ndel cfg\n"
    )
    assert load(str(path)).cfg.model.input_format == "BGR"


def test_yacs_settings_of_ours_begin_with_detrs_recipe(tmp_path: Path, root: Path) -> None:
    loaded = load(str(yacs_config(tmp_path)), ["SOLVER.BASE_LR=2e-4"])
    cfg = loaded.cfg
    assert not loaded.lazy
    assert (cfg.INPUT.FORMAT, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.BASE_LR) == ("RGB", "full_model", 2e-4)
    assert BACKBONE["name"] == cfg.MODEL.DETR_CONTAINER.BACKBONE.NAME
    assert cfg.MODEL.DETR_CONTAINER.NUM_CLASSES == CLASSES


def test_yacs_settings_of_others_keep_detectron2s(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("MODEL:\n  META_ARCHITECTURE: RetinaNet\n")
    cfg = load(str(path)).cfg
    assert (cfg.INPUT.FORMAT, cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.BASE_LR) == ("BGR", False, 0.001)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("MODEL:\n  META_ARCH: DETR\n", [], r"mine\.yaml.*MODEL\.META_ARCH"),
        ("MODEL: [", [], r"mine\.yaml"),
        ("VERSION: 2\n", ["SOLVER.MAXITER=3"], r"SOLVER\.MAXITER: .* no such key: did you mean SOLVER\.MAX_ITER"),
        ("VERSION: 2\n", ["SOLVER.MAX_ITER=many"], r"SOLVER\.MAX_ITER"),
        ("VERSION: 2\n", ["SOLVER.MAX_ITER"], "given as KEY=VALUE"),
    ],
)
def test_mistakes_of_yacs_settings_are_one_line(tmp_path: Path, text: str, overrides: list[str], words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load(str(path), overrides)
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="--module nothing_here cannot be imported"):
        load("detr_r50_50e", module="nothing_here")


def test_detrs_augmentation() -> None:
    """Sizes and crops are among those that DETR has, and half of the images are cropped and flipped."""
    import numpy as np

    np.random.seed(0)
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, :320] = 200
    augment = detr_augmentations()
    flipped = cropped = 0
    for _ in range(60):
        given = AugInput(image)
        done = augment(given)
        height, width = given.image.shape[:2]
        words = str(done)
        flipped += "HFlip" in words
        cropped += "CropTransform" in words
        assert max(height, width) <= 1333
        assert min(height, width) in range(480, 801, 32) or max(height, width) == 1333
    assert 15 < flipped < 45
    assert 15 < cropped < 45


def test_augmentation_without_crops(tmp_path: Path) -> None:
    cfg = load(str(yacs_config(tmp_path)), ["INPUT.CROP.ENABLED=False"]).cfg
    assert "RandomApply" not in repr(from_settings(cfg))
    cfg.INPUT.RANDOM_FLIP = "none"
    with pytest.raises(ValueError, match=r"INPUT\.RANDOM_FLIP=none.*set horizontal and choice"):
        from_settings(cfg)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = "horizontal", True, "relative"
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.TYPE=relative.*absolute_range"):
        from_settings(cfg)


def test_configurations_name_no_file_of_a_machine() -> None:
    for name in NAMES:
        assert not re.search(r"/(?:home|root)/", Path(config_file(name)).read_text())
