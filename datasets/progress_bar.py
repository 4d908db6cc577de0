"""A progress bar for the long commands of this package: on the terminal, and gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from detr_container.base.terminal import column, console

T = TypeVar("T")


def track(items: Iterable[T], total: int, description: str, show: bool) -> Iterator[T]:
    """Yield the items under a bar on standard error; without `show`, or where that is no terminal, nothing is drawn."""
    screen = console(stderr=True)
    columns = (column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not (show and screen.is_terminal)) as bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)
