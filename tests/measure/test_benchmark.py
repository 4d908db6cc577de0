"""The benchmark command: every metric, ratios within rounds, and experiments that fail beside others that do not."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from runs import environment

from detr_container.base.host_memory import keep_freed_memory
from detr_container.commands.cli import main
from detr_container.config.experiments import _BUILDERS, named
from detr_container.config.settings import to_dict
from detr_container.datasets.shapes import CATEGORY_IDS
from detr_container.engine.peak_memory import begin_phase, peak_memory
from detr_container.engine.trials import Trials, trials_of
from detr_container.measure.benchmark import labelled, tables
from detr_container.measure.costs import costs
from detr_container.measure.options import PARTS, MeasureOptions, Work, parse_size
from detr_container.measure.side_by_side import Worker, _Measured, _schedule, side_by_side

DEBUG = replace(named("debug").experiment, device="cpu")
WIDER = replace(DEBUG, head=replace(DEBUG.head, width=64))
QUICK = MeasureOptions(sizes=((64, 64), (60, 90)), rounds=3, seconds=0.0, classes=3)
FAST = ["--sizes", "64x64", "--seconds", "0", "--classes", "3"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def measured(_one_thread: None) -> dict[str, Any]:
    """Two experiments, side by side."""
    return side_by_side({"narrow": DEBUG, "wide": WIDER}, QUICK)


def test_every_metric_is_there(measured: dict[str, Any]) -> None:
    parts = ("total", "backbone", "head")
    keys = {f"parameters/{part}" for part in (*parts, "trained")} | {"memory/idle", "memory/training/2"}
    keys |= {f"gflops/{size}/{part}" for size in ("64x64", "60x90") for part in parts}
    forward = [f"forward/{size}/{count}" for size in ("64x64", "60x90") for count in (1, 2)]
    keys |= {f"{key}/{part}" for key in forward for part in parts} | {f"memory/{key}" for key in forward}
    keys |= {f"training/2/{part}" for part in (*PARTS[1:], "step", "images_per_second", "values")}
    assert measured["first"] == "narrow"
    for each in measured["experiments"].values():
        assert (each["failure"], each["refused"], each["device"]) == (None, False, "CPU, 1 threads")
        assert set(each["figures"]) == keys
        assert all(metric["value"] > 0 for key, metric in each["figures"].items() if not key.startswith("memory"))
        timed = [key for key, metric in each["figures"].items() if "rounds" in metric]
        assert {key.split("/")[0] for key in timed} == {"forward", "training"}
        assert all(len(each["figures"][key]["rounds"]) == 3 for key in timed)
        assert 0.05 < each["figures"]["memory/idle"]["value"] < 64
    assert json.loads(json.dumps(measured))["experiments"] == measured["experiments"]


def test_metrics_are_of_the_experiment(measured: dict[str, Any]) -> None:
    for label, experiment in (("narrow", DEBUG), ("wide", WIDER)):
        metrics = measured["experiments"][label]["figures"]
        known = costs(experiment, 3, [(60, 90)])
        assert metrics["parameters/head"]["value"] == known.parameters.head
        assert metrics["gflops/60x90/head"]["value"] == pytest.approx(known.gflops.head)
        for images in (1, 2):
            key = f"forward/60x90/{images}"
            split = zip(*(metrics[f"{key}/{part}"]["rounds"] for part in ("backbone", "head", "total")), strict=True)
            # With a single pass per measurement the parts add up.
            assert all(backbone + head == pytest.approx(total) for backbone, head, total in split)
        steps, rates = (metrics[f"training/2/{name}"]["rounds"] for name in ("step", "images_per_second"))
        assert rates == pytest.approx([2 / step for step in steps])
        # Two images of 60 x 90 pixels, padded to multiples of 32 pixels.
        assert metrics["training/2/values"]["value"] == 2 * 3 * 64 * 96
        assert metrics["training/2/step"]["value"] == statistics.median(steps)


def test_ratios_are_to_the_first(measured: dict[str, Any]) -> None:
    first, second = (each["figures"] for each in measured["experiments"].values())
    assert not any("ratio" in metric for metric in first.values())
    for key in ("forward/64x64/1/head", "training/2/step"):
        pairs = zip(second[key]["rounds"], first[key]["rounds"], strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        expected = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        assert second[key]["ratio"] == expected
    counted = second["parameters/head"]["value"] / first["parameters/head"]["value"]
    assert second["parameters/head"]["ratio"] == {"median": counted, "least": counted, "most": counted}


def test_ratios_are_taken_within_rounds() -> None:
    """The machine was ten times slower in one round; and one experiment did not live to see the last."""
    first, second, dead = (_Measured(DEBUG) for _ in range(3))
    first.rounds["training/2/step"] = [1.0, 10.0, 4.0]
    second.rounds["training/2/step"] = [2.0, 5.0, 12.0]
    dead.rounds["training/2/step"] = [3.0, 40.0]
    described = second.described(first)["figures"]["training/2/step"]
    assert described == {"value": 5.0, "rounds": [2.0, 5.0, 12.0], "ratio": {"median": 2.0, "least": 0.5, "most": 3.0}}
    assert dead.described(first)["figures"]["training/2/step"]["ratio"] == {"median": 3.5, "least": 3.0, "most": 4.0}
    assert "ratio" not in second.described(_Measured(DEBUG))["figures"]["training/2/step"]


def test_the_schedule_goes_round_and_change_who_is_first() -> None:
    options = replace(QUICK, rounds=4)
    schedule = [(label, request) for label, request, _ in _schedule(["a", "b", "c"], options)]
    assert [label for label, request in schedule if request["do"] == "prepare"] == ["a", "b", "c"]
    works = len(options.works())
    counts = {"prepare": 3, "warm": 3 * works, "measure": 12 * works, "watch": 3}
    assert Counter(request["do"] for _, request in schedule) == counts
    assert {request["do"] for _, request in schedule[-3:]} == {"watch"}
    timed = [(label, request["work"]) for label, request in schedule if request["do"] == "measure"]
    threes = [timed[start : start + 3] for start in range(0, len(timed), 3)]
    assert all(work == three[0][1] for three in threes for _, work in three)
    orders = ["".join(label for label, _ in three) for three in threes]
    assert orders == ["abc"] * works + ["bca"] * works + ["cab"] * works + ["abc"] * works


def test_experiments_that_fail_are_named_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One cannot be built, and one is killed in its second round."""
    odd = replace(DEBUG, name="odd", backbone=replace(DEBUG.backbone, frozen_stages=9))
    monkeypatch.setitem(_BUILDERS, "odd", (lambda: odd, ()))
    asked: list[tuple[Worker, str]] = []
    ask = Worker.ask

    def killed_in_the_second_round(self: Worker, request: dict[str, Any]) -> dict[str, Any]:
        asked.append((self, request["do"]))
        third = list(dict.fromkeys(worker for worker, _ in asked))[-1]
        if asked.count((third, "measure")) == 5 and self is third:
            self.process.kill()
        return ask(self, request)

    monkeypatch.setattr(Worker, "ask", killed_in_the_second_round)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    options = [*FAST, "--rounds", "3", "--head.queries", "7", "--output", "metrics.json"]
    assert main(["benchmark", "debug", "odd", "debug", *options]) == 1
    out, err = capsys.readouterr()
    message = "round 2, a forward pass on 2 x 64x64: its process was killed, most likely for lack of memory"
    assert "error: odd: frozen_stages=9, but this backbone has 3 stages" in err
    assert f"error: debug (2): {message}" in err
    assert "Traceback" not in err
    assert out.count("failed") == 2
    healthy, refused, dead = json.loads(Path("metrics.json").read_text())["experiments"].values()
    # What is given on the command line holds for all.
    assert [each["settings"]["head"]["queries"] for each in (healthy, refused, dead)] == [7, 7, 7]
    assert [each["refused"] for each in (healthy, refused, dead)] == [False, True, False]
    assert (refused["figures"], "device" in refused) == ({}, False)
    assert (healthy["failure"], len(healthy["figures"]["training/2/step"]["rounds"])) == (None, 3)
    assert dead["failure"].startswith(message)
    assert len(dead["figures"]["forward/64x64/1/total"]["rounds"]) == 2
    assert len(dead["figures"]["training/2/step"]["rounds"]) == 1
    assert "ratio" in dead["figures"]["training/2/step"]
    assert all(worker.process.returncode is not None for worker, _ in asked)


