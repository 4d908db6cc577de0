"""The grid of a comparison: what its runs share, what they do not, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny

from detr_container.compare.comparison import Comparison
from detr_container.compare.grid import check_arm, on_backbone, on_one_grid, runs_of, with_head
from detr_container.compare.options import CompareOptions
from detr_container.compare.reading import settings_of
from detr_container.config.detection import DetectionExperiment, LossConfig, detection
from detr_container.config.experiments import named
from detr_container.config.settings import validate
from detr_container.datasets.batch import Batch
from detr_container.datasets.loader import StepBatches, batches, training_loader
from detr_container.datasets.padding import Padding
from detr_container.tasks.detection.build import build_detector, open_data

BACKBONES = ("resnet18", "container_light_tiny", "timm/convnext_atto")


def grid(**changed: Any) -> list[Any]:
    usual: dict[str, Any] = {"heads": ("detr", "smca"), "backbones": BACKBONES, "seeds": (0, 3), "base": "debug"}
    return runs_of(Path("runs/x"), **{**usual, **changed})


def test_every_combination_has_a_run_of_its_own() -> None:
    runs = grid()
    assert len({run.folder for run in runs}) == 2 * 3 * 2
    found = {(run.experiment.head.kind, run.experiment.backbone.name, run.experiment.seed) for run in runs}
    assert found == {(head, name, seed) for head in ("detr", "smca") for name in BACKBONES for seed in (0, 3)}
    assert runs[2].folder == Path("runs/x/detr-timm_convnext_atto-seed0")
    # All arms of a seed before the next seed, so that an unfinished comparison can be evaluated.
    assert [run.experiment.seed for run in runs] == [0] * 6 + [3] * 6


def test_under_one_head_only_the_backbone_differs() -> None:
    for head in ("detr", "smca"):
        settings = [settings_of(run.experiment) for run in grid() if run.experiment.head.kind == head]
        for one in settings:
            del one["backbone.name"]
        assert len({json.dumps(one) for one in settings}) == 1


def test_the_demo_gives_every_head_as_many_positions() -> None:
    runs = runs_of(Path("x"), ("detr", "smca"), ("resnet18", "container_light_small"), (0,), "compare_demo")
    strides = [build_detector(run.experiment, 3, weights=False).backbone.strides for run in runs]
    assert strides == [(16,)] * 4


def keeping_all(experiment: DetectionExperiment) -> DetectionExperiment:
    """The same with the detections of every epoch, which are compared before any run is finished."""
    return replace(experiment, train=replace(experiment.train, keep_detections="all"))


def test_all_stages_are_trained_unless_settings_say_otherwise() -> None:
    published = runs_of(Path("x"), ("detr",), ("resnet50",), (0,))[0].experiment
    assert named("detr_r50_50e").experiment.backbone.frozen_stages == 2
    assert published.backbone.frozen_stages == 0
    frozen = runs_of(Path("x"), ("detr",), ("resnet50",), (0,), settings=("backbone.frozen_stages=2",))[0]
    assert frozen.experiment == keeping_all(named("detr_r50_50e").experiment)
    settings = ("backbone.frozen_stages=2", "train.keep_detections=newest_and_best")
    (plain,) = runs_of(Path("x"), ("detr",), ("resnet50",), (0,), settings=settings)
    assert plain.experiment == named("detr_r50_50e").experiment


def test_without_a_base_each_head_has_its_published_experiment() -> None:
    runs = runs_of(Path("x"), ("detr", "smca"), ("resnet50",), (0,))
    for run, name in zip(runs, ("detr_r50_50e", "smca_r50_50e"), strict=True):
        assert run.experiment == keeping_all(on_backbone(named(name).experiment, "resnet50"))


def test_the_other_head_on_a_base_has_its_own_loss_and_nothing_else() -> None:
    base, other = named("debug").experiment, with_head("debug", "detr")
    assert with_head("debug", "smca") == base
    assert other.loss == named("detr_r50_50e").experiment.loss
    assert replace(other, head=base.head, loss=base.loss) == base
    assert replace(other.head, kind="smca") == base.head


def test_heads_of_detectron2_have_their_published_experiments_or_a_base() -> None:
    heads = ("retinanet", "mask_rcnn")
    for run, name in zip(
        runs_of(Path("x"), heads, ("container_light",), (0,)), ("retinanet_r50_1x", "mask_rcnn_r50_1x"), strict=True
    ):
        assert run.experiment == keeping_all(on_backbone(named(name).experiment, "container_light"))
    base = named("debug").experiment
    for head in heads:
        other = with_head("debug", head)
        assert other.head == replace(base.head, kind=head)
        assert replace(other, head=base.head, loss=base.loss) == base
        # No setting of a loss that it does not have.
        assert other.loss == LossConfig()
    assert with_head("retinanet_r50_1x", "smca").loss == named("smca_r50_50e").experiment.loss


def test_a_feature_pyramid_reads_all_maps_whichever_the_base_chose() -> None:
    """The base of `make compare-demo` chose one, of stride 16."""
    base = named("compare_demo").experiment
    assert base.backbone.stride == 16
    other = with_head("compare_demo", "retinanet")
    assert other.backbone == replace(base.backbone, stride=0)
    validate(other)
    (asked,) = runs_of(Path("x"), ("retinanet",), ("resnet18",), (0,), "compare_demo", ("backbone.stride=16",))
    with pytest.raises(ValueError, match=r"backbone.stride=16.*retinanet reads all of the backbone's maps"):
        check_arm(asked.experiment)


def test_an_arm_that_needs_detectron2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_container.base.optional.find_spec", lambda name: None)
    check_arm(with_head("debug", "detr"))
    with pytest.raises(ValueError, match=r"detectron2 is not installed: .*git clone"):
        check_arm(with_head("debug", "mask_rcnn"))


def test_weights_are_named_with_the_backbone(tmp_path: Path) -> None:
    runs = grid(backbones=("resnet18", "container_light_tiny=tiny.pth"), base="debug")
    weights = {run.experiment.backbone.name: run.experiment.backbone.weights for run in runs}
    assert weights == {"resnet18": "none", "container_light_tiny": "tiny.pth"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": ()}, "at least one each of --heads, --backbones and --seeds"),
        ({"seeds": (1, 1)}, r"--seeds 1 1: name each once"),
        ({"backbones": ("resnet18", "resnet18")}, r"--backbones resnet18 resnet18: name each once"),
        ({"base": "debgu"}, r"there is no experiment 'debgu': did you mean debug"),
        ({"settings": ("seed=3",)}, r"--setting seed: the comparison sets it; use --heads, --backbones or --seeds"),
        ({"settings": ("backbone.name=resnet50",)}, r"--setting backbone.name: the comparison sets it"),
        ({"settings": ("train.lrr=1",)}, r"there is no setting 'train.lrr'"),
        ({"settings": ("train.lr=-1",)}, r"train.lr=-1.0: it must be greater than 0"),
        ({"settings": ("train.lr",)}, r"'train.lr': write setting=value"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**changed)


def test_an_arm_that_cannot_be_ends_no_other() -> None:
    """Weights that no program can download, and settings that one backbone cannot have."""
    runs = grid(backbones=("container_light", "resnet50"), base="")
    light, resnet = (runs[place].experiment for place in (0, 1))
    check_arm(resnet)
    with pytest.raises(ValueError, match=r"--backbones container_light=container_light.pth"):
        check_arm(light)
    with pytest.raises(ValueError, match=r"backbone.dilation"):
        check_arm(replace(light, backbone=replace(light.backbone, dilation=True)))


@pytest.mark.parametrize("heads", [("mask_rcnn", "detr"), ("detr", "mask_rcnn")])
def test_data_without_masks_are_no_hindrance_to_other_heads(heads: Any, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")
    data = tmp_path / "data"
    shutil.copytree(root, data)
    for path in (data / "annotations").iterdir():
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            row.pop("segmentation", None)
        path.write_text(json.dumps(content))
    options = CompareOptions(
        heads=heads, backbones=("container_light_tiny",), base="debug", name="x", runs=tmp_path, submit=True
    )
    whole = Comparison.of(replace(options, setting=(f"data.root={root}",)), "compare")
    assert not whole.refused
    bare = Comparison.of(replace(options, setting=(f"data.root={data}",)), "compare")
    assert list(bare.refused) == ["Mask R-CNN, container_light_tiny"]
    assert "without a segmentation" in bare.refused["Mask R-CNN, container_light_tiny"]
    assert any(line.startswith("DETR, container_light_tiny: ") for line in bare.plan())
    with pytest.raises(ValueError, match=r"without a segmentation"):
        Comparison.of(replace(options, heads=("mask_rcnn",), setting=(f"data.root={data}",)), "compare")


# -- the same for all backbones ---------------------------------------------------------------------------------------


def seen(experiment: DetectionExperiment, steps: int) -> list[Batch]:
    """The micro batches of a run's first steps, as its trainer asks for them."""
    data, train = open_data(experiment), experiment.train
    model = build_detector(experiment, len(data.classes), weights=False)
    sampler = StepBatches(
        len(data.train),
        seed=experiment.seed,
        batch=train.batch,
        micro_batch=train.micro_batch,
        total_steps=steps,
    )
    loader = training_loader(data.train, sampler, padding=Padding(model.backbone.size_multiple))
    supply = batches(loader)
    return [next(supply) for _ in range(steps * train.batch // train.micro_batch)]


def test_backbones_that_need_other_grids_get_one_for_all() -> None:
    """Sides in multiples of 1 and of 32 pixels share a grid of 32, with one of 64 that is too fine."""
    usual = [on_backbone(named("debug").experiment, name) for name in BACKBONES]
    assert on_one_grid(usual) == 0
    coarse = on_backbone(usual[0], "timm/mobilevitv2_050")
    assert on_one_grid([*usual, coarse]) == 64
    settled = [replace(each, data=replace(each.data, canvas_multiple=64)) for each in (*usual, coarse)]
    assert on_one_grid(settled) == 0
    assert on_one_grid([*usual, replace(coarse, data=replace(coarse.data, canvases="off"))]) == 0
    strange = replace(usual[1], data=replace(usual[1].data, canvas_multiple=40))
    with pytest.raises(ValueError, match=r"data.canvas_multiple=40: this backbone takes .* multiples of 16 pixels"):
        on_one_grid([strange])


def test_a_comparison_has_one_grid(root: Path, tmp_path: Path) -> None:
    options = CompareOptions(
        heads=("detr",),
        backbones=("resnet18", "timm/mobilevitv2_050"),
        base="debug",
        name="x",
        runs=tmp_path,
        setting=(f"data.root={root}",),
    )
    runs = Comparison.of(options, "compare").runs
    assert [detection(run.experiment).data.canvas_multiple for run in runs] == [64] * len(runs)
    alike = Comparison.of(replace(options, backbones=("resnet18", "container_light_tiny")), "compare").runs
    assert [detection(run.experiment).data.canvas_multiple for run in alike] == [0] * len(alike)


def test_the_same_seed_shows_the_same_images_to_every_backbone(root: Path) -> None:
    """Order, augmentation and the composition of batches; only the padding at their edges may differ."""
    base = tiny(
        root, data__augment="detr", data__scales=(48, 64), data__crop_range=(32, 60), data__crop_resize=(48, 64)
    )
    first, *others = [seen(on_backbone(base, name), steps=6) for name in BACKBONES]
    assert len({tuple(batch.image_ids) for batch in first}) > 1
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a.image_ids == b.image_ids
            assert torch.equal(a.sizes, b.sizes)
            assert torch.equal(a.targets.boxes, b.targets.boxes)
            assert torch.equal(a.targets.labels, b.targets.labels)
            for (height, width), one, same in zip(a.sizes.tolist(), a.images, b.images, strict=True):
                assert torch.equal(one[:, :height, :width], same[:, :height, :width])


def test_another_seed_shows_them_in_another_order(root: Path) -> None:
    """That the test above could fail."""
    base = tiny(root)
    one, other = (seen(replace(base, seed=seed), steps=4) for seed in (0, 1))
    assert [batch.image_ids for batch in one] != [batch.image_ids for batch in other]


@pytest.mark.parametrize("head", ["detr", "smca"])
def test_the_head_starts_the_same_over_every_backbone(head: Any, root: Path) -> None:
    """All but the projection, whose weights take the backbone's channels and whose bias is drawn for as many."""
    states = []
    for name in BACKBONES:
        experiment = on_backbone(with_head("debug", head), name)
        state = build_detector(experiment, 3, weights=False).state_dict()
        states.append({key: value for key, value in state.items() if not key.startswith(("backbone.", "input_proj."))})
    assert len(states[0]) > 50
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in states[0].items())
