"""What a job asks of a cluster, and the file in which a group writes its cluster's facts once."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, ValidationError, with_config
from tyro.conf import arg

from detr_container.base.checked import read_bytes
from detr_container.base.limits import adapter_of

_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_UNITS = re.compile(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?")


# More nodes, cores or seconds than any cluster has to give, and what a time limit can be: ten years.
_MOST, _LONGEST = 1_000_000, 10 * 366 * 1440


def unprintable(text: str) -> bool:
    """Whether a text holds control characters, line separators, or bytes that are no text."""
    return any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Resources:
    """What a job asks for; what is left empty is the cluster's own default."""

    partition: str = ""
    """Slurm's partition."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 1
    """GPUs on each of them, with one process per GPU; 0: none."""
    tasks_per_node: int = 0
    """Processes on each machine; 0: one per GPU, or one."""
    cpus_per_task: int = 0
    """CPU cores of each process; 0: as many as it has use for."""
    mem: str = ""
    """Memory of each machine, as 64G; empty: the partition's default."""
    time: str = "24h"
    """Time limit: 45m, 12h, 2d, 1d12h, or Slurm's own 90 (minutes), 12:30:00, 2-00:00:00. A run may take many."""
    account: str = ""
    """Whom Slurm charges."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that the machines must have."""
    lead: int = 120
    """Seconds before the time limit at which the job is asked to save; more for slow disks."""
    setup: tuple[str, ...] = ()
    """Shell commands before the job starts: 'module load cuda/12.4'."""
    extra: tuple[str, ...] = ()
    """Any other option of sbatch: reservation=NAME, exclude=node7, mail-type=FAIL, or a bare name such as exclusive."""
    shared: Annotated[tuple[str, ...], arg(metavar="FOLDER [FOLDER ...]")] = ()
    """Folders that every machine sees; with any given, a run or data outside them is refused."""

    @property
    def tasks(self) -> int:
        """Processes on each machine."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def options(self) -> dict[str, str | bool]:
        """`extra`, taken apart."""
        pairs = (entry.lstrip("-").partition("=") for entry in self.extra)
        return {name: value if equals else True for name, equals, value in pairs}

    def validate(self) -> None:
        """Raise ValueError for what no cluster can give, or no batch script hold."""
        self._check_words()
        if self.nodes < 1:
            raise ValueError(f"slurm.nodes={self.nodes}: at least 1 is needed")
        for name in ("gpus_per_node", "tasks_per_node", "cpus_per_task"):
            if getattr(self, name) < 0:
                raise ValueError(f"slurm.{name.replace('_', '-')}={getattr(self, name)}: it cannot be negative")
        limit = minutes(self.time)
        if not 0 < self.lead < 60 * limit:
            raise ValueError(
                f"slurm.lead={self.lead} seconds before a time limit of slurm.time={self.time} ({limit} minutes): "
                "the lead must be more than 0 and less than the limit"
            )
        if self.mem and not re.fullmatch(r"\d+[KMGT]?B?", self.mem, re.IGNORECASE):
            raise ValueError(f"slurm.mem={self.mem}: give a number with its unit, as 64G or 1500M")
        for entry in self.extra:
            if not re.fullmatch(r"(--)?[a-zA-Z][a-zA-Z-]*(=.*)?", entry):
                raise ValueError(f"slurm.extra {entry!r}: give an option of sbatch as name=value, or its bare name")

    def _check_words(self) -> None:
        """Raise ValueError for what no line of a batch script can hold, and for numbers beyond all clusters."""
        for field in fields(self):
            value = getattr(self, field.name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and unprintable(text):
                    name = field.name.replace("_", "-")
                    raise ValueError(
                        f"slurm.{name}={text!r}: a line break, or another control character, has no place in it; "
                        "give several values where it takes several"
                    )
                if isinstance(text, int) and abs(text) > _MOST:
                    raise ValueError(f"slurm.{field.name.replace('_', '-')}: it must be at most {_MOST:,}")


def minutes(text: str) -> int:
    """A length of time in whole minutes, rounded up: `45m`, `12h`, `1d12h`, or Slurm's `90`, `H:M:S` and `D-H:M:S`.

    Raises ValueError for anything else.
    """
    found = _minutes(text.strip().lower()) if len(text) <= 40 else _LONGEST + 1
    if found > _LONGEST:
        raise ValueError(f"a time of {text[:40]!r}: ten years is the longest")
    return found


def _minutes(text: str) -> int:
    named = _UNITS.fullmatch(text)
    if named and any(named.groups()):
        days, hours, rest = (int(part or 0) for part in named.groups())
        return (days * 24 + hours) * 60 + rest
    clock = _CLOCK.fullmatch(text)
    if clock is None or (clock[4] and not clock[3]):
        raise ValueError(f"a time of {text!r}: write 45m, 12h, 2d, 1d12h, 90 (minutes), 12:30:00 or 2-00:00:00")
    parts = [int(part) for part in clock.groups()[1:] if part is not None]
    if clock[1] is not None:
        hours, rest, seconds = (*parts, 0, 0)[:3]
        return int(clock[1]) * 1440 + hours * 60 + rest + (seconds > 0)
    if len(parts) == 3:
        return parts[0] * 60 + parts[1] + (parts[2] > 0)
    return parts[0] + (len(parts) == 2 and parts[1] > 0)


def cluster_facts(path: Path) -> Resources:
    """The resources that a group's file asks for, or the general ones where there is no such file.

    path: TOML whose keys are the fields of `Resources`. Raises ValueError naming what does not fit.
    """
    if not path.exists():
        return Resources()
    try:
        values: dict[str, Any] = tomllib.loads(read_bytes(path, largest=1 << 20).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    return resources_of(values, path)


def resources_of(values: dict[str, Any], path: Path) -> Resources:
    """The resources that a file describes; path: for messages. Raises ValueError naming what does not fit."""
    try:
        found: Resources = adapter_of(Resources).validate_python(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        known = ", ".join(field.name for field in fields(Resources))
        raise ValueError(f"{path}: {faults}. It may name {known}") from error
    try:
        found.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found
