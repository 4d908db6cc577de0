"""What goes wrong for people: each case ends with a message that names it, a status, and nothing lost."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    assert_same,
    assert_same_run,
    environment,
    final_state,
    settings_of,
    start,
    tiny,
    train_in,
    wait_for,
)

from detr_container.base.files import read_jsonl
from detr_container.engine.checkpoint import load
from detr_container.engine.run import Run
from detr_container.engine.same import metrics


@pytest.fixture(scope="session")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_in(folder, tiny(root)) == 0
    return folder


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A copy of the data set that may be damaged."""
    return shutil.copytree(root, tmp_path / "data")


def edit_annotations(data: Path, split: str, **changed: Any) -> None:
    path = data / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_newest_checkpoint(
    damage: str, root: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run resumes from the checkpoint before, and ends as if nothing had happened."""
    run = tmp_path / "run"
    assert train_in(run, tiny(root, train__max_steps=2)) == 0
    assert train_in(run, tiny(root, train__max_steps=3)) == 0
    newest, before = Run(run).checkpoints().paths()[:2]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    assert train_in(run, tiny(root)) == 0
    assert str(newest) in caplog.text
    assert "trying the checkpoint before it" in caplog.text
    assert before.name == "checkpoint-00000004.pt"
    assert_same_run(run, uninterrupted)


def test_all_checkpoints_damaged(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, tiny(root, train__max_steps=2)) == 0
    for path in Run(run).checkpoints().paths():
        path.write_bytes(b"PK\x03\x04nothing")
    rows = metrics(run)
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints can be read"):
        train_in(run, tiny(root))
    assert metrics(run) == rows


def test_a_checkpoint_of_another_model(root: Path, tmp_path: Path) -> None:
    """Settings are compared with those that the checkpoint carries, whatever the run's config.json says."""
    run, other = tmp_path / "run", tmp_path / "other"
    assert train_in(run, tiny(root, train__max_steps=1)) == 0
    assert train_in(other, tiny(root, train__max_steps=2, head__queries=7, head__width=64)) == 0
    source = Run(other).checkpoints().paths()[0]
    shutil.copy(source, run / "checkpoints" / source.name)
    config = (run / "config.json").read_text()
    with pytest.raises(ValueError, match=r"head\.queries was 7, now 10; head\.width was 64, now 32.*--run NAME"):
        train_in(run, tiny(root))
    assert (run / "config.json").read_text() == config


def test_changed_head_settings(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, tiny(root, train__max_steps=1)) == 0
    with pytest.raises(ValueError, match=r"head\.decoder_layers was 2, now 3"):
        train_in(run, tiny(root, head__decoder_layers=3))
    assert train_in(run, tiny(root, train__max_steps=1)) == 0
    assert final_state(run)["step"] == 2


def test_weights_alone_are_no_run(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, tiny(root, train__max_steps=1)) == 0
    path = Run(run).checkpoints().paths()[0]
    torch.save({"model": load(path)["model"]}, path)
    with pytest.raises(ValueError, match=r"is not a checkpoint of a run.*use --init"):
        train_in(run, tiny(root))


def test_a_wrong_start_may_be_corrected(root: Path, tmp_path: Path) -> None:
    """Nothing was trained yet, so nothing forbids other settings in the same folder."""
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"train\.batch=5 is not divisible by 1 process"):
        train_in(run, tiny(root, train__batch=5))
    assert not run.exists()
    assert train_in(run, tiny(root, train__max_steps=1)) == 0
    Run(run).checkpoints().paths()[0].unlink()
    assert train_in(run, tiny(root, train__max_steps=1, head__queries=6)) == 0
    assert len(final_state(run)["model"]["query_embed.weight"]) == 6


