"""What a run notes of the weights it starts from: of a run of ours all that makes it what it is, else what is known."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import debug as classify_debug
from runs import TRAIN, VAL, final_state, tiny, train_in
from safetensors.torch import save_file

from detr_container.base.checked import mistakes
from detr_container.base.files import read_jsonl, sha256, write_json
from detr_container.config.backbones import BackboneConfig
from detr_container.config.experiments import named
from detr_container.datasets.folders import open_folder
from detr_container.datasets.single_shapes import make_single_shapes
from detr_container.engine.backbones import build_backbone
from detr_container.engine.classifiers import build_classifier
from detr_container.engine.pretraining import check_unchanged, identity, in_words, pretraining
from detr_container.engine.run import Run
from detr_container.engine.run_files import Pretraining
from detr_container.engine.train import train


def noted(run: Path) -> dict[str, Any]:
    """What the newest start of a run notes."""
    found = read_jsonl(run / "provenance.jsonl")[-1].get("pretraining", {})
    assert all(not mistakes(each, Pretraining) for each in found.values())
    return dict(found)


@pytest.fixture(scope="module")
def first(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, both evaluated."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train_in(folder, tiny(root, seed=5))
    return folder


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(first, tmp_path / "first")


def test_a_run_is_what_it_was_trained_on_and_how_and_how_good_it_became(run: Path, root: Path) -> None:
    found = identity(run)
    newest = Run(run).checkpoints().paths()[0]
    assert found["kind"] == "run"
    assert (found["path"], found["file"], found["sha256"]) == (str(run), str(newest), sha256(newest))
    assert (found["experiment"], found["task"], found["backbone"]) == ("debug", "detection", "container_light_tiny")
    assert (found["step"], found["epoch"], found["epochs"], found["seed"]) == (8, 2, 2, 5)
    rows = Run(run).evaluations()
    assert found["metric"] == {
        "key": "ap",
        "label": "AP",
        "scale": 100.0,
        "here": rows[-1]["ap"],
        "last": rows[-1]["ap"],
        "best": max(row["ap"] for row in rows),
    }
    annotations = root / "annotations" / "instances_train2017.json"
    assert found["data"]["train"] == {"annotations": str(annotations), "sha256": sha256(annotations), "images": TRAIN}
    assert found["data"]["val"]["images"] == VAL
    assert found["folder"] == str(root)
    assert found["git"] == read_jsonl(run / "provenance.jsonl")[-1]["git"]
    assert found["difference"]["data.eval_batch"] == {"named": 4, "here": 2}
    assert found["settings"]["train.lr"] == 3e-4
    assert not {"backbone.name", "data.root", "data.workers", "seed"} & found["settings"].keys()
    ap = f"{100 * rows[-1]['ap']:.1f}"
    assert in_words({"backbone.weights": found}) == [
        f"backbone from {run}: container_light_tiny, 2 epochs of {root.name}, AP {ap} %"
    ]


def test_an_earlier_checkpoint_has_the_metric_of_its_own_step(run: Path) -> None:
    older = Run(run).checkpoints().paths()[1]
    rows = Run(run).evaluations()
    found = identity(older)
    assert (found["kind"], found["step"], found["epoch"], found["epochs"]) == ("run", 4, 1, 2)
    assert (found["metric"]["here"], found["metric"]["last"]) == (rows[0]["ap"], rows[1]["ap"])
    assert "1 of 2 epochs of" in in_words({"init": found})[0]


def test_raw_weights_beside_averaged_ones_were_not_evaluated(run: Path, root: Path) -> None:
    state = final_state(run)
    spoil(run, ema=state["model"], ema_updates=8)
    best = max(row["ap"] for row in Run(run).evaluations())
    for which, words in (("model", "AP not evaluated"), ("ema", "AP "), ("auto", "AP ")):
        found = pretraining(tiny(root, backbone__weights=str(run), backbone__file_weights=which))
        metric = found["backbone.weights"]["metric"]
        assert (metric["here"] is None, metric["best"]) == (which == "model", best)
        assert words in in_words(found)[0]
        assert pretraining(tiny(root, init=str(run), init_weights=which))["init"]["metric"] == metric


def test_a_checkpoint_outside_its_run_says_what_it_carries(run: Path, tmp_path: Path, root: Path) -> None:
    inside = identity(run)
    moved = Path(shutil.move(inside["file"], tmp_path / "weights.pt"))
    found = identity(moved)
    assert found["kind"] == "checkpoint"
    for key in ("experiment", "task", "backbone", "step", "epoch", "epochs", "settings", "difference", "sha256"):
        assert found[key] == inside[key]
    assert found["data"]["train"] == {"sha256": inside["data"]["train"]["sha256"]}
    assert "metric" not in found
    assert in_words({"init": found}) == [f"init from {moved}: container_light_tiny, 2 epochs of {root.name}"]


def test_weights_that_do_not_fit_are_named_by_their_run(run: Path) -> None:
    """By the run's network, whatever the task; a file that states none is answered without."""
    config = BackboneConfig(name="container_light_small", weights=str(run))
    said = r"does not fit .* it is of backbone\.name=container_light_tiny, not of container_light_small"
    with pytest.raises(ValueError, match=said):
        build_backbone(config)
    with pytest.raises(ValueError, match=said):
        build_classifier(config, 3, 64)
    bare = run.with_name("bare.pth")
    torch.save({"model": build_backbone(BackboneConfig(name="resnet18_tiny", weights="none")).state_dict()}, bare)
    with pytest.raises(ValueError, match=r"Check backbone\.name and backbone\.weights$"):
        build_backbone(replace(config, weights=str(bare)))


