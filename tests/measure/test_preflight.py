"""Preflight: what is well has its numbers, what is broken is red with a remedy, and nothing stays behind."""

import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from runs import one_thread, tiny, when

from detr_container.config.detection import DetectionExperiment
from detr_container.datasets.dataset import DetectionDataset
from detr_container.engine.session import open_session
from detr_container.engine.trainer import Trainer
from detr_container.measure import preflight
from detr_container.measure.preflight import PreflightOptions
from detr_container.tasks.detection import finding, task
from detr_container.tasks.detection.build import build_detector

NAMES = ["settings", "data", "memory", "step", "learning", "saving", "evaluation", "time"]
Outcomes = dict[str, tuple[str, str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, which must be as empty afterwards; and no process may be left."""
    place = tmp_path / "working"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(preflight, "STEPS", 3)
    before = processes()
    yield place
    assert list(place.iterdir()) == []
    assert processes() == before


@pytest.fixture
def enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not measured, which takes another process that imports torch."""
    monkeypatch.setattr(preflight, "step_memory", lambda *_: (2**30, 2**31))


def processes() -> set[int]:
    """The processes that this one has started, but for multiprocessing's two servants, which stay for good."""
    found = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children()}
    return {pid for pid, command in found.items() if "forkserver" not in command and "resource_tracker" not in command}


def outcomes_of(out: str) -> Outcomes:
    """The outcome of each check: its word and its text."""
    lines = re.findall(r"^(ok|FAIL|--) +(\w+) +(.*(?:\n {20}.*)*)", out, re.MULTILINE)
    assert [name for _, name, _ in lines] == NAMES
    return {name: (word, text) for word, name, text in lines}


@pytest.fixture
def fly(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Outcomes, str]]:
    """Make all checks of an experiment: the exit status, the outcome of each, and all that was printed."""

    def check(experiment: DetectionExperiment, **options: Any) -> tuple[int, Outcomes, str]:
        with one_thread():
            status = preflight.run(PreflightOptions(experiment, **options))
        out = capsys.readouterr().out
        return status, outcomes_of(out), out

    return check


@pytest.fixture
def flight(root: Path, tmp_path: Path) -> Iterator[Any]:
    """Checks that have read the settings and the data, to make single ones."""
    with one_thread(), open_session("cpu") as session:
        checks = preflight._Preflight(PreflightOptions(tiny(root)), session, tmp_path / "scratch", "", 0.0)
        checks.settings()
        checks.task = checks.trials.opened()
        (tmp_path / "scratch").mkdir()
        yield checks


def test_what_is_well_has_its_numbers(fly: Any, root: Path) -> None:
    status, outcomes, _ = fly(tiny(root, train__ema_decay=0.9, train__checkpoint_minutes=15.0), time="1h", processes=2)
    assert status == 0
    assert {word for word, _ in outcomes.values()} == {"ok"}
    expected = {
        "settings": r"debug: batch 4 = 2 x 1 x 2 \(.*\), 2 epochs, 0 warnings",
        "data": r"train read 16 of 16 images, val read 5 of 5 images; 6 classes; no errors, \d+ warnings",
        "memory": r"2 x 64 x 64 pixels, up to \d objects: 0\.[2-9]\d GiB of \d+\.\d\d GiB",
        "step": r"[\d.]+ s \(median of 3 after 2\), [\d.]+ images/s, \d+ % of it waiting for data",
        "learning": r"loss [\d.]+ -> [\d.]+ in 20 steps on one batch",
        "saving": r"resumed after 2 of 4 steps, the run is the same bit for bit; [\d.]+ MiB in [\d.]+ s, \d+ GiB free",
        "evaluation": r"5 images, [\d.]+ images/s; AP [\d.]+, before training",
        "time": r"about \d+s \(8 steps \d+s, 2 evaluations \d+s, 2 checkpoints \d+s\): estimated for 2 processes.*"
        r"; it meets the limit of 1h 0 times",
    }
    for name, pattern in expected.items():
        assert re.fullmatch(pattern, outcomes[name][1]), outcomes[name][1]


