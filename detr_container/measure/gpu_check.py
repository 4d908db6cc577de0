"""Everything that only a GPU can show, in eight minutes: the tests marked gpu, the benchmark, the loader.

    python -m detr_container.measure.gpu_check

Each part is a process with a limit, so that one that hangs or crashes does not take the others with it; what it writes
is shown as it comes. Nothing is installed or downloaded, and this module needs nothing but PyTorch. At the end comes a
page of Markdown. Exit status 1 when a part failed, 2 without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .gpu_page import Outcome, page

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
LIMIT = 480.0
"""Seconds for all parts."""
_PROGRAM = ("-m", "detr_container")
_GRACE = 5.0
"""Seconds that a part has to end the processes that it started."""


@dataclass(frozen=True)
class Part:
    """One process: its name, what Python is called with, and its limit in seconds.

    {output}, in an argument, stands for the file that gets its result as JSON.
    """

    name: str
    arguments: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class Plan:
    """What is measured: each experiment in one precision, the first in those of `compared` as well.

    batches: numbers of images; drawn: micro batches in COCO's sizes; pictures: of the loader; seconds, loading: see
    --seconds of `benchmark` and of `data speed`; rest: further arguments of every benchmark.
    """

    experiments: tuple[str, ...] = ("detr_r50_50e", "smca_r50_50e", "smca_container_light_50e")
    precision: str = "bf16"
    compared: tuple[str, ...] = ("fp32", "tf32")
    batches: tuple[str, ...] = ("2", "16")
    size: str = "800x1333"
    drawn: str = "24"
    pictures: str = "96"
    workers: tuple[str, ...] = ("0", "6", "14")
    seconds: str = "1"
    loading: str = "4"
    rest: tuple[str, ...] = ()


def parts_of(plan: Plan, tests: Sequence[str]) -> Iterator[Part]:
    """All parts, those first that would be missed most."""
    yield Part("tests", ("-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", *tests), 150)
    common = ("--sizes", plan.size, "--seconds", plan.seconds, "--output", "{output}", *plan.rest)
    names = plan.experiments[::-1]
    for name in names:
        for graphs in ("auto", "off"):
            variant = ("--precision", plan.precision, "--graphs", graphs, "--batch", *plan.batches)
            what = (*_PROGRAM, "benchmark", name, *variant, "--rounds", "2", "--no-forward", *common)
            yield Part(f"{name} {plan.precision} graphs={graphs}", what, 70)
    first, *others = ([_drawn(plan, name, batch, common) for name in names] for batch in plan.batches)
    later = [part for parts in others for part in parts]
    # Of the last experiment with most images, whose schedule is the longest, then with few.
    yield from (*later[:1], *first[:1])
    speed = ("data", "speed", plan.experiments[0], "--images", plan.pictures, "--workers", *plan.workers)
    yield Part("loader", (*_PROGRAM, *speed, "--seconds", plan.loading, "--output", "{output}"), 60)
    if plan.compared:
        variant = ("--precision", *plan.compared, "--graphs", "auto", "off", "--batch", plan.batches[0])
        what = (*_PROGRAM, "benchmark", plan.experiments[0], *variant, "--rounds", "2", "--no-forward", *common)
        yield Part(f"{plan.experiments[0]} {' '.join(plan.compared)}", what, 90)
    yield from (*first[1:], *later[1:])


def _drawn(plan: Plan, name: str, batch: str, common: tuple[str, ...]) -> Part:
    """Steps of one experiment in COCO's sizes, and forward passes, which say how long evaluations take."""
    variant = ("--precision", plan.precision, "--graphs", "auto", "--batch", batch, "--source", "coco")
    what = (*_PROGRAM, "benchmark", name, *variant, "--drawn", plan.drawn, "--rounds", "1", *common)
    return Part(f"{name} {plan.precision}, {batch} images of COCO's sizes", what, 90)


def check(parts: Sequence[Part], limit: float) -> list[Outcome]:
    """Run the parts one after the other, all within `limit` seconds."""
    end, outcomes = time.monotonic() + limit, list[Outcome]()
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts):
            left = end - time.monotonic() - _GRACE
            if left <= 0:
                outcomes.append(Outcome(part.name, f"not begun: the {limit:.0f} s for all parts were over"))
                continue
            _say(f"== {part.name} ({min(left, part.limit):.0f} s at most)\n")
            outcomes.append(_run(part, Path(folder) / f"{number}.json", min(left, part.limit)))
            _say(f"== {part.name}: {outcomes[-1].failure or 'done'}, {outcomes[-1].seconds:.0f} s\n")
    return outcomes


def _run(part: Part, output: Path, limit: float) -> Outcome:
    """Run one part, and show what it writes."""
    began, lines = time.monotonic(), deque[str](maxlen=400)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, *(word.replace("{output}", str(output)) for word in part.arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        # In a group of its own, so that what it has started can be ended with it.
        process_group=0,
    )
    reader = threading.Thread(target=_show, args=(process, lines), daemon=True)
    reader.start()
    failure = ""
    try:
        status = process.wait(limit)
        failure = f"ended with status {status}" if status else ""
    except subprocess.TimeoutExpired:
        failure = f"ended after its limit of {limit:.0f} s"
    finally:
        _end(process)
    reader.join(_GRACE)
    text = output.read_text() if output.exists() else ""
    return Outcome(part.name, failure, time.monotonic() - began, tuple(lines), text)


def _show(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        _say(line)


def _end(process: subprocess.Popen[str]) -> None:
    """End it and its group; first so that it can end those that it has put into groups of their own."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)


def tests_for_gpus() -> list[str]:
    """The files of tests that have some for a GPU, so that no others are read."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def driver() -> str:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(answer.split()), "unknown")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> int:
    """Check the GPU of this machine."""
    if importlib.util.find_spec("torch") is None:
        sys.stderr.write(f"error: {sys.executable} has no PyTorch: name another one, make gpu-check PYTHON=...\n")
        return 2
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("error: there is no GPU that PyTorch can use, and nothing else is checked here\n")
        return 2
    outcomes = check([*parts_of(Plan(), tests_for_gpus())], LIMIT)
    _say("\n" + "\n".join(page(outcomes, driver())) + "\n")
    return int(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
