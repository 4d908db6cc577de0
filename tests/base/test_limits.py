"""Values beyond what a setting may have, names that lead elsewhere, and lines that must not reach a shell."""

import dataclasses
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from pydantic import AfterValidator
from runs import environment
from tyro.constructors import PrimitiveConstructorSpec

from detr_container.commands import classifiers, cli, detectors
from detr_container.commands import data as data_commands
from detr_container.compare.options import CompareOptions, ReportOptions
from detr_container.config.classification import ClassificationExperiment
from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named
from detr_container.config.settings import from_dict, to_dict
from detr_container.jobs.names import place, place_of_many
from detr_container.jobs.sweep import planned_runs
from detr_container.launch.resources import Resources, minutes
from detr_container.launch.submission import Submission
from detr_container.launch.submit import script
from detr_container.measure.options import MeasureOptions


def status(arguments: list[str]) -> int:
    """How a command ends."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def numbers_without_rule(hint: typing.Any, name: str = "") -> list[str]:
    """Fields of a dataclass, and of those within it, that take any number."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        fields = [(field.name, hints[field.name]) for field in dataclasses.fields(hint)]
        return [found for key, value in fields if value is not Resources for found in numbers_without_rule(value, key)]
    if any(isinstance(rule, (AfterValidator, PrimitiveConstructorSpec)) for rule in getattr(hint, "__metadata__", ())):
        return []
    if hint in (int, float):
        return [name]
    parts = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    return [found for part in parts for found in numbers_without_rule(part, name)]