def test_works() -> None:
    """The largest size is the one with most pixels; a batch of one is not measured twice."""
    options = MeasureOptions(sizes=((64, 64), (32, 96), (64, 64)), batch=(1,), source="made")
    options.check()
    forward = [Work("forward", (64, 64), 1), Work("forward", (32, 96), 1)]
    assert options.works() == [*forward, Work("training", (64, 64), 1)]
    assert replace(options, training=False).works() == forward
    with pytest.raises(ValueError, match="there is no experiment to measure"):
        side_by_side({}, options)


BAD_SIZES = [
    *((text, f"{text!r} is no size: write HEIGHTxWIDTH in pixels") for text in ("0", "31", "10e9", "text", "", "0x0")),
    ("1000000000x1000000000", "'1000000000x1000000000': a side has at most 16,384 pixels"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["debug", "--head.width", "30"], "error: head.width=30: sine positions"),
        (["debug", "debgu"], "there is no experiment 'debgu': did you mean debug"),
        (["debug", "--rounds", "0"], "rounds=0: it must be 1 or more"),
        (["debug", "--sizes"], "sizes=(): give one or more"),
        (["debug", "--batch"], "batch=(): give one or more"),
        (["debug", "--no-forward", "--no-training"], "forward=False with training=False leaves nothing to measure"),
        *((["debug", "--sizes", "64x64", text], f"error: sizes={text!r}: {rule}") for text, rule in BAD_SIZES),
        (["debug", "demo", "--round", "3"], "--rounds"),
    ],
)
def test_mistakes_are_answered_as_elsewhere(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    try:
        status = main(["benchmark", *arguments])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert "sizes=" not in message or err.count("\n") == 1


def test_own_images_are_loaded(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    data = ["--source", "data", "--data.root", str(root), "--batch", "4"]
    assert main(["benchmark", "debug", *FAST, *data, "--rounds", "2", "--output", str(output)]) == 0
    (metrics,) = (each["figures"] for each in json.loads(output.read_text())["experiments"].values())
    assert set(metrics) >= {f"training/4/{part}" for part in PARTS}
    # The classes are those of the images, whatever --classes is.
    assert metrics["parameters/head"]["value"] == costs(DEBUG, len(CATEGORY_IDS), [(64, 64)]).parameters.head


def test_sizes_are_drawn_and_settings_vary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """COCO's sizes on canvases, two numbers of images, with graphs and without: a CPU has none, and no busy GPU."""
    output = tmp_path / "metrics.json"
    drawn = "--source coco --drawn 5 --batch 1 2 --no-forward --graphs auto off --precision bf16 --data.canvases on"
    small = "--data.scales 64 96 --data.crop-resize 64 --data.crop-range 48 64 --data.max-size 128 --train.epochs 2"
    line = f"benchmark debug {drawn} {small} --train.max-steps 0 --rounds 2 --device cpu --output {output}"
    assert main([*line.split(), *FAST]) == 0
    found = json.loads(output.read_text())["experiments"]
    assert list(found) == ["debug bf16 graphs=auto", "debug bf16 graphs=off"]
    for label, each in found.items():
        metrics = each["figures"]
        assert (each["precision"], each["settings"]["train"]["graphs"]) == ("bf16", label.partition("=")[2])
        assert not any(key.startswith("forward/") or key.endswith(("/busy", "/host_waits")) for key in metrics)
        for images in (1, 2):
            key = f"training/{images}"
            assert 1 < metrics[f"{key}/sizes"]["value"] <= 5
            assert {f"{key}/new_size", f"{key}/new_sizes", f"memory/{key}"} <= set(metrics)
            # Two epochs of COCO.
            hours = zip(*(metrics[f"{key}/{name}"]["rounds"] for name in ("hours", "images_per_second")), strict=True)
            assert all(value == pytest.approx(2 * 118_287 / rate / 3600, rel=1e-3) for value, rate in hours)
    assert "a new size, s" in capsys.readouterr().out


def test_a_task_may_draw_no_sizes() -> None:
    with pytest.raises(ValueError, match="the task detection draw no sizes: use another --source"):
        Trials.drawn(trials_of(DEBUG), torch.nn.Identity(), [], 1, 1, 1)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detr_container", "benchmark", "debug", "debug", "--rounds", "10000", *FAST]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end, workers = time.monotonic() + 120, list[psutil.Process]()
        # Two seconds of work each: they are building at least.
        while len(workers) < 2 or min(sum(worker.cpu_times()[:2]) for worker in workers) < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
            workers = psutil.Process(process.pid).children()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert out == ""
    if number == signal.SIGINT:
        assert (process.returncode, err) == (130, "error: interrupted\n")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux forgets a peak")
def test_a_phase_does_not_remember_the_one_before() -> None:
    cpu, mib = torch.device("cpu"), 1024.0
    keep_freed_memory()
    large = [torch.ones(1 << 20) for _ in range(256)]
    before = peak_memory(cpu)
    del large
    assert begin_phase(cpu) == "cpu"
    quiet = peak_memory(cpu)
    assert before - quiet > 900 / mib
    small = torch.ones(64 << 20)
    del small
    assert 250 / mib < peak_memory(cpu) - quiet < 400 / mib


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux forgets a peak")
def test_memory_of_a_pass_is_not_that_of_training(tmp_path: Path) -> None:
    """In a process of its own, as `benchmark` measures: memory that other tests have freed would hide a part of it."""
    options = replace(QUICK, sizes=((512, 512),), batch=(4,))
    small, large = Work("forward", (64, 64), 1), Work("training", (512, 512), 4)
    with (tmp_path / "errors").open("wb") as errors, Worker(errors) as worker:
        worker.ask({"do": "prepare", "experiment": to_dict(DEBUG), "options": asdict(options)})
        before, training, after = (
            worker.ask({"do": "warm", "work": asdict(work)})["figures"][f"memory/{work.key}"]
            for work in (small, large, small)
        )
    assert training > 0.15
    assert max(before, after) < training / 2


def test_a_backbone_that_is_not_called_itself_is_the_whole_pass(tmp_path: Path) -> None:
    """MH-MLP's classifier reads its last tokens rather than its maps."""
    settings = to_dict(named("classify_demo").experiment)
    settings["backbone"]["name"], settings["data"]["size"], settings["device"] = "mh_mlp_tiny", 32, "cpu"
    work = Work("forward", (32, 32), 1)
    with (tmp_path / "errors").open("wb") as errors, Worker(errors) as worker:
        worker.ask({"do": "prepare", "experiment": settings, "options": asdict(replace(QUICK, sizes=((32, 32),)))})
        found = worker.ask({"do": "measure", "work": asdict(work)})["figures"]
    assert found[f"{work.key}/backbone"] == found[f"{work.key}/total"] > found[f"{work.key}/head"] == 0


def test_tables_say_everything_and_fit(measured: dict[str, Any]) -> None:
    """Four experiments in 100 columns make two tables, each with the first; one alone shows its rounds and shares."""
    console = Console(width=100, record=True)
    found = {f"{name} of a long name": each for name, each in measured["experiments"].items()}
    four = {**found, **{f"{name}, again": each for name, each in found.items()}}
    console.print(*tables({**measured, "first": "narrow of a long name", "experiments": four}, 100))
    shown = console.export_text()
    assert "…" not in shown
    assert shown.count("parameters, millions") == 2
    ratio = measured["experiments"]["wide"]["figures"]["training/2/step"]["ratio"]
    assert f"{ratio['median']:.2f} ({ratio['least']:.2f}..{ratio['most']:.2f})" in shown
    alone = {**measured, "experiments": {"narrow": measured["experiments"]["narrow"]}}
    console.print(*tables(alone, 100))
    shown = console.export_text()
    # As earlier versions wrote it.
    console.print(*tables({**alone, "options": {**measured["options"], "source": "made"}}, 100))
    assert console.export_text() == shown
    assert all(part in shown for part in PARTS[1:])
    assert shown.count(" %)") == len(PARTS) - 1
    assert "ratio" not in shown.lower()


def test_labels() -> None:
    assert list(labelled([DEBUG, named("demo").experiment, DEBUG, DEBUG])) == [
        "debug",
        "demo",
        "debug (2)",
        "debug (3)",
    ]


@pytest.mark.parametrize("text", ["", "64", "0x64", "64x", "64x64x3", "-1x4", "64 x 64"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write HEIGHTxWIDTH"):
        parse_size(text)
