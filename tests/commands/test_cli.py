"""The command line: help, near misses, statuses, and what goes to which stream."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import environment, final_state, one_thread, settings_of, tiny

from detr_container.commands import cli
from detr_container.engine.run import Run


def run(*arguments: object) -> int:
    """The command's status, however it ends."""
    with one_thread():
        try:
            return cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return 0 if end.code is None else int(end.code)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)
    assert all((command.__doc__ or "").endswith((".", ".\n    ")) for command in cli.COMMANDS.values())


@pytest.mark.parametrize("arguments", [["data"], ["data", "--help"], ["data", "-h"], ["data", "help"]])
def test_the_first_of_two_words_lists_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 0
    shown, said = capsys.readouterr()
    assert all((f"  {name} " in shown) == name.startswith("data ") for name in cli.COMMANDS)
    assert said == ""


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert f"detr-container {command}" in shown
    if command in ("train", "submit", "preflight", "benchmark", "data speed", "data canvases"):
        assert f"an experiment of detection; others have others: `detr-container {command} EXPERIMENT --help`" in shown
    if command in ("train", "demo"):
        assert "--train.lr-backbone" in shown
        assert "--head.queries" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "demo"], "there is no command 'trian': did you mean train"),
        (["data", "chek", "x"], "did you mean data check"),
        (
            ["train", "classify_demo", "--head.queries", "3"],
            "--head.queries: classify_demo is an experiment of classification, and head.queries is a setting of "
            "detection: leave it out",
        ),
        (["preflight", "demo", "--loss.smoothing=0.3"], "--loss.smoothing: demo is an experiment of detection, and"),
        (["data", "frobnicate"], "there is no command 'data frobnicate': it is one of data make-shapes, data check,"),
        (["data", "--workers", "2"], "there is no command 'data --workers': it is one of data make-shapes"),
        (["frobnicate"], "there is no command 'frobnicate'. See --help"),
        (["train", "smca_r50"], "there is no experiment 'smca_r50': did you mean smca_r50_50e"),
        (["train", "debg"], "there is no experiment 'debg': did you mean debug"),
        (["train"], "name an experiment: detr-container train EXPERIMENT"),
        (["train", "--seed", "3"], "name an experiment"),
        (["train", "debug", "--head.querys", "3"], "--head.queries"),
        (["train", "debug", "--train.lr", "fast"], "--train.lr"),
        (["train", "debug", "--train.schedule", "linear"], "('step', 'cosine', 'deit')"),
        (["train", "debug", "--train.lr", "-1"], "train.lr=-1.0: it must be greater than 0"),
        (["train", "debug", "--data.root", "/nowhere", "--data.make-shapes", "0", "0", "0"], "missing: "),
        (["predict", "nowhere.pt", "nowhere.jpg"], "there is no image nowhere.jpg"),
        (["evaluate", "nowhere.pt"], "nowhere.pt: there is no such checkpoint"),
        (["data", "check", "/nowhere"], "/nowhere: there is no such data set"),
        (["benchmark", "debgu"], "did you mean debug"),
    ],
)
def test_a_mistake_is_named_on_stderr(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError, match="there is no experiment"):
        cli.main(["train", "debg"])


def test_experiments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run("experiments") == 0
    shown = capsys.readouterr().out
    row = shown.split("smca_container_light_50e\n")[1].split("\ndemo\n")[0]
    for part in ("smca", "300 queries", "container_light", "50 epochs", "drop at 40", "batch 16", "44.2"):
        assert part in row


def test_train_evaluate_and_predict_in_a_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands as the README has them, with a name for the run; warnings and progress go to stderr."""
    monkeypatch.chdir(tmp_path)
    options = settings_of(tiny(root, train__epochs=1, head__smooth=4.0, head__kind="detr"))
    assert run("train", "debug", "--run", "mine", *options) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "head.smooth has no effect on DETR" in err
    assert "step 4/4 epoch 1.00 loss" in err
    assert final_state(tmp_path / "runs" / "mine")["step"] == 4
    assert Run(tmp_path / "runs" / "mine").experiment().name == "debug"
    assert run("evaluate", "runs/mine", "--device", "cpu") == 0
    assert "wrote runs/mine/evaluation/detections.npz and scores.json" in capsys.readouterr().out
    image = min((root / "val2017").iterdir())
    assert run("predict", "runs/mine", image, "--device", "cpu") == 0
    found, wrote = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(image))}: \d+ detections", found)
    assert wrote == "wrote predictions/predictions.json and an image of each"
    assert run("export", "runs/mine", "published.pth") == 0
    assert "tensors to published.pth" in capsys.readouterr().out
    # The head reads a CONTAINER, which no folder of Hugging Face can state.
    assert run("export", "runs/mine", "hub", "--layout", "hugging-face-folder") == 2
    assert "only a DETR with softmax classes" in capsys.readouterr().err
    assert not Path("hub").exists()


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shapes"
    make_shapes = ["data", "make-shapes", folder, "--train", 4, "--val", 2, "--size", 64, "--workers", 1]
    assert run(*make_shapes) == 0
    assert f"made 4 training and 2 validation images in {folder}" in capsys.readouterr().out
    assert run(*make_shapes) == 0
    assert f"already there, unchanged: {folder}" in capsys.readouterr().out
    assert run("data", "check", folder, "--workers", 1) == 0
    capsys.readouterr()
    (folder / "train2017" / "000000000002.jpg").unlink()
    assert run("data", "check", folder, "--workers", 1) == 1
    assert "000000000002.jpg" in capsys.readouterr().out


def test_errors_of_other_ranks_name_the_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "3")
    assert run("train", "debg") == 2
    assert capsys.readouterr().err.startswith("[rank 3] error: there is no experiment")


def test_the_program_itself(tmp_path: Path) -> None:
    """`python -m detr_container`: help without torch, a status that a shell sees, and a closed pipe is no fault."""
    command = [sys.executable, "-X", "importtime", "-m", "detr_container", "train", "debug", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert "--train.lr" in done.stdout
    assert "| torch\n" not in done.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "detr_container", "experimnts"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: there is no command 'experimnts': did you mean experiments")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        piped = subprocess.run(
            [sys.executable, "-m", "detr_container", "experiments"],
            cwd=tmp_path,
            env=environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "Traceback" not in piped.stderr
    assert piped.returncode != 0
