"""An interrupted and resumed classifier is the uninterrupted one, bit for bit; one process, and two ranks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import debug
from runs import assert_same_run, final_state, free_port, one_thread, train_in, train_job, two_ranks

from detr_container.commands import cli
from detr_container.engine.run import Run, evaluation_of
from detr_container.engine.same import metrics
from detr_container.tasks.classification.predictions import NAME, Predictions

SIZES = (32, 48)
ALIKE: dict[str, Any] = {
    "backbone__drop_path": 0.0,
    "data__erasing": 0.0,
    "train__schedule": "cosine",
    "train__warmup_steps": 0,
    "train__log_every": 1,
    "train__eval_every": 0,
    "train__ema_decay": 0.0,
}
"""Without what each rank draws for itself."""
UNMIXED: dict[str, Any] = {**ALIKE, "data__mixup": 0.0, "data__cutmix": 0.0}
"""Also without pairs of images, which two ranks form of their own images only."""


@pytest.fixture(scope="module")
def uninterrupted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without a break, of four micro batches each, three to an epoch."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_in(folder, debug(shapes)) == 0
    return folder


@pytest.mark.parametrize(("first", "workers"), [(2, 0), (3, 0), (4, 2), (5, 1)])
def test_a_stop_and_a_resume_change_nothing(
    first: int, workers: int, shapes: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert train_in(folder, debug(shapes, data__workers=workers, train__max_steps=first)) == 0
    assert final_state(folder)["step"] == first
    assert train_in(folder, debug(shapes, data__workers=workers)) == 0
    assert_same_run(folder, uninterrupted)
    assert [row["step"] for row in metrics(folder)] == [2, 3, 4, 6]


def test_the_reference_run_is_hard_enough(uninterrupted: Path, shapes: Path, tmp_path: Path) -> None:
    """The settings that draw something are in force: each changes the weights when it is turned off."""
    base = final_state(uninterrupted)
    easier = {
        "backbone__drop_path": 0.0,
        "data__erasing": 0.0,
        "data__auto_augment": "",
        "data__flip": 0.0,
        "data__repeats": 1,
        "data__mixup": 0.0,
        "data__cutmix": 0.0,
        "loss__smoothing": 0.0,
    }
    for name, value in easier.items():
        folder = tmp_path / name
        assert train_in(folder, debug(shapes, **{name: value, "train__eval_every": 0})) == 0
        other = final_state(folder)["model"]
        assert any(not base["model"][key].equal(other[key]) for key in other), f"{name} has no effect"
    assert any(not base["model"][key].equal(base["ema"][key]) for key in base["model"])


def evaluation(run: Path, output: Path) -> list[str]:
    """The command at two sizes, in three batches each."""
    line = ("evaluate", run, "--size", *SIZES, "--eval-batch", 8, "--output", output, "--device", "cpu")
    return [str(word) for word in line]


@pytest.fixture(scope="module")
def pair(shapes: Path, uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that two ranks have done, in one pair of processes."""
    folder = tmp_path_factory.mktemp("pair")
    # Finished, but for its last evaluation, which two ranks make of the same weights.
    shutil.copytree(uninterrupted, folder / "evaluated")
    shutil.rmtree(folder / "evaluated" / "detections")
    (folder / "evaluated" / "evaluations.jsonl").unlink()
    two_ranks(
        folder,
        [
            train_job(folder / "whole", debug(shapes)),
            train_job(folder / "replayed", debug(shapes), recorded=True),
            train_job(folder / "broken", debug(shapes, data__workers=1, train__max_steps=4)),
            train_job(folder / "broken", debug(shapes, data__workers=1)),
            train_job(folder / "alike", debug(shapes, **ALIKE)),
            train_job(folder / "shared", debug(shapes, **UNMIXED, backbone__norm="sync", train__micro_batch=4)),
            train_job(folder / "evaluated", debug(shapes)),
            {"do": "evaluate", "port": free_port(), "arguments": evaluation(uninterrupted, folder / "command")},
        ],
    )
    return folder