def test_the_record_outlives_the_file_and_is_passed_on(run: Path, root: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    settings: dict[str, Any] = {"backbone__weights": str(run), "train__epochs": 3}
    assert train_in(second, tiny(root, **settings, train__max_steps=2)) == 0
    record = noted(second)
    assert record == {"backbone.weights": identity(run)}
    assert final_state(second)["pretraining"] == record
    shutil.rmtree(run)
    assert train_in(second, tiny(root, **settings, train__max_steps=2)) == 0
    assert noted(second) == record
    # A third that starts from the second knows both.
    third = tmp_path / "third"
    assert train_in(third, tiny(root, init=str(second), train__max_steps=1)) == 0
    found = noted(third)["init"]
    assert found["step"] == 4
    assert found["pretraining"] == record


def test_a_detector_starts_from_a_classifier(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From images of single shapes to a classifier, and from its weights to a detector, all for real."""
    make_single_shapes(tmp_path / "single", 24, 20, 40)
    classifier, detector = tmp_path / "classifier", tmp_path / "detector"
    assert train_in(classifier, classify_debug(tmp_path / "single", train__ema_decay=0.0, seed=3)) == 0
    caplog.clear()
    settings = tiny(
        root, backbone__weights=str(classifier), train__max_steps=1, train__lr=1e-12, train__lr_backbone=1e-12
    )
    with caplog.at_level("INFO"):
        assert train_in(detector, settings) == 0
    found = noted(detector)["backbone.weights"]
    rows = Run(classifier).evaluations()
    assert (found["kind"], found["task"], found["experiment"]) == ("run", "classification", "classify_debug")
    assert (found["epoch"], found["epochs"], found["step"], found["seed"]) == (2, 2, rows[-1]["step"], 3)
    assert (found["metric"]["key"], found["metric"]["here"]) == ("top1", rows[-1]["top1"])
    assert found["settings"]["data.fraction"] == 1
    listing = open_folder(tmp_path / "single" / "train").version()
    assert found["data"]["train"] == listing
    assert listing["images"] == 24
    line = f"backbone from {classifier}: container_light_tiny, 2 epochs of single, top-1 {100 * rows[-1]['top1']:.1f} %"
    assert line in caplog.messages
    # The weights are those: a step at a rate of nearly nothing leaves them as they were.
    before, after = final_state(classifier)["model"], final_state(detector)["model"]
    kernels = {name.removeprefix("backbone.") for name in before if name.endswith("conv1.weight")}
    assert len(kernels) == 3
    for name in kernels:
        torch.testing.assert_close(before[f"backbone.{name}"], after[f"backbone.{name}"], rtol=0, atol=1e-6)


def test_other_weights_are_what_is_known_of_them(tmp_path: Path, root: Path) -> None:
    config = BackboneConfig(name="container_light_tiny", weights="none", frozen_stages=0)
    path = tmp_path / "backbone.pth"
    torch.save(build_backbone(config).state_dict(), path)
    found = pretraining(tiny(root, backbone__weights=str(path)))
    assert found == {"backbone.weights": {"kind": "file", "path": str(path), "file": str(path), "sha256": sha256(path)}}
    assert in_words(found) == [f"backbone from {path}: SHA-256 {sha256(path)[:12]}"]
    found = pretraining(named("smca_r50_50e").experiment)
    assert found == {"backbone.weights": {"kind": "published", "name": "imagenet (torchvision's IMAGENET1K_V1)"}}
    assert in_words(found) == ["backbone from imagenet (torchvision's IMAGENET1K_V1)"]
    assert pretraining(tiny(root)) == {}


def test_random_weights_leave_no_record(first: Path) -> None:
    assert noted(first) == {}
    assert "pretraining" not in final_state(first)


def spoil(run: Path, task: str = "detection", **changed: Any) -> Path:
    """The newest checkpoint with other entries; task: of its experiment."""
    path = Run(run).checkpoints().paths()[0]
    state = final_state(run)
    state["experiment"]["task"] = task
    torch.save(state | changed, path)
    return path


def test_what_was_changed_by_hand_is_not_taken_over(run: Path) -> None:
    assert identity(spoil(run, step=-3))["kind"] == "file"
    found = identity(spoil(run, task="elsewhere", step=8))
    assert (found["kind"], found["experiment"]) == ("checkpoint", "debug")
    (run / "evaluations.jsonl").write_text("{\n")
    (run / "provenance.jsonl").unlink()
    found = identity(spoil(run))
    assert (found["kind"], found["metric"]["best"], found["git"]) == ("run", None, None)
    assert in_words({"init": found})[0].endswith("AP not evaluated")


def test_a_run_does_not_resume_from_a_record_that_was_changed(run: Path, root: Path) -> None:
    spoil(run, pretraining={"init": {"kind": "guess"}})
    with pytest.raises(ValueError, match=r"was changed: pretraining: kind='guess'"):
        train_in(run, tiny(root, seed=5, train__epochs=3))


def test_a_run_that_writes_meanwhile_is_noticed(run: Path) -> None:
    found = {"backbone.weights": identity(run)}
    path = Path(found["backbone.weights"]["file"])
    newer = path.with_name("checkpoint-00000009.pt")
    newer.write_bytes(path.read_bytes()[:-400])
    check_unchanged(found)
    shutil.copy(path, newer)
    with pytest.raises(ValueError, match="has written a checkpoint meanwhile"):
        check_unchanged(found)


def test_a_folder_of_hugging_face_is_a_file_of_weights(tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "exported"
    write_json(folder / "config.json", {"model_type": "detr"})
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    found = identity(folder)
    digest = sha256(folder / "model.safetensors")
    assert found == {
        "kind": "file", "path": str(folder), "file": str(folder / "model.safetensors"), "sha256": digest
    }  # fmt: skip
    check_unchanged({"init": found})


def test_a_run_without_checkpoints_has_no_weights(tmp_path: Path, root: Path, run: Path) -> None:
    write_json(tmp_path / "empty" / "config.json", {})
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        train(tiny(root, backbone__weights=str(tmp_path / "empty")), tmp_path / "second")
    assert not (tmp_path / "second" / "provenance.jsonl").exists()
