"""A classifier is trained, evaluated, drawn and kept as any other run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import debug
from PIL import Image
from runs import final_state, train_in, with_settings

from detr_container.base.files import read_jsonl
from detr_container.engine.run import Run, evaluation_of
from detr_container.engine.session import open_session
from detr_container.tasks.classification.build import model_of
from detr_container.tasks.classification.fine_tune import start_from
from detr_container.tasks.classification.predictions import NAME, Predictions
from detr_container.tasks.classification.task import class_faults, open_task


def colours(root: Path, counts: Sequence[tuple[str, int]] = (("train", 24), ("val", 12))) -> Path:
    """Noise on red, green or blue ground: what a classifier learns at once."""
    rng = np.random.default_rng(0)
    for split, count in counts:
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.normal(110, 40, (40, 40, 3))
                pixels[..., channel] += 60
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt three colours, with mixing and erasing."""
    root = colours(tmp_path_factory.mktemp("colours"))
    folder = root / "runs" / "colours"
    experiment = debug(
        root,
        data__auto_augment="",
        train__epochs=4,
        train__batch=12,
        train__micro_batch=6,
        train__lr=4e-3,
        train__warmup_epochs=1,
        train__ema_decay=0.0,
    )
    assert train_in(folder, experiment, images=True) == 0
    return folder


def test_a_run_learns_and_says_what_it_found(learnt: Path) -> None:
    rows = Run(learnt).evaluations()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["top1"] >= 0.9
    assert rows[-1]["top5"] == 1.0
    folder = evaluation_of(learnt, 4)
    scores = json.loads((folder / "scores.json").read_text())
    assert {name: scores[name] for name in ("top1", "top5", "loss", "images")} == {
        name: rows[-1][name] for name in ("top1", "top5", "loss", "images")
    }
    found = Predictions.read(folder / NAME)
    assert found.image_ids.tolist() == list(range(36))
    assert found.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert found.classes.shape == (36, 3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    at = np.argmax(found.classes == found.labels[:, None], axis=1)
    np.testing.assert_allclose(found.true_probability, found.probabilities[np.arange(36), at], rtol=1e-5)
    assert scores["top1"] == found.top(1).mean()
    assert scores["loss"] == pytest.approx(-np.log(found.true_probability).mean(), rel=1e-5)
    assert [row["name"] for row in scores["per_class"]] == ["blue", "green", "red"]
    assert sum(row["top1"] * row["images"] for row in scores["per_class"]) == pytest.approx(found.top(1).sum())
    noted = scores["evaluated_with"]
    assert (noted["annotations"], noted["images"], noted["size"]) == (str(learnt.parents[1] / "val"), 36, 32)
    assert noted["sha256"] == read_jsonl(learnt / "provenance.jsonl")[0]["data"]["val"]["sha256"]


def test_a_run_keeps_what_it_is_of_and_shows_it(learnt: Path) -> None:
    names = ["blue", "green", "red"]
    assert json.loads((learnt / "classes.json").read_text()) == [{"id": k, "name": n} for k, n in enumerate(names)]
    assert final_state(learnt)["classes"] == names
    facts = read_jsonl(learnt / "provenance.jsonl")[0]
    assert facts["epoch"] == {"views": 72, "images": 24}
    assert facts["learning_rate"] == 4e-3
    kept = [(evaluation_of(learnt, epoch) / NAME).exists() for epoch in (1, 2, 3, 4)]
    best = max(Run(learnt).evaluations(), key=lambda row: row["top1"])["epoch"]
    assert kept == [epoch in (best, 4) for epoch in (1, 2, 3, 4)]
    with Image.open(learnt / "predictions.png") as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet).std() > 20
    rows = Run(learnt).metrics()
    assert all(0 <= row["train_top1"] <= 1 for row in rows)
    rates = [1e-6, 1e-6, *(1e-5 + 0.5 * (4e-3 - 1e-5) * (1 + math.cos(math.pi * at / 4)) for at in (1, 2))]
    for row in rows:
        assert row["lr_decayed"] == row["lr_undecayed"] == pytest.approx(rates[math.ceil(row["epoch"]) - 1])


