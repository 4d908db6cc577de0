"""Detectors' files as they come: wrappers' names, averaged weights, other detectors, and damage."""

import argparse
import copy
import json
import logging
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trained import CLASSES, CPU, SMALL, SMCA, model_of, saved
from torch import Tensor

from detr_container.config.settings import to_dict
from detr_container.datasets.annotations import Category
from detr_container.models.weights.detectors import detector_weights
from detr_container.models.weights.find import find_weights
from detr_container.models.weights.hugging_face import to_hugging_face
from detr_container.models.weights.layouts import to_published
from detr_container.tasks.detection.build import start_from
from detr_container.tasks.detection.export import exported
from detr_container.tasks.detection.trained import Trained, named_rows, open_trained

OURS = model_of(SMALL, 3).state_dict()
OTHER = {name: value + 0.01 if value.is_floating_point() else value for name, value in OURS.items()}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def is_raw(state: dict[str, Tensor]) -> bool:
    return torch.equal(state["query_embed.weight"], OURS["query_embed.weight"])


@pytest.mark.parametrize("names", ["ours", "published", "hugging face"])
@pytest.mark.parametrize(
    "prefix", ["model.", "detr.", "module.", "_orig_mod.", "module._orig_mod.", "model.detr.", "net.model.module."]
)
def test_wrappers_names_are_taken_off(prefix: str, names: str) -> None:
    state = {"ours": dict, "published": to_published, "hugging face": to_hugging_face}[names](OURS)
    extra = {"criterion.empty_weight": torch.ones(4)} if prefix.startswith("model") else {}
    inside, found, layout = detector_weights(find_weights({"state_dict": prefixed(state, prefix) | extra}))
    assert layout == names
    assert found.keys() == OURS.keys()
    assert is_raw(found)
    assert inside.outside == tuple(extra)


def test_a_compiled_part_and_a_mask_head() -> None:
    state = {name.replace("transformer.", "transformer._orig_mod."): v for name, v in to_published(OURS).items()}
    masks = {"mask_head.lay1.weight": torch.zeros(1), "bbox_attention.q_linear.weight": torch.zeros(1)}
    inside, found, _ = detector_weights(find_weights({"model": prefixed(state, "detr.") | masks}))
    assert found.keys() == OURS.keys()
    assert inside.remarks("x.pth", "--weights") == ["x.pth: the mask head is left out (2 tensors)"]


@pytest.mark.parametrize(
    "average",
    [
        {"ema": OTHER},
        {"ema": {"module": OTHER, "updates": 3}},
        {"model_ema": OTHER},
        {"state_dict_ema": OTHER},
        {"ema_state_dict": OTHER},
        {"ema_model": prefixed(OTHER, "module.") | {"n_averaged": torch.tensor(3)}},
    ],
    ids=["ema", "ema.module", "model_ema", "state_dict_ema", "ema_state_dict", "AveragedModel"],
)
def test_of_two_sets_of_weights_one_can_choose(average: dict[str, Any]) -> None:
    both = {"model": OURS, **average}
    for which, raw in (("auto", False), ("ema", False), ("model", True)):
        inside, found, _ = detector_weights(find_weights(both, which), which)
        assert is_raw(found) == raw
        (remark,) = inside.remarks("x.pth", "--weights")
        assert (
            "took the raw weights (model)" if raw else f"took the averaged weights ({next(iter(average))}"
        ) in remark
        assert f"--weights={'ema' if raw else 'model'}" in remark
    assert find_weights({"model": OURS}).remarks("x.pth", "--weights") == []
    with pytest.raises(ValueError, match=r"no averaged weights, only model"):
        find_weights({"model": OURS}, "ema")


def test_two_models_within_one_state() -> None:
    state = prefixed(OURS, "model.") | prefixed(OTHER, "ema_model.")
    for which, raw in (("auto", False), ("ema", False), ("model", True)):
        inside, found, _ = detector_weights(find_weights({"state_dict": state}, which), which)
        assert is_raw(found) == raw
        assert inside.outside == ()
        assert f"took the {'raw' if raw else 'averaged'} weights" in inside.remarks("x", "--weights")[0]


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("DAB-DETR", "refpoint_embed.weight"),
        ("DN-DETR", "label_enc.weight"),
        ("Conditional DETR", "transformer.decoder.ref_point_head.layers.0.weight"),
        ("DINO", "transformer.tgt_embed.weight"),
        ("RT-DETR", "decoder.denoising_class_embed.weight"),
        ("RT-DETR", "model.enc_score_head.weight"),
        ("Deformable DETR", "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"),
        ("multi-scale SMCA-DETR", "transformer.encoder.layers.0.self_attn_8.weight"),
        ("another region-proposal detector than detectron2's .*", "roi_heads.box_predictor.cls_score.weight"),
        ("another dense detector than detectron2's RetinaNet .*", "head.ctrness.weight"),
    ],
)
def test_other_detectors_are_named(name: str, sign: str, tmp_path: Path) -> None:
    state = {key: value for key, value in to_published(OURS).items() if not key.startswith("query_embed")}
    path = saved(tmp_path / "foreign.pth", state | {sign: torch.zeros(2, 2)})
    message = rf"foreign\.pth: these are the weights of {name} \(.*DETR and single-scale SMCA-DETR can be loaded"
    with pytest.raises(ValueError, match=message):
        open_trained(path, CPU)
    with pytest.raises(ValueError, match=message):
        start_from(model_of(SMALL, 3), SMALL, CLASSES, path)


