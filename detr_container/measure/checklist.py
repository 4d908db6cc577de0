"""Checks made one after the other: each has one line, what is wrong in red, and one that fails ends no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from rich.text import Text

from detr_container.base.terminal import console, shown


class SkippedError(Exception):
    """A check cannot be made; the message gives the reason."""


class Checklist:
    """What has been reported of the checks so far."""

    def __init__(self) -> None:
        self._console = console()
        self._failures: dict[str, str] = {}

    @property
    def failed(self) -> bool:
        """Whether any check has."""
        return bool(self._failures)

    def attempt(self, name: str, check: Callable[[], str], busy: bool = True) -> None:
        """Make a check, which returns what is well; busy: show meanwhile that something is being done."""
        with self._console.status(name) if busy else nullcontext():
            try:
                self._report("ok", "green", name, check())
            except SkippedError as why:
                self._report("--", "yellow", name, f"skipped: {why}")
            except OSError as error:
                self._fail(name, f"{error.filename}: {error.strerror}" if error.filename else str(error))
            except (ValueError, ArithmeticError, RuntimeError) as error:
                self._fail(name, str(error))

    def remark(self, text: str) -> None:
        """Add a warning to the check that is being made."""
        self._console.print(Text.assemble((f"{'':8}warning: {shown(text)}", "yellow")), soft_wrap=True)

    def _fail(self, name: str, message: str) -> None:
        before = self._failures.setdefault(message, name)
        if before == name:
            self._report("FAIL", "bold red", name, message)
        else:
            self._report("--", "yellow", name, f"skipped: for the reason given at {before}")

    def _report(self, word: str, style: str, name: str, text: str) -> None:
        indented = text.strip().replace("\n", "\n" + " " * 20)
        self._console.print(
            Text.assemble((f"{word:<8}", style), f"{name:<12}", shown(indented, keep="\n")), soft_wrap=True
        )