def test_settings_that_no_run_can_have_stop_what_needs_them(fly: Any, root: Path) -> None:
    status, outcomes, _ = fly(tiny(root, train__lr=0.0))
    assert status == 1
    assert outcomes.pop("settings") == ("FAIL", "train.lr=0.0: it must be greater than 0 and at most 1e+30")
    assert outcomes.pop("data")[0] == "ok"
    assert {word for word, _ in outcomes.values()} == {"--"}
    assert all(text.startswith("skipped: ") for _, text in outcomes.values())


@pytest.mark.parametrize(
    ("changed", "options", "why"),
    [
        ({"backbone__name": "resnet5"}, {}, "there is no backbone 'resnet5'"),
        ({}, {"processes": 3}, "train.batch=4 is not divisible by 3 process"),
    ],
)
def test_settings_that_fit_no_model_or_machine(
    fly: Any, root: Path, changed: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    status, outcomes, _ = fly(tiny(root, **changed), **options)
    assert (status, outcomes["settings"][0]) == (1, "FAIL")
    assert why in outcomes["settings"][1]


@pytest.mark.usefixtures("enough")
def test_a_damaged_image_is_red_and_the_rest_is_tried(fly: Any, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    image = min((tmp_path / "copy" / "val2017").iterdir())
    image.write_bytes(image.read_bytes()[:-400])
    status, outcomes, _ = fly(tiny(tmp_path / "copy"))
    assert status == 1
    assert outcomes["data"][0] == "FAIL"
    assert re.search(rf"1 errors\n +val: {image.name} \(image \d+\): the file cannot be read", outcomes["data"][1])
    assert [outcomes[name][0] for name in NAMES] == ["ok", "FAIL", "ok", "ok", "ok", "ok", "FAIL", "ok"]
    assert "evaluations" not in outcomes["time"][1]


def test_warnings_are_shown(flight: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flight.options = replace(flight.options, images=3)
    train = replace(flight.experiment.train, lr_drop=7, lr_backbone=0.0)
    head = replace(flight.experiment.head, queries=1, position="learned")
    flight.trials = flight.trials.like(replace(flight.experiment, train=train, head=head))
    assert flight.settings().endswith(", 2 warnings")
    assert flight.data_set().startswith("train read 3 of 16 images, val read 3 of 5 images; ")
    out = capsys.readouterr().out
    assert "        warning: train.lr_drop has no effect on the cosine schedule\n" in out
    assert "        warning: train.lr_backbone=0 also stops the learned positions" in out
    assert re.search(r"warning: train: image \d+ has \d+ objects, of which 1 at most can be found: raise head\.q", out)


def test_without_data_or_with_too_little_of_it(fly: Any, root: Path, tmp_path: Path) -> None:
    status, outcomes, _ = fly(tiny(tmp_path / "nowhere"))
    assert status == 1
    assert "missing: the images" in outcomes["data"][1]
    assert all(outcomes[name] == ("--", "skipped: the data set cannot be used") for name in NAMES[2:-1])
    status, outcomes, _ = fly(tiny(root, train__batch=18), memory=0.01)
    assert "train.batch=18 images per step, but the training set has 16" in outcomes["data"][1]
    assert outcomes["evaluation"] == ("--", "skipped: for the reason given at data")


# -- memory -----------------------------------------------------------------------------------------------------------


def test_too_little_memory_is_red_and_says_what_to_lower(fly: Any, root: Path) -> None:
    status, outcomes, _ = fly(tiny(root), memory=0.05)
    assert (status, outcomes["memory"][0]) == (1, "FAIL")
    assert "(2 x 64 x 64 pixels, up to " in outcomes["memory"][1]
    assert (
        "needs more than the 0.05 GiB that there are: lower train.micro_batch=2, data.scales" in outcomes["memory"][1]
    )
    assert [outcomes[name][0] for name in NAMES] == ["ok", "ok", "FAIL", "--", "--", "--", "ok", "--"]


# -- learning, saving, evaluation -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("enough")
def test_a_model_that_does_not_learn_is_red(fly: Any, root: Path) -> None:
    status, outcomes, _ = fly(tiny(root, train__lr=1e-12, train__lr_backbone=0.0, head__dropout=0.2))
    assert status == 1
    assert [outcomes[name][0] for name in NAMES] == ["ok", "ok", "ok", "ok", "FAIL", "ok", "ok", "ok"]
    assert "it must fall by 5 %. Look at train.lr=1e-12 and train.lr_backbone=0" in outcomes["learning"][1]


@pytest.mark.parametrize("rate", [1e3, 1e-9])
def test_learning_rates_that_are_far_off(flight: Any, rate: float) -> None:
    train = replace(flight.experiment.train, lr=rate, lr_backbone=rate)
    flight.trials = flight.trials.like(replace(flight.experiment, train=train))
    with pytest.raises((ValueError, FloatingPointError), match=r"learning rates: |must fall by"):
        flight.learning()


def test_a_frozen_model_does_not_learn(flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(*arguments: Any) -> Any:
        model = build(*arguments).requires_grad_(False)
        # One parameter without influence, or there would be no optimizer.
        model.register_parameter("idle", torch.nn.Parameter(torch.zeros(1)))
        add = model.register_forward_hook
        add(lambda module, inputs, output: replace(output, logits=output.logits + 0 * module.idle))
        return model

    build = build_detector
    train = replace(flight.experiment.train, lr_backbone=0.0)
    flight.trials = flight.trials.like(replace(flight.experiment, train=train))
    monkeypatch.setattr("detr_container.tasks.detection.task.build_detector", lambda *a, weights=True: frozen(*a))
    with pytest.raises(ValueError, match=r"loss ([\d.]+) -> \1 in 20 steps"):
        flight.learning()


def test_labels_that_are_not_finite(flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = DetectionDataset.__getitem__

    def spoilt(self: DetectionDataset, key: tuple[int, int]) -> Any:
        sample = read(self, key)
        return replace(sample, boxes=sample.boxes * math.nan)

    monkeypatch.setattr(DetectionDataset, "__getitem__", spoilt)
    with pytest.raises((FloatingPointError, ValueError)):
        flight.learning()


def test_images_without_objects_teach_nothing(flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetectionDataset, "objects", lambda self, index: (torch.zeros(0, 4), torch.zeros(0)))
    with pytest.raises(ValueError, match="no training image has an object"):
        flight.learning()


def test_a_run_that_forgets_its_optimizer_is_red(flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the same bit for bit" in flight.saving()
    restore = Trainer._restore

    def forgetful(self: Trainer, path: Path, state: dict[str, Any]) -> None:
        restore(self, path, state)
        for moments in self.steps.optimizer.state.values():
            moments["exp_avg"].zero_()

    monkeypatch.setattr(Trainer, "_restore", forgetful)
    with pytest.raises(ValueError, match=r"it is another run than uninterrupted: \d+ of \d+ values .* by \d+ %"):
        flight.saving()


def test_a_disk_that_is_full_or_closed(flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**21))
    with pytest.raises(ValueError, match=r"of which 3 \(train\.keep_checkpoints and a new one\) do not fit where runs"):
        flight.saving()
    temporary = tempfile.TemporaryDirectory

    def closed(prefix: str, dir: Path | None = None, **options: Any) -> Any:  # noqa: A002
        if dir is not None:
            raise PermissionError(13, "Permission denied", str(dir))
        return temporary(prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", closed)
    with preflight._scratch(Path("runs")) as (folder, flight.refusal):
        assert folder.is_dir()
    with pytest.raises(ValueError, match=r"cannot write in .*: Permission denied\. Choose another folder with --runs"):
        flight.saving()


def test_metrics_that_are_no_numbers(flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = task.evaluate_to

    def wrong(*arguments: Any, **options: Any) -> Any:
        return replace(evaluate(*arguments, **options), ap50=math.nan)

    monkeypatch.setattr(task, "evaluate_to", wrong)
    with pytest.raises(ValueError, match="ap50 came out as no number"):
        flight.evaluation()


# -- time -------------------------------------------------------------------------------------------------------------


def test_time_counts_requeues_and_refuses_a_limit_that_is_too_short(flight: Any) -> None:
    flight.step_seconds, flight.save_seconds, flight.eval_rate = 1500.0, 10.0, 0.001
    assert flight.time().startswith("about 6h 07m (8 steps 3h 20m, 2 evaluations 2h 46m, 2 checkpoints 20s): ")
    flight.options, flight.limit = replace(flight.options, time="1h"), 3600.0
    assert flight.time().endswith("; it meets the limit of 1h 6 times")
    flight.limit = 1510.0
    with pytest.raises(ValueError, match="not even a step and its checkpoint end in"):
        flight.time()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"time": "soon"}, "a time of 'soon'"),
        ({"processes": 0}, "processes=0: it must be 1 or more"),
        ({"val_images": 0}, "val_images=0"),
        ({"memory": -1.0}, "memory=-1.0"),
    ],
)
def test_options_that_mean_nothing(root: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        preflight.run(PreflightOptions(tiny(root), **options))


def test_one_process_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="start it without torchrun, and give --processes N"):
        preflight.run(PreflightOptions(tiny(root)))


# -- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_interrupted_while_another_process_tries(
    fly: Any, root: Path, elsewhere: Path, number: signal.Signals, leaves: type[BaseException]
) -> None:
    """The fixture `elsewhere` sees that neither the folder nor the process is left."""
    before, handler = processes(), signal.getsignal(signal.SIGTERM)
    seen: list[Path] = []

    def act() -> None:
        seen.extend(elsewhere.iterdir())
        os.kill(os.getpid(), number)

    watch = when(lambda: bool(processes() - before), act)
    with pytest.raises(leaves):
        fly(tiny(root))
    watch.join()
    assert [path.name.startswith(".preflight-") for path in seen] == [True]
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_interrupted_in_the_instant_in_which_another_process_starts(
    fly: Any, root: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, leaves: type[BaseException]
) -> None:
    """Where the call that starts it has not returned yet, so that nobody but Python knows of it."""
    started: list[subprocess.Popen[bytes]] = []

    class Signalled(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(subprocess, "Popen", Signalled)
    with pytest.raises(leaves):
        fly(tiny(root))
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_request_to_stop_is_not_lost_in_an_error() -> None:
    def fail_when_asked() -> None:
        with preflight._between_steps() as stop:
            stop.request(signal.SIGTERM)
            raise ValueError("a step went wrong")

    with pytest.raises(SystemExit, match="143"):
        fail_when_asked()


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize(
    ("check", "where", "calls"),
    [
        ("step", "engine.trainer.Trainer.take", 1),
        # A run learns of the request with the step after it, as all its processes do.
        ("saving", "engine.trainer.Trainer.take", 2),
        ("evaluation", "tasks.detection.finding.postprocess", 1),
    ],
)
def test_interrupted_at_work(
    flight: Any,
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    where: str,
    calls: int,
    number: signal.Signals,
    leaves: type[BaseException],
) -> None:
    """What is being done comes to its end, so that the loader's processes do, and then the command leaves."""
    owner, _, name = where.rpartition(".")
    real = getattr(Trainer if "Trainer" in owner else finding, name)
    sent = []

    def signalled(*arguments: Any, **options: Any) -> Any:
        sent.append(os.kill(os.getpid(), number))
        return real(*arguments, **options)

    monkeypatch.setattr(f"detr_container.{where}", signalled)
    with pytest.raises(leaves) as caught:
        getattr(flight, check)()
    assert len(sent) == calls
    assert number == signal.SIGINT or str(caught.value) == "143"
