"""Work that may end its process, item by item in a process of its own: one that does ends neither us nor the others.

The other process is `python -m MODULE`. It reads {name: item} as JSON from standard input, and prints a line of JSON
for every item, in their order: {"name": ..., "found": ...} or {"name": ..., "failed": ...}.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

STARTING = 60.0
"""Seconds that a process may take to start and to import what it needs."""


def found_of(
    module: str, items: Mapping[str, Any], seconds: float, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Any, str]]:
    """(name, what was found, "") or (name, None, what went wrong) of each item, as they come.

    seconds: how long one may take; the first of a process, which imports what it needs, has STARTING more.
    """
    left = dict(items)
    while left:
        for name, found, failed in _until_it_ends(module, dict(left), seconds, environment):
            del left[name]
            yield name, found, failed


def _until_it_ends(
    module: str, items: Mapping[str, Any], seconds: float, environment: Mapping[str, str] | None
) -> Iterator[tuple[str, Any, str]]:
    """As `found_of`, up to and with the item at which the process ended or was ended."""
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
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(dict(items)))
                process.stdin.close()
            limit = seconds + STARTING
            for name in items:
                try:
                    line = lines.get(timeout=limit)
                except queue.Empty:
                    yield name, None, f"it took more than {seconds:g} seconds"
                    return
                if not line:
                    readers[1].join()
                    yield name, None, _end_of(process.wait(), words)
                    return
                answer, limit = json.loads(line), seconds
                yield name, answer.get("found"), answer.get("failed", "")
        finally:
            process.kill()


def _read(stream: IO[str], put: Callable[[str], object]) -> None:
    """Every line of a stream, then "" at its end."""
    for line in stream:
        put(line)
    put("")


def _end_of(status: int, words: list[str]) -> str:
    if status < 0:
        return f"it ended the process by {signal.Signals(-status).name}"
    said = [line.strip() for line in words if line.strip()]
    return said[-1] if said else f"the process ended with status {status}"


def answer_each(work: Callable[[str, Any], Any], failures: tuple[type[Exception], ...]) -> int:
    """The other process's side: do the work for each item that standard input names. Returns the exit status."""
    # Whatever a library prints must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for name, item in json.load(sys.stdin).items():
        try:
            told = {"name": name, "found": work(name, item)}
        except failures as error:
            told = {"name": name, "failed": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(told) + "\n")
        answers.flush()
    return 0
