"""The named experiments are the published ones."""

import pytest

from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named, names
from detr_container.config.settings import validate

FIFTY = ["detr_r50_50e", "detr_r50_dc5_50e", "detr_container_light_50e", "smca_r50_50e", "smca_container_light_50e"]


ONE_X = ["retinanet_r50_1x", "retinanet_container_light_1x", "mask_rcnn_r50_1x", "mask_rcnn_container_light_1x"]
DEMOS = ["demo", "retinanet_demo", "mask_rcnn_demo", "compare_demo", "debug"]
OURS = [name for name in names() if named(name).experiment.task == "detection"]


def of(name: str) -> DetectionExperiment:
    return named(name).experiment


def test_the_list() -> None:
    assert [*FIFTY, *ONE_X, *DEMOS] == OURS
    for name in OURS:
        entry = named(name)
        assert entry.experiment.name == name
        assert entry.summary.endswith((".", ":"))


@pytest.mark.parametrize("name", FIFTY)
def test_the_published_schedule(name: str) -> None:
    train = of(name).train
    assert (train.epochs, train.schedule, train.lr_drop, train.warmup_steps) == (50, "step", 40, 0)
    assert (train.lr, train.lr_backbone, train.weight_decay, train.clip) == (1e-4, 1e-5, 1e-4, 0.1)
    assert train.batch == 16
    assert train.batch % train.micro_batch == 0
    assert train.ema_decay == 0
    assert train.precision == "fp32"


@pytest.mark.parametrize("name", ONE_X)
def test_the_published_recipe_of_feature_pyramids(name: str) -> None:
    experiment = of(name)
    train, data, backbone, pyramid = experiment.train, experiment.data, experiment.backbone, experiment.pyramid
    assert (train.epochs, train.schedule, train.lr_drop, train.lr_drop_again, train.warmup_steps) == (
        12,
        "step",
        8,
        11,
        500,
    )
    assert (train.lr, train.lr_backbone, train.weight_decay, train.clip) == (1e-4, 1e-4, 0.05, 0.0)
    assert (train.batch, train.micro_batch, train.precision) == (16, 2, "fp32")
    assert (data.augment, data.resize, data.scales) == ("flip", "shortest", (800,))
    assert (data.max_size, data.eval_size) == (1333, 800)
    assert (backbone.norm, backbone.drop_path, pyramid.map_norm) == ("frozen", 0.0, "none")
    assert (backbone.name, backbone.frozen_stages) == (
        ("container_light", 0) if "container" in name else ("resnet50", 2)
    )
    assert (pyramid.channels, pyramid.convolutions, pyramid.hidden) == (256, 4, 1024)
    assert (pyramid.score_threshold, pyramid.nms, pyramid.detections, pyramid.proposals) == (0.05, 0.5, 100, 1000)
    assert experiment.head.kind == name.rsplit("_", 3 if "container" in name else 2)[0]
    assert validate(experiment) == []


@pytest.mark.parametrize("name", FIFTY)
def test_the_published_images(name: str) -> None:
    data = of(name).data
    assert (data.augment, data.resize) == ("detr", "shortest")
    assert data.scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (data.max_size, data.eval_size) == (1333, 800)
    assert (data.crop_resize, data.crop_range) == ((400, 500, 600), (384, 600))


@pytest.mark.parametrize("name", FIFTY)
def test_the_published_models(name: str) -> None:
    experiment = of(name)
    head, loss = experiment.head, experiment.loss
    assert (head.width, head.heads, head.encoder_layers, head.decoder_layers) == (256, 8, 6, 6)
    assert (head.feedforward, head.dropout, head.pre_norm, head.position) == (2048, 0.1, False, "sine")
    assert (loss.l1_weight, loss.giou_weight, loss.cost_l1, loss.cost_giou) == (5, 2, 5, 2)
    assert loss.auxiliary
    if name.startswith("smca"):
        assert (head.kind, head.queries, head.gaussian, head.smooth) == ("smca", 300, "type3", 8)
        assert (loss.classification, loss.class_weight, loss.cost_class) == ("focal", 2, 2)
        assert (loss.focal_alpha, loss.focal_gamma) == (0.25, 2)
    else:
        assert (head.kind, head.queries) == ("detr", 100)
        assert (loss.classification, loss.class_weight, loss.cost_class) == ("softmax", 1, 1)
        assert loss.no_object_weight == 0.1


def test_the_published_backbones() -> None:
    for name in FIFTY:
        backbone = of(name).backbone
        assert backbone.weights == "imagenet"
        assert backbone.norm == "frozen"
        assert backbone.stage == -1
        if "container" in name:
            assert (backbone.name, backbone.frozen_stages) == ("container_light", 0)
        else:
            # The stem and layer1 keep their weights.
            assert (backbone.name, backbone.frozen_stages) == ("resnet50", 2)
        assert backbone.dilation == ("dc5" in name)


def test_only_what_is_published_is_claimed() -> None:
    claimed = {name: "; ".join(map(str, named(name).published)) for name in OURS}
    assert "38.9" in claimed["detr_container_light_50e"]
    assert "44.2" in claimed["smca_container_light_50e"]
    assert "41.0" in claimed["smca_r50_50e"]
    assert "34.9" in claimed["detr_r50_50e"]
    assert "43.8" in claimed["retinanet_container_light_1x"]
    assert "36.5" in claimed["retinanet_r50_1x"]
    assert "45.1 (mask AP 41.3)" in claimed["mask_rcnn_container_light_1x"]
    assert "38.2 (mask AP 34.7)" in claimed["mask_rcnn_r50_1x"]
    assert [name for name, ap in claimed.items() if not ap] == ["detr_r50_dc5_50e", *DEMOS]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("smca_r50", "smca_r50_50e"),
        ("detr_containr_light_50e", "did you mean detr_container_light_50e"),
        ("xyz", "there are detr_r50_50e, "),
    ],
)
def test_a_misspelt_name(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"there is no experiment '{given}'.*{message}"):
        named(given)
