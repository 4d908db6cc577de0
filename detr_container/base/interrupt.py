"""A request to stop, made by a signal and answered between two steps.

Signal handlers here only note the request. The loop that asks for it saves in its own time, at a place where all
processes of a job can agree to stop.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """While entered, SIGINT and SIGTERM (and SIGUSR2 on request) are noted rather than obeyed.

    usr2: also listen to SIGUSR2, which submitit sends before a job's time is up.
    A second SIGINT, `again` seconds or more after the first, raises KeyboardInterrupt; one that comes sooner is the
    same key press, passed on by torchrun. Signals that the parent process had ignored stay ignored (nohup), and
    processes forked while entered take no notice of the signals. Outside the main thread, where Python allows no
    handlers, nothing is installed; `request` works everywhere.
    """

    def __init__(self, *, usr2: bool = False, again: float = 1.0) -> None:
        self._signals = (signal.SIGINT, signal.SIGTERM) + ((signal.SIGUSR2,) if usr2 else ())
        self._again = again
        self._requested: signal.Signals | None = None
        self._first_interrupt: float | None = None
        self._old: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._process = os.getpid()

    @property
    def requested(self) -> str | None:
        """The name of the first signal, such as "SIGTERM", or None when nothing was requested."""
        return None if self._requested is None else self._requested.name

    @property
    def exit_code(self) -> int:
        """What shells expect of a process ended by the signal, 128 + its number (130, 143, ...); 0 without request."""
        return 0 if self._requested is None else 128 + self._requested.value

    def request(self, which: signal.Signals = signal.SIGTERM) -> None:
        """Ask for a stop as if `which` had arrived; the first request counts."""
        if self._requested is None:
            self._requested = which

    def __enter__(self) -> Self:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._old:
            number, old = self._old.popitem()
            # None stands for a handler that was not installed from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if old is None else old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        self.request(signal.Signals(number))
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._first_interrupt is None:
            self._first_interrupt = now
        elif now - self._first_interrupt >= self._again:
            raise KeyboardInterrupt