def test_two_ranks_resume_bit_for_bit(pair: Path) -> None:
    assert_same_run(pair / "broken", pair / "whole")
    assert final_state(pair / "whole")["step"] == 6


def assert_close_steps(a: Path, b: Path) -> None:
    """The same losses and gradient norms."""
    for mine, other in zip(metrics(a), metrics(b), strict=True):
        for name in ("loss", "train_top1", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3), f"{name} of step {mine['step']}"


def assert_close_run(a: Path, b: Path) -> None:
    """The same losses, gradient norms and, but for rounding, weights."""
    assert_close_steps(a, b)
    theirs = final_state(b)["model"]
    for name, value in final_state(a)["model"].items():
        # Statistics are each process's own; those of the main one are kept.
        if "running" not in name:
            # Adam moves by the learning rate whatever the gradient's size.
            off = ~torch.isclose(value, theirs[name], rtol=1e-3, atol=1e-4)
            assert off.sum() <= max(2, 0.01 * off.numel()), f"{name}: {int(off.sum())} of {off.numel()} differ"


def test_one_process_that_accumulates_sees_what_two_ranks_see(pair: Path, shapes: Path, tmp_path: Path) -> None:
    assert train_in(tmp_path / "one", debug(shapes, **ALIKE)) == 0
    assert_close_run(tmp_path / "one", pair / "alike")
    # Another division of a step pairs other images with each other.
    assert train_in(tmp_path / "other", debug(shapes, **ALIKE, train__micro_batch=4)) == 0
    first = [metrics(tmp_path / name)[0]["loss"] for name in ("one", "other")]
    assert first[0] != pytest.approx(first[1], rel=1e-3)


def test_two_ranks_that_share_their_norms_see_what_one_process_sees(pair: Path, shapes: Path, tmp_path: Path) -> None:
    """Of a whole step in one forward pass, whose statistics are then the shared ones."""
    assert train_in(tmp_path / "one", debug(shapes, **UNMIXED, train__micro_batch=8)) == 0
    assert_close_steps(tmp_path / "one", pair / "shared")
    # Of a bias before a norm, whose gradient is nothing but rounding, Adam makes something, which means show.
    found, whole = (final_state(folder)["model"] for folder in (pair / "shared", tmp_path / "one"))
    variances = [name for name in whole if name.endswith("running_var")]
    assert variances
    for name in variances:
        torch.testing.assert_close(found[name], whole[name], rtol=1e-3, atol=1e-4, msg=name)
    # Each with its own statistics they would not.
    assert train_in(tmp_path / "parts", debug(shapes, **UNMIXED, train__micro_batch=4)) == 0
    first = [metrics(folder)[0]["loss"] for folder in (tmp_path / "parts", pair / "shared")]
    assert first[0] != pytest.approx(first[1], rel=1e-3)


def test_two_ranks_that_replay_recorded_steps_train_the_same(pair: Path) -> None:
    assert_close_run(pair / "whole", pair / "replayed")


def test_two_ranks_evaluate_every_image_once(pair: Path, uninterrupted: Path) -> None:
    """What two ranks find of the same, averaged weights is what one process found, to the last bit."""
    alone, both = (Predictions.read(evaluation_of(run, 2) / NAME) for run in (uninterrupted, pair / "evaluated"))
    for name, mine in vars(alone).items():
        np.testing.assert_array_equal(mine, vars(both)[name], err_msg=name)
    assert alone.image_ids.tolist() == list(range(20))
    assert Run(uninterrupted).evaluations()[-1] == Run(pair / "evaluated").evaluations()[-1]


def test_two_ranks_of_the_command_find_what_one_finds(pair: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with one_thread():
        assert cli.main(evaluation(uninterrupted, tmp_path)) == 0
    for name in (NAME, "scores.json", f"size-48/{NAME}", "size-48/scores.json"):
        assert (pair / "command" / name).read_bytes() == (tmp_path / name).read_bytes(), name