@pytest.mark.parametrize(
    "kind",
    [
        DetectionExperiment,
        ClassificationExperiment,
        detectors.EvaluateOptions,
        detectors.PredictOptions,
        detectors.InspectOptions,
        classifiers.EvaluateOptions,
        classifiers.PredictOptions,
        data_commands.ShapesOptions,
        data_commands.CheckOptions,
        CompareOptions,
        ReportOptions,
        MeasureOptions,
    ],
)
def test_every_number_has_a_rule(kind: type) -> None:
    assert numbers_without_rule(kind) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "debug", "--head.queries", "1000000"],
            "head.queries=1000000: it must be greater than 0",
        ),
        (["train", "debug", "--head.width", "9" * 30], "head.width=9999"),
        (["train", "debug", "--head.encoder-layers", "1000000"], "head.encoder_layers=1000000"),
        (["train", "debug", "--data.workers", "1000000"], "data.workers=1000000"),
        (["train", "debug", "--data.canvas", "1000000"], "data.canvas=1000000"),
        (["train", "debug", "--data.scales", "64", "1000000"], "data.scales=1000000"),
        (["train", "debug", "--data.make-shapes", "1", "1", "100000"], "data.make_shapes=100000"),
        (["train", "debug", "--train.lr", "inf"], "train.lr=inf: it must be greater than 0 and at most"),
        (["train", "debug", "--train.lr", "9" * 5000], "train.lr=inf"),
        (["train", "debug", "--train.clip", "nan"], "train.clip=nan"),
        (["train", "debug", "--seed", "9" * 30], "seed=9999"),
        (["train", "debug", "--seed", str(2**32)], "seed=4294967296"),
        (["train", "debug", "--seed", "9" * 5000], "--seed"),
        (["demo", "--train.epochs", "10000000000"], "train.epochs=10000000000"),
        (["preflight", "debug", "--processes", "0"], "processes=0: it must be 1 or more"),
        (
            ["benchmark", "debug", "--sizes", "99999x99999"],
            "sizes='99999x99999': '99999x99999': a side has at most 16,384",
        ),
        (["benchmark", "debug", "--rounds", "99999999"], "rounds=99999999"),
        (["evaluate", "x", "--workers", "100000"], "workers=100000"),
        (["predict", "x", "y", "--threshold", "nan"], "threshold=nan"),
        (["report", "x", "--resamples", "100000000000"], "resamples=100000000000"),
        (["data", "make-shapes", "x", "--size", "1000000"], "size=1000000"),
        (["soak", "debug", "--times", "100000000000"], "times=100000000000"),
        (["sweep", "x", "--experiments", "debug", "--at-once", "100000000000"], "at_once=100000000000"),
        (["compare", "--seeds", *map(str, range(1000))], "4,000 runs: at most 1,000"),
        (["submit", "debug", "--slurm.time", "9" * 60], "ten years is the longest"),
        (["submit", "debug", "--slurm.nodes", "9" * 60], "slurm.nodes: it must be at most 1,000,000"),
        (["predict", "x", "y", "--output", ""], "output: an empty path names nothing"),
        (["inspect", "x", "y", "--image", "z", "--output", ""], "output: an empty path"),
        (["report", "x", "--output", ""], "output: an empty path"),
        (["train", "debug", "--runs", ""], "runs: an empty path"),
        (["train", "debug", "--data.root", ""], "data.root: an empty path"),
        (["export", "x", ""], "target: an empty path"),
        (["benchmark", "debug", "--output", ""], "output: an empty path"),
        (["data", "make-shapes", ""], "root: an empty path"),
        (["predict", "x", "y\0z"], "images='y\\x00z': a path cannot hold a NUL character"),
        (["train", "debug", "--runs", "x" * 300], "a name has at most 255 bytes"),
        (["train", "debug", "--runs", "x/" * 3000], "a path 4095"),
        (["train", "debug", "--run", ".."], "--run '..': it leads out of the folder of runs"),
        (["demo", "--run", "../x"], "--run '../x': it leads out"),
        (["submit", "debug", "--run", "..", "--dry-run"], "--run '..': it leads out"),
        (["sweep", "../x", "--experiments", "debug"], "the sweep's name '../x': it leads out"),
        (["compare", "--name", "../x"], "--name '../x': it leads out"),
        (["submit", "debug", "--run", "a\ntouch pwned", "--dry-run"], "it holds a line break"),
    ],
)
def test_what_no_command_takes(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    assert status(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", place]


def test_files_and_checkpoints_have_the_same_rules() -> None:
    values = to_dict(named("debug").experiment)
    values["head"]["queries"] = 10**9
    values["data"]["scales"] = [64, -1]
    with pytest.raises(ValueError, match=r"head\.queries: it must be .*data\.scales\.1: it must be greater than 0"):
        from_dict(values)


def test_a_grid_is_counted_before_it_is_made() -> None:
    grid = [f"train.{name}={','.join(map(str, range(1, 401)))}" for name in ("epochs", "lr-drop", "log-every", "batch")]
    with pytest.raises(ValueError, match=r"25,600,000,000 runs: at most 1,000 go together"):
        planned_runs(Path("x"), ["debug"], grid, [0], [])


@pytest.mark.parametrize(
    "name", ["/abs", "a/../b", ".", "./a", "a//b", "a/", "-x", "a/-x", " ", "a\tb", "a\u2028b", "\udc80", "x" * 256]
)
def test_a_name_that_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match="--run"):
        place(tmp_path, name)


def test_names_of_runs(tmp_path: Path) -> None:
    assert place(tmp_path, "lr=1e-4/seed 0 é 猫") == tmp_path / "lr=1e-4" / "seed 0 é 猫"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert place(tmp_path, "run") == tmp_path / "run"
    with pytest.raises(ValueError, match="a run cannot lie within another"):
        place(tmp_path, "run/checkpoints")
    with pytest.raises(ValueError, match="is a run, which cannot hold others"):
        place_of_many(tmp_path, "run", "--name")


@pytest.mark.parametrize(
    "resources",
    [
        {name: value}
        for name in ("partition", "mem", "time", "account", "qos", "constraint", "setup", "extra", "shared")
        for value in ("x\ntouch pwned", "x\rtouch pwned", "x\x00y", "x\u2028y")
    ],
)
def test_a_request_is_one_line_each(resources: dict[str, str]) -> None:
    given = {name: (value,) if name in ("setup", "extra", "shared") else value for name, value in resources.items()}
    with pytest.raises(ValueError, match=next(iter(resources))):
        Resources(**given).validate()


@pytest.mark.parametrize("text", ["9" * 39, "999999d", "9" * 10_000])
def test_a_time_has_an_end(text: str) -> None:
    with pytest.raises(ValueError, match="ten years is the longest"):
        minutes(text)


@pytest.mark.parametrize("name", ["a\ntouch pwned\n", "a\rb", "100%j", "back\\slash", "a\x1b[31m"])
def test_a_working_folder_that_no_script_can_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    line = [sys.executable, "-P", "-m", "detr_container", "submit", "debug", "--dry-run"]
    done = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Rename it" in done.stderr
    assert list(folder.iterdir()) == []


def test_names_with_signs_of_the_shell_run_nothing(tmp_path: Path) -> None:
    """The script itself, run by bash where `srun` is no more than `echo`."""
    folder = tmp_path / "it's; touch pwned $(touch pwned) `touch pwned` \"&"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "srun").symlink_to("/bin/echo")
    plan = Submission(folder / "001", "slurm", [str(folder)], Resources(account="$(touch pwned)"), "", str(folder), "")
    plan = dataclasses.replace(plan, workdir=str(folder))
    surroundings = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    done = subprocess.run(
        ["bash", "-c", script(plan, "$(touch pwned)")],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "submitit.core._submit" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["bin"]
    assert not (tmp_path / "pwned").exists()