def test_a_changed_training_set(root: Path, tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    assert train_in(run, tiny(root, train__max_steps=1)) == 0
    content = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    kept = content["images"][:8]
    ids = {image["id"] for image in kept}
    edit_annotations(
        data, "train", images=kept, annotations=[row for row in content["annotations"] if row["image_id"] in ids]
    )
    with pytest.raises(ValueError, match=r"the training set has changed: an epoch had 4 steps, now 2"):
        train_in(run, tiny(data))


# -- the disk ---------------------------------------------------------------------------------------------------------


def test_a_full_disk(root: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: the write fails half way, with the system's error."""
    run = tmp_path / "debug"
    assert train_in(run, tiny(root, train__max_steps=2, train__eval_every=0)) == 0
    (before,) = Run(run).checkpoints().paths()
    content = before.read_bytes()
    limit = len(content) // 2

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    options = settings_of(tiny(root, train__eval_every=0))
    command = [sys.executable, "-m", "detr_container", "train", "debug", "--runs", str(tmp_path), *options]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, preexec_fn=small_disk, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    assert "checkpoint-00000004.pt" in message
    assert "the file is too large" in message
    assert "Traceback" not in done.stderr
    assert before.read_bytes() == content
    assert [path.name for path in (run / "checkpoints").iterdir()] == [before.name]
    assert train_in(run, tiny(root, train__eval_every=0)) == 0


def test_an_unreadable_image_in_the_middle_of_an_epoch(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The message names the file; once it is fixed, the run ends as if nothing had happened."""
    from detr_container.datasets.loader import permutation

    experiment = tiny(data, train__checkpoint_minutes=1e-9)
    # The ninth image of the first epoch belongs to its third step of four.
    victim = sorted((data / "train2017").iterdir())[permutation(16, experiment.seed, 0)[8]]
    good = victim.read_bytes()
    victim.write_bytes(good[: len(good) // 3])
    for workers in (0, 1):
        with pytest.raises(ValueError, match=victim.name):
            train_in(tmp_path / "run", tiny(data, train__checkpoint_minutes=1e-9, data__workers=workers))
    assert final_state(tmp_path / "run")["step"] in (1, 2)
    victim.write_bytes(good)
    assert train_in(tmp_path / "run", experiment) == 0
    assert_same(final_state(tmp_path / "run")["model"], final_state(uninterrupted)["model"])
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


def test_an_unreadable_image_in_evaluation(data: Path, tmp_path: Path) -> None:
    victim = sorted((data / "val2017").iterdir())[3]
    victim.write_bytes(b"no image")
    with pytest.raises(ValueError, match=victim.name):
        train_in(tmp_path / "run", tiny(data))
    assert final_state(tmp_path / "run")["step"] == 4


# -- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train__micro_batch": 3}, r"train\.batch=4 is not divisible by 1 process\(es\) x train\.micro_batch=3"),
        ({"train__batch": 32}, r"train\.batch=32 images per step, but the training set has 16"),
        ({"data__root": Path("/nowhere")}, r"missing: .*/nowhere/train2017"),
        ({"data__root": None}, r"no data set is given"),
        ({"backbone__stage": -9}, r"backbone\.stage=-9: container_light_tiny has 3 feature maps"),
        ({"backbone__name": "resnet51"}, r"there is no backbone 'resnet51'"),
        ({"backbone__weights": "imagenett"}, r"backbone\.weights=imagenett: neither"),
        ({"backbone__frozen_stages": 9}, r"set backbone\.frozen_stages to 0 \.\. 3"),
        ({"init": "/nowhere.pt"}, r"there is no such checkpoint"),
    ],
)
def test_settings_that_do_not_fit_leave_no_folder(
    changed: dict[str, Any], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_in(tmp_path / "run", tiny(root, **changed))
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detr_container", "train", "debug", "--device", "cuda", "--run", "run"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=hidden, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: device=cuda: .*finds no GPU here\. Use device=cpu", done.stderr)
    assert not (tmp_path / "run").exists()


def test_other_categories_for_validation(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    categories = [{**c, "name": "hexagon"} if c["name"] == "star" else c for c in content["categories"]]
    edit_annotations(data, "val", categories=categories)
    with pytest.raises(ValueError, match=r"instances_val2017\.json has other categories.*'hexagon' \(id 5\), 'star'"):
        train_in(tmp_path / "run", tiny(data))


def test_no_categories_at_all(data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        edit_annotations(data, split, categories=[], annotations=[])
    with pytest.raises(ValueError, match=r"instances_train2017\.json: 'categories' is empty"):
        train_in(tmp_path / "run", tiny(data))


# -- signals to the command itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_command(number: signal.Signals, status: int, root: Path, tmp_path: Path) -> None:
    """To the whole process group, as a terminal does it, with a loader process in it."""
    run = tmp_path / "debug"
    experiment = tiny(root, train__epochs=200, train__eval_every=0, data__workers=1)
    options = ["train", "debug", "--runs", tmp_path, *settings_of(experiment)]
    process = start(options, tmp_path)
    try:
        wait_for(
            lambda: run.exists() and (run / "metrics.jsonl").exists() and bool(read_jsonl(run / "metrics.jsonl")),
            process,
        )
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == status, stderr
    state = final_state(run)
    expected = f"interrupted ({number.name}): saved at step {state['step']} of 800. The same command resumes from here"
    assert stderr.splitlines()[-1] == expected
    assert "Traceback" not in stderr
    assert metrics(run)[-1]["step"] <= state["step"]
