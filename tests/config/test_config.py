"""Settings: the same from the command line, a file and a checkpoint; wrong ones are named, idle ones are reported."""

import ast
import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from runs import tiny

from detr_container.config import settings as config
from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named, names
from detr_container.config.settings import difference, flatten, from_dict, load, to_dict, validate
from detr_container.config.traits import traits_of

ALL = [pytest.param(named(name).experiment, id=name) for name in names()]


@pytest.mark.parametrize("experiment", ALL)
def test_json_and_back(experiment: DetectionExperiment, tmp_path: Path) -> None:
    assert from_dict(to_dict(experiment)) == experiment
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(experiment)))
    again = load(path)
    assert again == experiment
    # == would not distinguish a list from a tuple inside a path or a number written as text.
    assert repr(again) == repr(experiment)


@pytest.mark.parametrize("experiment", ALL)
def test_a_named_experiment_needs_no_warning(experiment: DetectionExperiment) -> None:
    if experiment.data.root is None:
        experiment = replace(experiment, data=replace(experiment.data, root=Path("coco")))
    assert validate(experiment) == []


def test_flatten_names_every_setting_once() -> None:
    def leaves(value: Any, prefix: str = "") -> list[str]:
        names = []
        for field in fields(value):
            entry = getattr(value, field.name)
            names += leaves(entry, f"{field.name}.") if is_dataclass(entry) else [prefix + field.name]
        return names

    assert sorted(flatten(DetectionExperiment())) == sorted(leaves(DetectionExperiment()))


