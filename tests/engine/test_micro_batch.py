"""What `train.micro_batch=0` becomes: found by whole steps in another process, recorded, and kept at a resume."""

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from runs import final_state, one_thread, shapes_folder, tiny, train_in

from detr_container.base.interrupt import StopRequest
from detr_container.base.processes import ProcessInfo
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import validate
from detr_container.engine import micro_batch
from detr_container.engine.micro_batch import candidates, fit
from detr_container.engine.session import Session
from detr_container.engine.train import train
from detr_container.engine.trials import trials_of
from detr_container.measure import preflight
from detr_container.measure.preflight import PreflightOptions

GIB = 2**30
CPU = Session(ProcessInfo(), torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_folder(tmp_path_factory)


def test_candidates_are_the_powers_of_two_that_divide_a_share() -> None:
    for batch in range(1, 70):
        for world in (1, 2, 3):
            if batch % world:
                with pytest.raises(ValueError, match=f"train.batch={batch} is not divisible by {world} processes"):
                    candidates(batch, world)
            else:
                expected = [n for n in (1, 2, 4, 8, 16, 32, 64) if (batch // world) % n == 0]
                assert candidates(batch, world) == expected


def of_canvas(root: Path, side: int, **changed: Any) -> DetectionExperiment:
    """Every batch is of one size, and large enough to tell its memory from the interpreter's."""
    return tiny(root, data__canvas=side, train__batch=8, train__micro_batch=0, **changed)


def test_more_memory_takes_more_images_and_too_little_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment = of_canvas(root, 384)
    task = trials_of(experiment).opened()
    with one_thread():
        every = fit(task, experiment, CPU, StopRequest())
        assert every.images == 8
        assert every.words.startswith("8 x 384 x 384 pixels, up to ")
        # Half a micro batch of eight takes more than this less.
        some = fit(task, experiment, CPU, StopRequest(), (every.peak - 0.04 * GIB) / micro_batch.SHARE)
        assert 1 <= some.images < 8
        assert some.peak <= some.room < every.peak
        with pytest.raises(ValueError, match=r"not even one image fits into 0\.05 GiB \(1 x 384 x") as no:
            fit(task, experiment, CPU, StopRequest(), 0.05 / micro_batch.SHARE * GIB)
        assert "use train.checkpoint_activations=all or train.precision=bf16, or lower data.scales" in str(no.value)


def test_what_was_found_is_recorded_and_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked: list[list[int]] = []
    real = micro_batch._largest_of

    def counted(tried: list[int], *others: Any) -> Any:
        asked.append(tried)
        return real(tried, *others)

    monkeypatch.setattr(micro_batch, "_largest_of", counted)
    experiment = tiny(root, train__micro_batch=0, backbone__norm="frozen", train__epochs=1)
    half = replace(experiment, train=replace(experiment.train, max_steps=2))
    assert train_in(tmp_path / "found", half) == 0
    assert final_state(tmp_path / "found")["micro_batch"] == 4
    assert "train.micro_batch=0 is 4 here: 4 x 64 x 64 pixels, up to" in caplog.text
    assert train_in(tmp_path / "found", experiment) == 0
    assert asked == [[1, 2, 4], [4]]
    lines = (tmp_path / "found" / "provenance.jsonl").read_text().splitlines()
    assert [json.loads(line)["micro_batch"] for line in lines] == [4, 4]
    assert json.loads((tmp_path / "found" / "config.json").read_text())["train"]["micro_batch"] == 0
    # The same run by its number.
    number = replace(experiment, train=replace(experiment.train, micro_batch=4))
    assert train_in(tmp_path / "given", replace(number, train=replace(number.train, max_steps=2))) == 0
    assert train_in(tmp_path / "given", number) == 0
    assert "micro_batch" not in final_state(tmp_path / "given")
    mine, theirs = final_state(tmp_path / "found")["model"], final_state(tmp_path / "given")["model"]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_resume_takes_fewer_where_what_it_had_does_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def up_to_two(tried: list[int], *_: Any) -> Any:
        asked.append(tried)
        fitting = [each for each in tried if each <= 2]
        return micro_batch.Fitted(fitting[-1], 1.0, 2.0, "") if fitting else None

    monkeypatch.setattr(micro_batch, "_largest_of", up_to_two)
    experiment = tiny(root, train__batch=16, train__micro_batch=0)
    task = trials_of(experiment).opened()
    assert fit(task, experiment, CPU, StopRequest(), known=8).images == 2
    assert asked == [[8], [1, 2, 4]]
    for damaged in (3, 0, None, "8", True):
        asked.clear()
        assert fit(task, experiment, CPU, StopRequest(), known=damaged).images == (1 if damaged is True else 2)
        assert asked[-1] == ([1] if damaged is True else [1, 2, 4, 8, 16])


def test_a_process_that_cannot_try_says_why(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho 'no such device'; exit 3\n")
    program.chmod(0o755)
    experiment = tiny(root, train__micro_batch=0)
    task = trials_of(experiment).opened()
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ValueError, match=r"ended with status 3 \(no such device\): set train\.micro_batch to a number"):
        fit(task, experiment, CPU, StopRequest())


def test_a_request_to_stop_ends_the_trying(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop = StopRequest()
    stop.request()
    children = psutil.Process().children()
    with one_thread():
        assert train(tiny(root, train__micro_batch=0, backbone__norm="frozen"), tmp_path / "run", stop) == 143
    assert "asked to stop by SIGTERM while trying what fits into memory: nothing was begun" in caplog.text
    assert not (tmp_path / "run" / "config.json").exists()
    assert psutil.Process().children() == children


@pytest.mark.parametrize("changed", [{"loss__normalise": "process"}, {"backbone__norm": "batch"}])
def test_it_is_refused_where_results_follow_from_it(root: Path, changed: dict[str, Any]) -> None:
    changed = {"backbone__norm": "frozen", **changed}
    assert validate(tiny(root, train__micro_batch=2, **changed)) == []
    with pytest.raises(ValueError, match=r"train\.micro_batch=0: with .* results follow from the size of"):
        validate(tiny(root, train__micro_batch=0, **changed))


def test_preflight_says_which_and_measures_with_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = PreflightOptions(tiny(root, train__batch=8, train__micro_batch=0, backbone__norm="frozen"), processes=2)
    with one_thread():
        checks = preflight._Preflight(options, CPU, tmp_path, "", 0.0)
        assert "batch 8 = 2 x 4 (processes, images, as many at a time as fit)" in checks.settings()
        checks.task = checks.trials.opened()
        assert re.fullmatch(
            r"train\.micro_batch=0 is 4 here: 4 x 64 x 64 pixels, up to \d objects: 0\.\d\d GiB of \d+\.\d\d GiB",
            checks.memory(),
        )
        assert checks.experiment.train.micro_batch == 4
        assert checks._probe("step").sampler.accumulation == 1
        options = replace(options, memory=0.1)
        checks = preflight._Preflight(options, CPU, tmp_path, "", 0.0)
        checks.settings()
        checks.task = checks.trials.opened()
        with pytest.raises(ValueError, match="not even one image fits into"):
            checks.memory()
        assert not checks.fits


@pytest.mark.gpu
def test_it_is_found_on_a_gpu_and_nothing_stays_behind(root: Path) -> None:
    experiment = replace(of_canvas(root, 512), device="cuda")
    session = Session(ProcessInfo(), torch.device("cuda", 0))
    task = trials_of(experiment).opened()
    torch.zeros(1, device="cuda")
    before = torch.cuda.mem_get_info()[0]
    every = fit(task, experiment, session, StopRequest())
    assert every.images == 8
    assert 0 < every.peak < every.room
    some = fit(task, experiment, session, StopRequest(), 0.4 * every.peak / micro_batch.SHARE)
    assert some.images < 8
    assert before - torch.cuda.mem_get_info()[0] < 64 * 2**20
