"""Stop requests, with real signals to real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from detr_container.base.interrupt import StopRequest


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """As in a terminal, also where the tests themselves run in the background with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [
        (signal.SIGINT, "SIGINT", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGUSR2, "SIGUSR2", 128 + signal.SIGUSR2),
    ],
)
def test_a_signal_is_noted_and_the_handlers_come_back(number: int, name: str, code: int) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    with StopRequest(usr2=True) as stop:
        assert stop.requested is None
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested == name
        assert stop.exit_code == code
    assert {each: signal.getsignal(each) for each in before} == before
    assert stop.requested == name


def test_the_first_signal_counts_and_terminating_twice_is_harmless() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.requested == "SIGTERM"


def test_a_second_interrupt_stops_at_once() -> None:
    with StopRequest(again=0.0) as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_same_key_press_delivered_twice_is_one() -> None:
    with StopRequest(again=60.0) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stop.requested == "SIGINT"


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) != before
            raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        run()
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_the_parent_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_only_the_flag_works() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[str | None] = []

    def run() -> None:
        with StopRequest() as stop:
            seen.append(stop.requested)
            assert signal.getsignal(signal.SIGTERM) == before
            stop.request(signal.SIGUSR2)
            seen.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None, "SIGUSR2"]


LOOP = """
    import os, signal, sys, time
    from detr_container.base.interrupt import StopRequest
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest(usr2=True, again=0.2) as stop:
        print("running", flush=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and stop.requested is None:
            time.sleep(0.01)
        print("saved", flush=True)
        if len(sys.argv) > 1:
            time.sleep(60)
    sys.exit(stop.exit_code)
"""


def start(repository: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_process_finishes_its_step_and_reports_why_it_ended(repository: Path, number: signal.Signals) -> None:
    process = start(repository, LOOP)
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (out, error) == ("saved\n", "")
    assert process.returncode == 128 + number


def test_an_impatient_user_gets_out(repository: Path) -> None:
    process = start(repository, LOOP, "hang")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "saved\n"
    threading.Event().wait(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
    assert process.returncode in (130, -signal.SIGINT)
