"""The check of a GPU, as far as a CPU goes: real small measurements in its table; parts that fail, beside others."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr_container.measure import gpu_check
from detr_container.measure.gpu_check import ROOT, Part, Plan, check, parts_of
from detr_container.measure.gpu_page import Outcome, page

SMALL = "--device cpu --classes 3 --data.scales 64 96 --data.crop-resize 64 --data.crop-range 48 64 --data.max-size 128"
TINY = Plan(("debug",), compared=(), batches=("2",), size="64x64", drawn="4", pictures="4", workers=("0",))


@pytest.mark.slow
def test_real_measurements_in_one_table() -> None:
    """A GPU's busy share is missing here, and everything else is there."""
    plan = Plan(**{**vars(TINY), "seconds": "0.1", "loading": "0.1", "rest": tuple(SMALL.split())})
    parts = [*parts_of(plan, ["tests/measure/test_device_share.py"])]
    assert [part.name for part in parts] == [
        "tests",
        "debug bf16 graphs=auto",
        "debug bf16 graphs=off",
        "debug bf16, 2 images of COCO's sizes",
        "loader",
    ]
    broken = Part("broken", ("-c", "raise SystemExit('this was wrong')"), 60)
    outcomes = check([broken, *parts], 600)
    assert {outcome.name: outcome.failure for outcome in outcomes if outcome.failure} == {
        "broken": "ended with status 1"
    }
    lines = [*page(outcomes, "580.1")]
    assert lines[0].startswith("CPU, ")
    assert f"driver 580.1, torch {torch.__version__}" in lines[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in table} == {len(table[0])}
    (row,) = (dict(zip(table[0], cells, strict=True)) for cells in table[2:])
    assert (row["experiment"], row["images"]) == ("debug, bf16", "2")
    assert row["GPU busy, eager / graphs"] == "- / -"
    eager, graphs, ratio = (float(row[name]) for name in ("eager, ms", "graphs, ms", "graphs / eager"))
    assert ratio == pytest.approx(graphs / eager, abs=0.01 + 0.1 / eager)
    assert float(row["images/s"]) > 0
    assert float(row["COCO's sizes: images/s"]) > 0
    assert float(row["of one size's, per pixel"]) > 0
    assert row["all, s (sizes)"].endswith(("(2)", "(3)", "(4)"))
    assert any(line.startswith("- Loader in the process: ") for line in lines)
    assert any(line.startswith("- Tests: ") and "1 skipped" in line for line in lines)
    assert lines[lines.index("- broken: ended with status 1") + 1] == "  - `this was wrong`"


def test_a_part_that_hangs_is_ended_and_the_next_one_runs(tmp_path: Path) -> None:
    """So is what it has started; and a part for which no time is left is named."""
    started = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    parts = [
        Part("hangs", ("-c", f"{started}; print('begun', flush=True); time.sleep(99)"), 2),
        Part("writes", ("-c", "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}')", "{output}"), 60),
    ]
    hung, wrote = check(parts, 60)
    assert (hung.failure, hung.lines[0], hung.seconds < 20) == ("ended after its limit of 2 s", "begun", True)
    assert (wrote.failure, wrote.text, wrote.result) == ("", "{}", {})
    (late,) = check(parts[:1], 1)
    assert late.failure == "not begun: the 1 s for all parts were over"
    assert "- hangs: not begun: the 1 s for all parts were over" in page([late], "unknown")


def test_what_went_wrong_is_on_the_page() -> None:
    lines = ("FAILED tests/a.py::test_b - assert 1 == 2", "1 failed, 3 passed in 2.00s")
    told = [*page([Outcome("tests", "ended with status 1", 3.0, lines)], "unknown")]
    assert "- Tests: 1 failed, 3 passed in 2.00s." in told
    assert f"  - {lines[0]}" in told
    assert "- tests: ended with status 1" in told
    assert Outcome("benchmark", "ended after its limit of 60 s", text='{"options": {"sou').result == {}


def test_the_plan_of_the_real_check() -> None:
    """Every experiment with graphs and without, in COCO's sizes, and the tests that a GPU needs."""
    tests = gpu_check.tests_for_gpus()
    assert {"tests/measure/test_device_share.py", "tests/models/test_synchronisation.py"} <= set(tests)
    parts = [*parts_of(Plan(), tests)]
    assert parts[0].arguments[-len(tests) :] == tuple(tests)
    for name in Plan().experiments:
        mine = [part.arguments for part in parts if name in part.arguments and "benchmark" in part.arguments]
        for word in ("auto", "off", "2", "16", "coco"):
            assert any(word in arguments for arguments in mine)
    assert any({"fp32", "tf32"} <= set(part.arguments) for part in parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    command = [sys.executable, "-m", gpu_check.__name__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no GPU that PyTorch can use, and nothing else is checked here\n"
