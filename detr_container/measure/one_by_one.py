"""Work that may end its process, item by item in a process of its own: one that does ends neither us nor the others.

The other process is `python -m MODULE`. It reads {name: item} as a line of JSON from standard input, and prints one for
every item, in their order: {"name": ..., "found": ...} or {"name": ..., "failed": ...}. When standard input closes it
ends wherever it is, so that it does not outlive who asked, however that one ended.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from typing import IO, Any

STARTING = 60.0
"""Seconds that a process may take to start and to import what it needs."""


def found_of(
    module: str,
    items: Mapping[str, Any],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    processes: int = 1,
) -> Iterator[tuple[str, Any, str]]:
    """(name, what was found, "") or (name, None, what went wrong) of each item, as they come.

    seconds: how long one may take; the first of a process, which imports what it needs, has STARTING more.
    processes: how many share the items. One that a signal ended at an item after others has that item tried once more
    in a new one: what others did to its memory may have ended it.
    """
    names = list(items)
    shares = [{name: items[name] for name in names[first::processes]} for first in range(min(processes, len(names)))]
    answers = queue.SimpleQueue[tuple[str, Any, str] | Exception | None]()
    running = _Running()

    def work(share: dict[str, Any]) -> None:
        try:
            for answer in _in_turn(module, share, seconds, environment, running):
                answers.put(answer)
            answers.put(None)
        except (OSError, ValueError) as error:
            # For the thread that waits, which raises it.
            answers.put(error)

    threads = [threading.Thread(target=work, args=(share,), daemon=True) for share in shares]
    try:
        for thread in threads:
            thread.start()
        working = len(threads)
        while working:
            answer = answers.get()
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                working -= 1
            else:
                yield answer
    finally:
        running.end()
        for thread in threads:
            thread.join()


class _Running:
    """The processes that work, so that they can be ended."""

    def __init__(self) -> None:
        self._lock, self._processes, self.ended = threading.Lock(), set[subprocess.Popen[str]](), False

    def add(self, process: subprocess.Popen[str]) -> None:
        """One more; it is ended at once where all have been."""
        with self._lock:
            self._processes.add(process)
            if self.ended:
                process.kill()

    def end(self) -> None:
        """End all, and those that come."""
        with self._lock:
            self.ended = True
            for process in self._processes:
                process.kill()


def _in_turn(
    module: str, items: Mapping[str, Any], seconds: float, environment: Mapping[str, str] | None, running: _Running
) -> Iterator[tuple[str, Any, str]]:
    """As `found_of`, with one process at a time."""
    left = dict(items)
    while left and not running.ended:
        with closing(_until_it_ends(module, dict(left), seconds, environment, running)) as answers:
            for place, (name, found, failed, by_signal) in enumerate(answers):
                if by_signal and place:
                    break
                del left[name]
                yield name, found, failed


def _until_it_ends(
    module: str, items: Mapping[str, Any], seconds: float, environment: Mapping[str, str] | None, running: _Running
) -> Generator[tuple[str, Any, str, bool]]:
    """As `found_of`, up to and with the item at which the process ended or was ended, and whether by a signal."""
    command = [sys.executable, "-m", module]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        words: list[str] = []
        readers = [
            threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
            threading.Thread(target=_read, args=(process.stderr, words.append), daemon=True),
        ]
        for reader in readers:
            reader.start()
        running.add(process)
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(dict(items)) + "\n")
                process.stdin.flush()
            limit = seconds + STARTING
            for name in items:
                try:
                    line = lines.get(timeout=limit)
                except queue.Empty:
                    yield name, None, f"it took more than {seconds:g} seconds", False
                    return
                if not line:
                    readers[1].join()
                    yield name, None, _end_of(process.wait(), words), process.returncode < 0
                    return
                answer, limit = json.loads(line), seconds
                yield name, answer.get("found"), answer.get("failed", ""), False
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.stdin.close()


def _read(stream: IO[str], put: Callable[[str], object]) -> None:
    """Every line of a stream, then "" at its end."""
    for line in stream:
        put(line)
    put("")


def _end_of(status: int, words: list[str]) -> str:
    if status < 0:
        return f"it ended the process by {signal.Signals(-status).name}"
    printed = [line.strip() for line in words if line.strip()]
    return printed[-1] if printed else f"the process ended with status {status}"


def _end_with_who_asked() -> None:
    # Not through sys.stdin, whose lock a thread that waits would hold when Python ends.
    os.read(0, 1)
    os._exit(1)


def answer_each(work: Callable[[str, Any], Any], failures: tuple[type[Exception], ...]) -> int:
    """The other process's side: do the work for each item that standard input names. Returns the exit status."""
    # Whatever a library prints must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    items = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    for name, item in items.items():
        try:
            answer = {"name": name, "found": work(name, item)}
        except failures as error:
            answer = {"name": name, "failed": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0
