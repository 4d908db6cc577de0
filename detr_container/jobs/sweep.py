"""A grid of runs: experiments x settings x seeds."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detr_container.base.limits import check
from detr_container.config.arguments import parse_settings
from detr_container.config.experiments import named
from detr_container.config.settings import Experiment, flatten

from .submit import PlannedRun

MOST_RUNS = 1000
"""What Slurm takes as one array unless it is set up otherwise."""


def planned_runs(
    home: Path, experiments: Sequence[str], grid: Sequence[str], seeds: Sequence[int], common: Sequence[str]
) -> list[PlannedRun]:
    """Every combination, in a folder of its own within `home`.

    grid: `setting=value,value`; common: `setting=value` for all. Names say what differs. Raises ValueError for an
    unknown experiment or setting, a value that does not fit, or a combination named twice.
    """
    if not experiments or not seeds:
        raise ValueError("a sweep needs --experiments NAME ... and at least one of --seeds")
    axes = [(name, values.split(",")) for name, values in (pair(entry) for entry in grid)]
    limit_runs(math.prod([len(experiments), len(seeds), *(len(values) for _, values in axes)]), "--grid or --seeds")
    runs: dict[Path, PlannedRun] = {}
    for name in experiments:
        base = with_settings(named(name).experiment, [pair(entry) for entry in common])
        for values in itertools.product(*(values for _, values in axes)):
            chosen = list(zip((axis for axis, _ in axes), values, strict=True))
            experiment = with_settings(base, chosen)
            for seed in seeds:
                words = [name, *(f"{axis.rpartition('.')[2]}={value}" for axis, value in chosen), f"seed{seed}"]
                folder = home / re.sub(r"[^\w.=+-]", "_", "-".join(words))
                if folder in runs:
                    raise ValueError(f"{folder.name} is in the grid twice: name every value and seed once")
                runs[folder] = PlannedRun(folder, replace(experiment, seed=seed))
    return list(runs.values())


def limit_runs(count: int, options: str) -> None:
    """Raise ValueError for more runs than are submitted together. options: what gives fewer."""
    if count > MOST_RUNS:
        raise ValueError(f"{count:,} runs: at most {MOST_RUNS:,} go together; give fewer values of {options}")


def with_settings(experiment: Experiment, settings: Sequence[tuple[str, str]]) -> Experiment:
    """An experiment with settings given as text, read as the command line reads them."""
    known = flatten(experiment)
    options: list[str] = []
    for name, value in settings:
        if name.replace("-", "_") not in known:
            near = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2].replace("-", "_")]
            hint = f"did you mean {near[0]}?" if near else "see `detr-container train EXPERIMENT --help`"
            raise ValueError(f"there is no setting {name!r}: {hint}")
        options += _option(name.replace("_", "-"), value, known[name.replace("-", "_")])
    try:
        changed = parse_settings(options, experiment)
    except SystemExit as error:
        listed = ", ".join(f"{name}={value}" for name, value in settings)
        raise ValueError(f"{listed}: a value does not fit its setting; see `train EXPERIMENT --help`") from error
    check(changed)
    return changed


def _option(name: str, value: str, present: object) -> list[str]:
    """A setting as the command line has it, where a switch has no value but a name for either side."""
    if not isinstance(present, bool):
        return [f"--{name}", *value.split()]
    if value.lower() not in ("true", "false"):
        raise ValueError(f"{name}={value}: it is true or false")
    section, dot, switch = name.rpartition(".")
    return [f"--{name}" if value.lower() == "true" else f"--{section}{dot}no-{switch}"]


def pair(text: str) -> tuple[str, str]:
    """The name and the value of `setting=value`. Raises ValueError when it is not that."""
    name, equals, value = text.lstrip("-").partition("=")
    if not equals or not name or not value:
        raise ValueError(f"{text!r}: write setting=value, as train.lr=1e-4")
    return name, value