def test_classes_are_read_of_annotation_files_and_of_runs(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    listed = [{"id": 7, "name": "b"}, {"id": 2, "name": "a"}]
    for content, encoding in ((listed, "utf-8"), ({"categories": listed}, "utf-8-sig"), (listed, "utf-16")):
        path.write_text(json.dumps(content), encoding=encoding)
        assert [(c.id, c.name) for c in named_rows(path, 2)] == [(2, "a"), (7, "b")]
    for content in ([], {}, {"categories": 3}, [3], [{"id": 1}], [{"id": "1", "name": "a"}], [*listed, listed[0]], "x"):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"classes\.json has no sound list of categories: .*Correct the file"):
            named_rows(path, 2)


def test_no_coco_name_for_other_numbers_of_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path / "tuned.pth", to_published(OURS))
    assert [category.name for category in open_trained(path, CPU).classes] == ["class 0", "class 1", "class 2"]
    assert "4 class rows without names" in caplog.text
    listed = tmp_path / "annotations.json"
    categories = [{"id": number, "name": name} for number, name in ((1, "RBC"), (2, "WBC"), (7, "Platelets"))]
    listed.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    named = open_trained(path, CPU, "", "auto", listed).classes
    assert [(category.id, category.name) for category in named] == [(1, "RBC"), (2, "WBC"), (7, "Platelets")]
    listed.write_text(json.dumps({"images": [], "annotations": [], "categories": categories[:2]}))
    assert [c.name for c in open_trained(path, CPU, "", "auto", listed).classes] == ["class 0", "RBC", "WBC"]
    listed.write_text(json.dumps({"images": [], "annotations": [], "categories": categories[2:]}))
    with pytest.raises(ValueError, match="1 categories up to id 7, the weights 3 classes"):
        open_trained(path, CPU, "", "auto", listed)


