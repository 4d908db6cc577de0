"""Training in detectron2's own loop: ended at any moment, it resumes; and detectron2's tools take our models."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_runs import lazy_config, module, yacs_config
from runs import environment, free_port, one_thread, run_command, wait_for

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset

from detr_container.d2.checkpoints import AtomicCheckpointer, newest, numbered
from detr_container.d2.config_files import load


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What detectron2 has logged of each iteration."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line for line in lines if "total_loss" in line]


def state(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def steps(folder: Path) -> int:
    """How many steps the optimizer of the newest checkpoint has made."""
    path = newest(folder)
    assert path is not None
    trainer = state(path)["trainer"]
    return int(trainer.get("_trainer", trainer)["optimizer"]["state"][0]["step"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A training of six iterations, and an evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_command(folder, "d2", "train", lazy_config(folder, root), "--output-dir", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def test_a_training_leaves_what_detectron2_does(finished: Path) -> None:
    lines = metrics(finished)
    assert [line["iteration"] for line in lines] == list(range(6))
    first = lines[0]
    assert {"class_error", "cardinality_error", "lr", "loss_class", "loss_l1", "loss_giou"} <= set(first)
    assert first["total_loss"] == pytest.approx(first["loss_class"] + first["loss_l1"] + first["loss_giou"], rel=1e-5)
    assert [line["lr"] for line in lines] == [1e-4] * 5 + [pytest.approx(1e-5)], "five sixths are past 40 of 50"
    assert (finished / "last_checkpoint").read_text() == "model_final.pth"
    assert [path.name for path in numbered(finished)] == ["model_0000005.pth", "model_0000003.pth"], "two are kept"
    assert steps(finished) == 6
    assert (finished / "inference" / "coco_instances_results.json").is_file()
    assert LazyConfig.load(str(finished / "config.yaml")).train.max_iter == 6
    assert not list(finished.glob(".*.tmp"))


def test_what_is_finished_is_evaluated_again_and_changed_no_more(finished: Path, root: Path) -> None:
    before = (finished / "model_final.pth").read_bytes()
    results = finished / "inference" / "coco_instances_results.json"
    results.unlink()
    config = finished.parent / "tiny_detr_r50_50e.py"
    done = run_command(finished.parent, "d2", "train", config, "--output-dir", finished)
    assert done.returncode == 0, done.stderr
    assert (finished / "model_final.pth").read_bytes() == before
    assert results.is_file()


def test_detectron2_reads_the_checkpoints_of_ours(finished: Path) -> None:
    """Its own checkpointer resumes from what ours wrote."""
    cfg = load(str(finished.parent / "tiny_detr_r50_50e.py")).cfg
    model = instantiate(cfg.model)
    theirs = DetectionCheckpointer(model, str(finished))
    rest = theirs.resume_or_load("", resume=True)
    assert rest["trainer"]["iteration"] == 5
    saved = state(finished / "model_final.pth")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def start(folder: Path, *arguments: object, rank: int = 0, world: int = 1, port: int = 0) -> "subprocess.Popen[str]":
    """A process of `d2 train`, alone or one of several."""
    joined = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = (folder / f"log-{rank}.txt").open("w")
    return subprocess.Popen(
        [sys.executable, "-m", "detr_container", "d2", "train", *map(str, arguments)],
        cwd=folder,
        env=environment(**({key: str(value) for key, value in joined.items()} if world > 1 else {})),
        stdout=log,
        stderr=log,
        text=True,
    )


def test_two_processes_stop_together_and_one_resumes(tmp_path: Path, root: Path) -> None:
    """A signal to either ends both after the same step, saved."""
    out, port = tmp_path / "out", free_port()
    config = lazy_config(tmp_path, root, "smca_r50_50e")
    words = (config, "train.max_iter=4000", "train.checkpointer.period=3", "--output-dir", out)
    ranks = [start(tmp_path, *words, rank=rank, world=2, port=port) for rank in range(2)]
    try:
        wait_for(lambda: bool(numbered(out)), ranks[0], 240)
        ranks[1].send_signal(signal.SIGUSR2)
        statuses = [rank.wait(120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    log = (tmp_path / "log-0.txt").read_text()
    assert statuses == [128 + signal.SIGTERM, 128 + signal.SIGUSR2], log
    assert "saved in" in log
    done = steps(out)
    assert newest(out) == numbered(out)[0]
    assert int(numbered(out)[0].stem[-7:]) == done - 1 == metrics(out)[-1]["iteration"]
    resumed = run_command(tmp_path, "d2", "train", config, f"train.max_iter={done + 2}", "--output-dir", out)
    assert resumed.returncode == 0, resumed.stderr
    assert steps(out) == done + 2
    iterations = [line["iteration"] for line in metrics(out)]
    assert iterations == list(range(done + 2)), "none is left out or made twice"


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, root: Path) -> None:
    config, out = lazy_config(tmp_path, root), tmp_path / "out"
    words = ("d2", "train", config, "dataloader.evaluator=null", "--output-dir", out)
    assert run_command(tmp_path, *words).returncode == 0
    (out / "model_final.pth").write_bytes((out / "model_final.pth").read_bytes()[:-4000])
    with (out / "model_0000005.pth").open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xff" * 64)
    assert newest(out) == out / "model_0000003.pth"
    again = run_command(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert "model_final.pth" in again.stderr
    assert "trying the checkpoint before it" in again.stderr
    assert steps(out) == 6
    assert [line["iteration"] for line in metrics(out)] == [0, 1, 2, 3, 4, 5, 4, 5]


def test_of_damaged_ones_alone_none_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model_0000003.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="none of its 1 checkpoints can be read"):
        newest(tmp_path)
    assert newest(tmp_path / "empty") is None


def test_a_kill_between_checkpoint_and_its_name_loses_nothing(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    for name in ("model_0000001", "model_0000003"):
        checkpointer.save(name, iteration=1)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert newest(tmp_path) == tmp_path / "model_0000003.pth"
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert newest(tmp_path) == tmp_path / "model_0000003.pth"
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    checkpointer = AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001")
    before = (tmp_path / "model_0000001.pth").read_bytes()
    with pytest.raises(TypeError):
        checkpointer.save("model_0000001", iteration=threading.Lock())
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]


def test_yacs_settings_train_and_resume(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out"
    words = ("d2", "train", yacs_config(tmp_path))
    options = ("--module", module(tmp_path, root), "--output-dir", out)
    first = run_command(tmp_path, *words, "SOLVER.MAX_ITER=5", *options)
    assert first.returncode == 0, first.stderr
    assert steps(out) == 5
    second = run_command(tmp_path, *words, *options)
    assert second.returncode == 0, second.stderr
    assert steps(out) == 6
    groups = state(out / "model_final.pth")["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert [group["name"] for group in groups] == ["head", "backbone"]


def test_mask_rcnn_trains_in_detectron2s_loop(tmp_path: Path, root: Path) -> None:
    """Without anything of DETR: detectron2's losses and evaluation, of masks, too."""
    config, out = lazy_config(tmp_path, root, "mask_rcnn_container_light_1x"), tmp_path / "out"
    done = run_command(tmp_path, "d2", "train", config, "train.max_iter=2", "--output-dir", out)
    assert done.returncode == 0, done.stderr
    assert "loss_mask" in metrics(out)[0]
    assert metrics(out)[0]["lr"] == pytest.approx(1e-4 * 0.001)
    assert "Start inference on 5 batches" in done.stdout
    shallow = run_command(tmp_path, "d2", "train", config, "model.backbone.bottom_up.name=resnet18_small")
    assert shallow.returncode == 2
    assert "its backbone has no p6: take a backbone with maps up to stride 32" in shallow.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no configuration 'nothing'"),
        (["detr_r50_50e", "train"], "train: after the configuration comes key=value"),
        (["detr_r50_50e", "dataloader.train.dataset.names=shapes_trian"], "no data set shapes_trian is registered"),
        (["CONFIG", "train.device=gpu"], "train.device=gpu: there is no such device"),
        (["CONFIG", "train.device=mps"], "train.device=mps: training is on cuda or cpu"),
        (["CONFIG", "train.amp.enabled=True"], "train.amp.enabled=True: detectron2's mixed precision needs a GPU"),
        (["CONFIG", "train.init_checkpoint=none.pth"], "train.init_checkpoint=none.pth: there is no such file"),
        (["CONFIG", "model.num_classes=2"], "the model has 2: set num_classes"),
        (["CONFIG", "model.backbone.weights=none.pt"], "backbone.weights=none.pt"),
        (["CONFIG", "model.head.width=33"], "head.width=33 cannot be shared"),
        (["CONFIG", "optimizer.lr=1e30"], "NaN"),
        ([], "name a configuration"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, root: Path, words: list[str], message: str) -> None:
    config = str(lazy_config(tmp_path, root))
    given = [config if word == "CONFIG" else word for word in words]
    done = run_command(tmp_path, "d2", "train", *given, "--output-dir", tmp_path / "out")
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


