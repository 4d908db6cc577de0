"""What is shown to a person, as text: names of classes, files and runs are shown as they are, and command nothing."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

from rich.console import Console
from rich.progress import Task, TextColumn
from rich.text import Text

# Control characters, breaks and turns of a line's direction, and halves of characters (a file name's stray bytes).
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(value: object, keep: str = "") -> str:
    """Text that can be shown and written anywhere: what would act on a terminal, or cannot be encoded, is escaped.

    keep: control characters that stay, as line breaks within a message.
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), str(value))


def _escape(character: str) -> str:
    """A character by its number; a byte that was no UTF-8 as that byte."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class _Console(Console):
    """rich's, for which every text is text; colours come from styles."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, without markup, emoji codes, or control characters."""
        return super().render_str(shown(text, keep="\n\t"), **options)


def console(stderr: bool = False, width: int | None = None) -> Console:
    """A console that takes text as text: brackets, emoji codes and control characters in names do nothing."""
    return _Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


class _Column(TextColumn):
    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.plain = shown(text.plain)
        return text


def column(text: str) -> TextColumn:
    """A column of a progress display, in which names are text, too."""
    return _Column(text, markup=False)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record), keep="\n\t")


def digits(value: float) -> str:
    """A number that is not negative, with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def start_logging() -> None:
    """Send messages to stderr, those of other processes than the first with their rank.

    What the streams cannot encode is written as escapes.
    """
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"[rank {rank}] "
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(f"{prefix}%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("detr_container").setLevel(logging.INFO)
    # It has a handler of its own; through ours it would print everything twice.
    logging.getLogger("huggingface_hub").propagate = False
