"""The page of Markdown that `gpu_check` ends with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHOWN = 4
"""Last lines that are repeated of a part that failed."""
_COLUMNS = (
    "experiment",
    "images",
    "eager, ms",
    "graphs, ms",
    "graphs / eager",
    "images/s",
    "peak GiB, eager / graphs",
    "GPU busy, eager / graphs",
    "host waits, eager / graphs",
    "kernels",
    "COCO's sizes: images/s",
    "of one size's, per pixel",
    "a new size, s",
    "all, s (sizes)",
    "schedule, h",
)
Figures = Mapping[str, float]
"""Of training steps on so many images: the names after training/B/, and `memory`."""


@dataclass(frozen=True)
class Outcome:
    """What came of a part; failure: why it is not whole, "" when it is; lines: the last that it wrote; text: JSON."""

    name: str
    failure: str
    seconds: float = 0.0
    lines: tuple[str, ...] = ()
    text: str = ""

    @property
    def result(self) -> dict[str, Any]:
        """What it measured; nothing when it did not come so far, or ended within writing it."""
        try:
            found: dict[str, Any] = json.loads(self.text)
        except json.JSONDecodeError:
            return {}
        return found


def page(outcomes: Sequence[Outcome], driver: str) -> Iterator[str]:
    """Lines: on what machine, one table, the loader, the tests, and what went wrong."""
    results = [outcome.result for outcome in outcomes]
    measured = [each for result in results for each in result.get("experiments", {}).values()]
    seen = next((each for each in measured if "device" in each), {"device": "no device", "torch": "unknown"})
    yield (
        f"{seen['device']}, driver {driver}, torch {seen['torch']}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores."
    )
    yield ""
    yield from _table(results)
    yield ""
    for result in results:
        for speed in result.get("speeds", []):
            where = f"with {speed['workers']} processes" if speed["workers"] else "in the process"
            yield f"- Loader {where}: {speed['rate']:.0f} images/s, first batch after {speed['first']:.1f} s."
    for outcome in outcomes:
        if outcome.name == "tests" and outcome.lines:
            yield f"- Tests: {outcome.lines[-1].strip('= ')}."
            yield from (f"  - {line}" for line in outcome.lines if line.startswith(("FAILED", "ERROR", "SKIPPED")))
    yield from _wrong(outcomes)


def _wrong(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.failure:
            yield f"- {outcome.name}: {outcome.failure}"
            if outcome.name != "tests" or not outcome.lines:
                yield from (f"  - `{line.strip()}`" for line in [*filter(str.strip, outcome.lines)][-_SHOWN:])
        for label, each in outcome.result.get("experiments", {}).items():
            if each["failure"]:
                yield f"- {label}: {each['failure']}"
            yield from (f"- {label}: {warning}" for warning in each.get("warnings", []))


def _table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for each experiment, precision and number of images."""
    rows: dict[tuple[str, str, int], dict[str, Figures]] = {}
    for result in results:
        drawn = result.get("options", {}).get("source") == "coco"
        for each in result.get("experiments", {}).values():
            kind = "drawn" if drawn else each["settings"]["train"]["graphs"]
            for images, figures in _by_images(each["figures"]).items():
                rows.setdefault((each["experiment"], each["precision"], images), {})[kind] = figures
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{' --- |' * len(_COLUMNS)}"
    for (name, precision, images), kinds in sorted(rows.items()):
        yield f"| {' | '.join((f'{name}, {precision}', str(images), *_cells(kinds)))} |"


def _by_images(figures: Mapping[str, Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for key, metric in figures.items():
        what, _, rest = key.partition("training/")
        if rest:
            images, _, name = rest.partition("/")
            found.setdefault(int(images), {})[name or what.strip("/")] = metric["value"]
    return found


def _cells(kinds: Mapping[str, Figures]) -> Iterator[str]:
    eager, graphs, drawn = (kinds.get(kind, {}) for kind in ("off", "auto", "drawn"))
    yield _text(eager.get("step"), 1e3)
    yield _text(graphs.get("step"), 1e3)
    yield _text(_ratio(graphs.get("step"), eager.get("step")), digits=2)
    yield _text(graphs.get("images_per_second"))
    yield f"{_text(eager.get('memory'))} / {_text(graphs.get('memory'))}"
    for name in ("busy", "host_waits"):
        yield f"{_text(eager.get(name), digits=2)} / {_text(graphs.get(name), digits=2)}"
    yield _text(eager.get("kernels", graphs.get("kernels")), digits=0)
    yield _text(drawn.get("images_per_second"))
    yield _text(_ratio(_values_per_second(drawn), _values_per_second(graphs)), digits=2)
    yield _text(drawn.get("new_size"), digits=2)
    yield f"{_text(drawn.get('new_sizes'))} ({_text(drawn.get('sizes'), digits=0)})"
    yield _text(drawn.get("hours"))


def _values_per_second(figures: Figures) -> float | None:
    """Proportional to the pixels, since larger images take longer."""
    return figures["images_per_second"] * figures["values"] if {"images_per_second", "values"} <= set(figures) else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _text(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