def test_mistakes_of_yacs_settings_are_one_line(tmp_path: Path, root: Path) -> None:
    words = ("d2", "train", yacs_config(tmp_path))
    options = ("--module", module(tmp_path, root), "--output-dir", tmp_path / "out")
    for setting, message in (
        ("MODEL.META_ARCHITECTURE=DETER", "No object named 'DETER' found in 'META_ARCH' registry!"),
        ("MODEL.DEVICE=gpu", "MODEL.DEVICE=gpu: there is no such device"),
        ("MODEL.WEIGHTS=none.pth", "MODEL.WEIGHTS=none.pth: there is no such file"),
        ("INPUT.FORMAT=BGR", "MODEL.PIXEL_MEAN="),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE=norm", "set CLIP_TYPE to full_model"),
    ):
        done = run_command(tmp_path, *words, setting, *options)
        assert done.returncode == 2, setting
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stdout + done.stderr


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path, root: Path) -> None:
    from detr_container.base.lock import FolderLock

    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out"):
        done = run_command(tmp_path, "d2", "train", lazy_config(tmp_path, root), "--output-dir", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_detectron2s_own_loop_trains_a_lazy_config(tmp_path: Path, root: Path) -> None:
    """What its tools/lazyconfig_train_net.py does, with nothing of ours but the configuration."""
    cfg = load(str(lazy_config(tmp_path, root))).cfg
    with one_thread():
        model = instantiate(cfg.model)
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        model = create_ddp_model(model, **cfg.train.ddp)
        trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            ]
        )
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
        trainer.train(0, 2)
        cfg.dataloader.evaluator.output_dir = str(tmp_path / "inference")
        found = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    assert "AP" in found["bbox"]
    assert (tmp_path / "model_final.pth").is_file()


def test_detectron2s_own_trainer_trains_yacs_settings(tmp_path: Path, root: Path, monkeypatch: Any) -> None:
    """With SGD, and only once it is not to clip as it cannot."""
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load(str(yacs_config(tmp_path)), [f"OUTPUT_DIR={tmp_path}"], module(tmp_path, root)).cfg
    with one_thread():
        with pytest.raises(ValueError, match="full_model"):
            DefaultTrainer(cfg)
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = False, 2, ()
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    assert (tmp_path / "model_final.pth").is_file()