def test_panoptic_heads_have_the_names_of_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where a mask head or the file says that they are: 250 classes alone may be any."""
    state = to_published(model_of(SMALL, 250).state_dict())
    masks = {"mask_head.lay1.weight": torch.zeros(1), "bbox_attention.q_linear.weight": torch.zeros(1)}
    arguments = argparse.Namespace(dataset_file="coco_panoptic", nheads=8)
    for path in (
        saved(tmp_path / "masks.pth", prefixed(state, "detr.") | masks),
        saved(tmp_path / "wrapped.pth", prefixed(prefixed(state, "detr.") | masks, "model.")),
        saved(tmp_path / "says.pth", state, args=arguments),
    ):
        caplog.clear()
        names = {category.id: category.name for category in open_trained(path, CPU).classes}
        assert len(names) == 250
        expected = {1: "person", 90: "toothbrush", 92: "banner", 149: "road", 200: "rug-merged"}
        assert expected.items() <= names.items()
        assert (names[91], names[249]) == ("(unused id 91)", "(unused id 249)")
        assert "251 class rows by panoptic COCO id (--experiment overrules)" in caplog.text
    path = saved(tmp_path / "plain.pth", state)
    assert open_trained(path, CPU).classes[1].name == "class 1"
    assert '251 class rows without names: "class 0", "class 1", ... (--classes ANNOTATIONS names them)' in caplog.text
    assert start_from(model_of(SMALL, 1), SMALL, (Category(1, "road"),), tmp_path / "masks.pth").classes == ("road",)


@pytest.mark.parametrize("identity", [-1, 3_000_000_000])
def test_export_refuses_ids_without_a_row(identity: int) -> None:
    classes = (Category(1, "cat"), Category(2, "dog"), Category(identity, "zebra"))
    trained = Trained(model_of(SMALL, 3), SMALL, classes, Path("run"), 0)
    with pytest.raises(ValueError, match=rf"category id {identity}: .*--rows order"):
        exported(trained, "published")
    assert len(exported(trained, "published", "order")["class_embed.bias"]) == 4


def test_smca_exports_one_row_more_than_ids() -> None:
    """The published constructor makes them: ids 0 .. n - 1 have n + 1 rows."""
    classes = (Category(0, "cat"), Category(1, "dog"), Category(2, "zebra"))
    state = exported(Trained(model_of(SMCA, 3), SMCA, classes, Path("run"), 0), "published")
    assert state["class_embed.weight"].shape[0] == len(state["class_embed.bias"]) == 4
    assert state["class_embed.bias"][3] == -1e4


@pytest.mark.parametrize(
    "arguments", [{"nheads": "x"}, {"nheads": 7}, {"smooth": "x"}, {"smooth": -1}, {3: 4, "": None}]
)
def test_arguments_that_cannot_be(arguments: dict[Any, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pth", to_published(model_of(SMCA, 3).state_dict()), args=arguments)
    message = refusal(lambda: open_trained(path, CPU))
    assert bool(message) == (3 not in arguments)
    assert "\n" not in message


def refusal(act: Callable[[], object]) -> str:
    """What a ValueError says, the only kind of error there may be; empty when there is none."""
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


def damages() -> list[Callable[[dict[str, Any]], object]]:
    """Ways to spoil a checkpoint of ours; each must be refused."""
    name = "encoder.layers.0.norm1.weight"

    def tensor(make: Callable[[Tensor], object], key: str = name) -> Callable[[dict[str, Any]], object]:
        return lambda c: c["model"].__setitem__(key, make(c["model"][key]))

    def setting(section: str, key: str, value: object) -> Callable[[dict[str, Any]], object]:
        return lambda c: c["experiment"][section].__setitem__(key, value)

    def entry(key: str, value: object) -> Callable[[dict[str, Any]], object]:
        return lambda c: c.__setitem__(key, value)

    whole = [lambda v: v.to(torch.complex64), lambda v: v.to(torch.int64), lambda v: v.bool(), lambda v: v * torch.nan]
    shape = [lambda v: v[:3], lambda v: v[None], lambda v: v.sum(), lambda v: v[:0]]
    kinds = [lambda v: v.to_sparse(), lambda v: v.tolist(), lambda v: None, lambda v: {"a": v}, lambda v: "text"]
    keys = [name, "query_embed.weight", "class_embed.bias", "class_embed.weight", "decoder.layers.0.ffn.linear1.weight"]
    result = [tensor(make, key) for make in (*whole, *shape, *kinds) for key in keys]
    result += [tensor(lambda v: v.to("meta")), tensor(lambda v: torch.zeros(1, dtype=v.dtype).expand_as(v))]
    result += [lambda c, key=key: c["model"].pop(key) for key in keys]
    result += [lambda c: c["model"].__setitem__(3, torch.zeros(1)), lambda c: c["model"].__setitem__("a.b", 3)]
    result += [lambda c: c["model"].__setitem__("encoder.more", torch.zeros(1))]
    result += [entry("model", value) for value in (None, [], {}, "x", 3)]
    result += [entry("experiment", value) for value in (None, [], {"head": []}, "x", {"strange": 1})]
    result += [entry("classes", value) for value in (None, [], 3, "abc", [[1]], [[1, 2]] * 3, [["a", "b"]] * 3)]
    result += [entry("classes", [[1, "a"], [1, "b"], [2, "c"]]), entry("classes", [[1, "a"]])]
    result += [entry("step", value) for value in (None, "4", -1, [], True)]
    result += [setting("head", "heads", value) for value in (0, -1, "x", 7, None)]
    result += [setting("head", "queries", value) for value in (0, 5, -3)]
    result += [setting("backbone", "name", value) for value in ("resnet50", "none such", "", 3)]
    return result


TINY = replace(SMALL, backbone=replace(SMALL.backbone, name="container_light_tiny", frozen_stages=0))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_every_damage_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    classes = [[category.id, category.name] for category in CLASSES]
    good: dict[str, Any] = {
        "model": model_of(TINY, 3).state_dict(),
        "experiment": to_dict(TINY),
        "classes": classes,
        "step": 3,
    }
    path = tmp_path / "c.pt"
    model = model_of(TINY, 3)
    before = copy.deepcopy(model.state_dict())
    for number, damage in enumerate(damages()):
        spoilt = copy.deepcopy(good)
        damage(spoilt)
        torch.save(spoilt, path)
        message = refusal(lambda: open_trained(path, CPU))
        assert message, f"damage {number} was taken in silence"
        assert "\n" not in message
        if refusal(lambda: start_from(model, TINY, CLASSES, path)):
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), number
        else:
            model.load_state_dict(before)


@pytest.mark.long
def test_random_damage_of_published_and_hugging_face_files(tmp_path: Path) -> None:
    """Files without an experiment of their own, of which everything must be guessed: errors in words only."""
    draw = random.Random(0)
    change: list[Callable[[Tensor], object]] = [
        lambda v: v[:1],
        lambda v: v[None],
        lambda v: v.flatten(),
        lambda v: v.sum(),
        lambda v: v.to(torch.complex64),
        lambda v: v.to(torch.int32),
        lambda v: v.to_sparse(),
        lambda v: v.tolist(),
        lambda v: v.new_zeros(1).expand(10**9),
        lambda v: v.new_full((), torch.inf).expand(v.shape).clone(),
    ]
    path = tmp_path / "c.pt"
    refused = 0
    for number in range(24):
        state: dict[str, Any] = dict((to_published, to_hugging_face)[number % 2](OURS))
        inner = [name for name in state if "backbone" not in name]
        name = draw.choice(inner)
        if number % 8 == 0:
            del state[name]
        else:
            state[name] = draw.choice(change)(state[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save({"model": state}, path)
            message = refusal(lambda: open_trained(path, CPU))
        assert "\n" not in message
        refused += bool(message)
    # A layer's norm without its first half may be guessed to be another model; most cannot.
    assert refused >= 22