def test_difference() -> None:
    a = DetectionExperiment()
    b = replace(a, seed=3, train=replace(a.train, lr=1.0))
    assert difference(a, b) == {"seed": (0, 3), "train.lr": (1e-4, 1.0)}
    assert difference(b, b) == {}


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("head", "querries", 5, r"head\.querries: Unexpected"),
        ("head", "queries", "many", r"head\.queries: .*integer"),
        ("train", "schedule", "linear", r"train\.schedule: .*'step', 'cosine' or 'deit'"),
        ("", "sead", 1, r"sead: Unexpected"),
        ("data", "crop_range", [1], r"data\.crop_range\.1: Field required"),
    ],
)
def test_a_wrong_setting_in_a_file_is_named(section: str, key: str, value: object, message: str) -> None:
    values = to_dict(DetectionExperiment())
    (values[section] if section else values)[key] = value
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(DetectionExperiment()))[:100])
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head__kind": "detr", "head__smooth": 4.0}, "head.smooth has no effect on DETR"),
        ({"head__kind": "detr", "head__gaussian": "type1"}, "head.gaussian has no effect on DETR"),
        ({"backbone__name": "resnet18", "backbone__drop_path": 0.1}, "backbone.drop_path has no effect on a ResNet"),
        ({"loss__no_object_weight": 0.2}, "loss.no_object_weight has no effect on focal loss"),
        ({"loss__classification": "softmax", "loss__focal_gamma": 1.0}, "loss.focal_gamma has no effect on softmax"),
        ({"data__crop_range": (30, 40)}, "data.crop_range has no effect with data.augment=flip"),
        ({"data__resize": "square"}, "data.max_size has no effect on square images"),
        ({"train__lr_drop": 1}, "train.lr_drop has no effect on the cosine schedule"),
        ({"train__lr_drop_again": 1}, "train.lr_drop_again has no effect on the cosine schedule"),
        (
            {"train__schedule": "step", "train__lr_drop": 1, "train__lr_drop_again": 9},
            "train.lr_drop_again=9 has no effect: it is not before the end (train.epochs=2)",
        ),
        (
            {"pyramid__channels": 64},
            "pyramid.channels has no effect on smca: it is of head.kind=retinanet or mask_rcnn",
        ),
        ({"train__schedule": "step"}, "train.lr_drop=40 has no effect: it is not before the end (train.epochs=2)"),
        ({"head__position": "learned", "train__lr_backbone": 0.0}, "train.lr_backbone=0 also stops the learned pos"),
    ],
)
def test_a_setting_without_effect_is_reported(changed: dict[str, Any], message: str) -> None:
    warnings = validate(tiny(Path("data"), **changed))
    assert len(warnings) == 1
    assert warnings[0].startswith(message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head__pre_norm": True}, r"head\.pre_norm=True: SMCA-DETR"),
        ({"head__width": 33}, r"head\.width=33 cannot be shared by head\.heads=2"),
        ({"head__width": 30}, r"head\.width=30: sine positions need a multiple of 4"),
        ({"backbone__dilation": True}, r"only a ResNet can be dilated, not container_light_tiny"),
        ({"backbone__stride": 16, "backbone__stage": -2}, r"backbone\.stride=16 and backbone\.stage=-2 both choose"),
        ({"backbone__stride": -8}, r"backbone\.stride=-8: it must be 0 or greater"),
        ({"data__root": None, "data__make_shapes": (1, 1, 64)}, r"data\.root says in which folder"),
        ({"data__scales": ()}, r"data\.scales=\(\): give one or more"),
        ({"data__crop_range": (60, 30)}, r"data\.crop_range=\(60, 30\)"),
        ({"train__lr": float("nan")}, r"train\.lr=nan: it must be greater than 0"),
        ({"train__lr": -1.0}, r"train\.lr=-1\.0: it must be greater than 0"),
        ({"train__batch": 0}, r"train\.batch=0: it must be greater than 0"),
        ({"train__clip": -0.1}, r"train\.clip=-0\.1: it must be 0 or greater"),
        ({"loss__l1_weight": -5.0}, r"loss\.l1_weight=-5\.0: it must be 0 or greater"),
        ({"train__ema_decay": 1.0}, r"train\.ema_decay=1\.0: it must be at least 0 and less than 1"),
        ({"head__dropout": 1.5}, r"head\.dropout=1\.5: it must be at least 0 and less than 1"),
        ({"seed": -1}, r"seed=-1: it must be 0 or greater"),
        ({"train__schedule": "step", "train__lr_drop": 3, "train__lr_drop_again": 3}, r"lr_drop_again=3 is not after"),
        ({"head__kind": "retinanet", "backbone__stride": 16}, r"backbone\.stride=16.*retinanet reads all of the back"),
    ],
)
def test_a_value_that_no_run_can_have(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(tiny(Path("data"), **changed))


def test_settings_of_queries_have_no_effect_on_anchors() -> None:
    base = named("retinanet_demo").experiment
    assert validate(base) == []
    changed = replace(base, head=replace(base.head, width=64, smooth=4.0), loss=replace(base.loss, focal_gamma=1.0))
    changed = replace(changed, pyramid=replace(base.pyramid, hidden=5))
    assert [warning.split(" ")[0] for warning in validate(changed)] == [
        *("head.width", "head.smooth", "loss.focal_gamma", "pyramid.hidden")
    ]


def test_every_option_is_explained(repository: Path) -> None:
    """The line after a field is what --help shows of it; a section is explained by its class."""
    missing, classes = [], 0
    folders = ("commands", "config", "measure", "compare", "jobs")
    for path in sorted(path for folder in folders for path in (repository / "detr_container" / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith(("Config", "Options", "Experiment")):
                continue
            classes += 1
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                    continue
                section = field.target.id in {
                    "backbone",
                    "head",
                    "pyramid",
                    "loss",
                    "data",
                    "train",
                    "settings",
                    "slurm",
                }
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if not explained and not section and "ClassVar" not in ast.unparse(field.annotation):
                    missing.append(f"{path.name}: {node.name}.{field.target.id}")
    assert missing == []
    assert classes > 20


def test_every_setting_states_what_it_means_for_a_resume_and_for_fairness() -> None:
    traits = traits_of(DetectionExperiment)
    assert list(traits) == list(config.flatten(DetectionExperiment()))
    fixed = {name for name, each in traits.items() if not each.resume.may_change}
    assert {"head.width", "loss.giou_weight", "seed", "init", "train.batch", "backbone.name"} <= fixed
    assert not {"backbone.weights", "train.lr", "train.epochs", "data.workers", "device"} & fixed
    topics = {name: each.topic.name for name, each in traits.items()}
    assert topics["data.eval_size"] == "input size"
    assert topics["train.lr_backbone"] == "schedule"
    assert topics["backbone.norm"] == "norm policy"
    assert [name for name in topics if name.startswith("data.") and not topics[name]] == [
        *("data.root", "data.train_images", "data.train_annotations", "data.val_images", "data.val_annotations"),
        *("data.d2_dataset", "data.d2_import", "data.make_shapes", "data.workers"),
    ]
    assert all(each.topic.compared == name.startswith(("head.", "pyramid.", "loss.")) for name, each in traits.items())


def test_a_file_of_another_task_is_refused_and_one_without_is_of_detection() -> None:
    values = config.to_dict(DetectionExperiment())
    assert values.pop("task") == "detection"
    assert config.from_dict(values) == DetectionExperiment()
    with pytest.raises(
        ValueError, match=r"there is no task 'knitting' here, only detection, classification: install the package"
    ):
        config.from_dict({**values, "task": "knitting"})


def test_help_does_not_wait_for_torch(repository: Path) -> None:
    """The commands and the settings stay light, so that --help is instant."""
    check = "import sys, detr_container.commands.cli; print({'torch', 'numpy', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout == "set()\n"
