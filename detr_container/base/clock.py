"""Lengths of time and moments, as a person writes them."""

from __future__ import annotations

import datetime


def clock(seconds: float) -> str:
    """Seconds as 45s, 12m 30s, 3h 05m or 2d 04h."""
    whole = int(seconds)
    for unit, below, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size * (24 if unit == 'd' else 60) // size:02d}{below}"
    return f"{whole}s"


def when(seconds: float) -> str:
    """A moment so many seconds from now, as a person writes it."""
    then = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    return then.strftime("%H:%M" if seconds < 12 * 3600 else "%a %d %b %H:%M")