def test_another_run_starts_from_it_with_the_rows_of_the_classes_that_both_know(
    learnt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        for name in ("Red", "violet", "amber", "green"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), name.lower() if name != "amber" else "orange").save(
                tmp_path / split / name / "1.png"
            )
    source = Run(learnt).checkpoints().paths()[0]
    experiment = debug(tmp_path, init=str(source), train__ema_decay=0.0)
    caplog.set_level("INFO")
    with open_session("cpu") as session:
        task = open_task(experiment, session)
    model = task.build(weights=False)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    words = task.start_from(model, source)
    assert "class rows kept for 2 (Red, green), started anew for 2 (amber, violet)" in words
    theirs, ours = final_state(learnt)["model"], model.state_dict()
    for name, value in ours.items():
        if name.startswith("head."):
            # Red, amber, green, violet; and blue, green, red.
            assert torch.equal(value[[0, 2]], theirs[name][[2, 1]])
            assert torch.equal(value[[1, 3]], fresh[name][[1, 3]])
        else:
            assert torch.equal(value, theirs[name]), name
    other = with_settings(experiment, backbone__name="resnet18", backbone__drop_path=0.0)
    with pytest.raises(ValueError, match=r"(?s)init=.* does not fit this model: .*Make backbone"):
        start_from(model_of(other, 4), other, task.data.classes, source)
    torch.save({"model": theirs}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="no checkpoint of a classification run"):
        task.start_from(model, tmp_path / "bare.pt")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["blue", "green"], "of other classes than the data set's: 'red'"),
        (["red", "green", "blue"], "they stand in another order"),
    ],
)
def test_a_checkpoint_of_other_classes_is_refused(found: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_faults(found, ["blue", "green", "red"])


def test_the_class_list_of_a_checkpoint_is_checked() -> None:
    assert class_faults(["blue", "green"], ["blue", "green"]) == []
    for wrong in (None, "blue", [0, 1], ["blue", 1]):
        assert "not a list of names" in class_faults(wrong, ["blue", "green"])[0]


def test_a_prediction_that_is_not_finite_ends_the_evaluation(learnt: Path, tmp_path: Path) -> None:
    experiment = debug(learnt.parents[1])
    with open_session("cpu") as session:
        task = open_task(experiment, session)
        model = task.build(weights=False)
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"NaN or Inf in what the model predicts for .*val.*0\.png"):
            task.evaluate(model, tmp_path, 1, session, lambda done, total: None, lambda short: False)
    assert not (evaluation_of(tmp_path, 1) / NAME).exists()


def test_a_share_of_each_class_is_trained_on_and_all_are_evaluated(learnt: Path) -> None:
    """Which images, the seed says; their order and number in an epoch follow from the share."""
    seen = []
    for seed in (3, 3, 4):
        experiment = debug(learnt.parents[1], data__fraction=0.25, seed=seed)
        with open_session("cpu") as session:
            task = open_task(experiment, session)
        train, val = task.data.train.folder, task.data.val.folder
        assert (train.counts().tolist(), val.counts().tolist()) == ([6, 6, 6], [12, 12, 12])
        assert task.describe() == "18 training and 36 validation images of 3 classes"
        batches = task.batches(
            task.build(weights=False), task.sampler(seed, batch=6, micro_batch=6, total_steps=9), False, lambda _: False
        )
        shown = {index for batch in batches for index in batch.image_ids}
        assert shown <= set(range(18))
        assert len(shown) > 6
        seen.append({str(train.path(index)) for index in range(18)})
    assert seen[0] == seen[1] != seen[2]


def test_settings_that_follow_are_said_in_words(shapes: Path) -> None:
    experiment = debug(shapes, train__lr_batch=4)
    with open_session("cpu") as session:
        task = open_task(experiment, session)
    facts, words = task.settled(task.build(weights=False))
    assert words == [
        "an epoch shows 24 views of 8 images, each 3 times (data.repeats)",
        "learning rate 0.001: train.lr=0.0005 x 8 / 4 (train.batch, train.lr_batch)",
    ]
    assert facts == {"epoch": {"views": 24, "images": 8}, "learning_rate": 1e-3}
    assert task.describe() == "24 training and 20 validation images of 10 classes"
    groups = task.parameter_groups(task.build(weights=False))
    assert [group["base_lr"] for group in groups] == [1e-3, 1e-3]
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]


def test_the_size_of_training_is_checked_beside_that_of_evaluation(tmp_path: Path) -> None:
    small = with_settings(debug(tmp_path), data__size=8, data__eval_size=64)
    with pytest.raises(ValueError, match=r"images of 8 pixels: .* use data\.size=16 or more"):
        model_of(small, 3)
