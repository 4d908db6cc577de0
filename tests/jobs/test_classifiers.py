"""Runs of classifiers as jobs in this process: submitted, swept, and what `status` says of them."""

from pathlib import Path

import pytest
from runs import run_command

from detr_container.config.classification import classification
from detr_container.engine.run import Run
from detr_container.jobs.status import status_of

SETTINGS = ("data.root=images", "data.make-shapes=12 10 40", "train.epochs=1", "train.warmup-epochs=0", "device=cpu")
OPTIONS = [word for each in SETTINGS for word in f"--{each}".replace("=", " ").split()]


def test_a_submitted_run_has_its_top1_in_the_status(tmp_path: Path) -> None:
    line = ["submit", "classify_debug", "--run", "a", "--cluster", "debug", *OPTIONS]
    done = run_command(tmp_path, *line)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "a"
    (row,) = Run(run).evaluations()
    found = status_of(run)
    assert (found.state, found.score) == ("finished", f"top-1 {100 * row['top1']:.1f}")
    head, shown = run_command(tmp_path, "status").stdout.splitlines()
    assert head.split() == ["run", "job", "state", "step", "epoch", "top-1"]
    assert shown.split()[-1] == f"{100 * row['top1']:.1f}"
    again = run_command(tmp_path, *line)
    assert (again.returncode, "runs/a is finished" in again.stderr) == (2, True)


def test_a_sweep_of_backbones_and_rates(tmp_path: Path) -> None:
    grid = ["--grid", "backbone.name=container_light_tiny,resnet18_tiny", "--seeds", "3"]
    line = ["sweep", "s", "--experiments", "classify_debug", *grid, "--set", *SETTINGS, "backbone.drop_path=0"]
    planned = run_command(tmp_path, *line, "--dry-run")
    assert "#SBATCH --array=0-1" in planned.stdout, planned.stderr
    assert not (tmp_path / "runs").exists()
    done = run_command(tmp_path, *line, "--cluster", "debug")
    assert "submitted 2 of 2 runs" in done.stdout, done.stderr
    for name in ("container_light_tiny", "resnet18_tiny"):
        run = tmp_path / "runs" / "s" / f"classify_debug-name={name}-seed3"
        assert status_of(run).score.startswith("top-1 ")
        experiment = classification(Run(run).experiment())
        assert (experiment.seed, experiment.backbone.name) == (3, name)
    assert "nothing to submit" in run_command(tmp_path, *line).stdout


def test_the_script_of_imagenet_is_shown_without_images(tmp_path: Path) -> None:
    done = run_command(tmp_path, "submit", "container_light_in1k", "--slurm.gpus-per-node", "8", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --ntasks-per-node=8" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.root", "nowhere"], "nowhere/train does not exist: data.root is a folder with train/ and val/"),
        (["--slurm.gpus-per-node", "3"], "train.batch=1024 is not divisible by 3 process"),
        (["--backbone.weights", "none.pth"], "backbone.weights=none.pth"),
    ],
)
def test_what_can_be_known_is_refused_at_once(options: list[str], message: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "images" / split / "a").mkdir(parents=True)
    line = ["submit", "container_light_in1k", "--data.root", "images", "--cluster", "local"]
    done = run_command(tmp_path, *line, "--slurm.gpus-per-node", "0", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()
