"""Whether compared backbones were pretrained alike: on the same data, by the same recipe, for as many epochs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .arms import Arm

BACKBONE = "backbone.weights"
LISTED = 6
"""Settings of two recipes that are named."""
_BESIDE = ("data.fraction", "train.epochs")
"""Settings that stand beside the recipe: of the data, and the epochs."""

Record = Mapping[str, Any]
"""`engine.run_files.Pretraining`."""
Records = Mapping[str, Sequence[Record]]
"""By an arm's label, those of its runs."""


def records_of(arms: Sequence[Arm]) -> Records:
    """What the arms' runs noted of the runs that their backbones come from; empty unless all of them did."""
    noted = {arm.label: [_record(run.provenance) for run in arm.runs] for arm in arms}
    return noted if noted and all(records and all(records) for records in noted.values()) else {}


def _record(provenance: Sequence[Mapping[str, Any]]) -> Record:
    """Of the newest start; empty where it started from no run of ours."""
    found = ((provenance[-1].get("pretraining") or {}) if provenance else {}).get(BACKBONE) or {}
    return found if found.get("settings") else {}


def differing(records: Records) -> Iterator[tuple[str, dict[str, str]]]:
    """What of the pretraining differs between arms or within one, and its values by arm.

    Other backbones have other files; of the same backbone, another file is named where nothing else differs.
    """
    alike, every = True, [each for several in records.values() for each in several]
    recipe = _recipe_of(records)
    # What is told apart, and its words: a folder that moved holds the same data.
    facts = {
        "task": (_task, _task),
        "data": (_version, _data),
        "recipe": (recipe, recipe),
        "epochs": (_epochs, _epochs),
    }
    for name, (what, read) in facts.items():
        if len({what(each) for each in every}) > 1:
            alike = False
            yield name, _joined({label: {read(each) for each in several} for label, several in records.items()})
    files: dict[str, set[str]] = {}
    for each in every:
        files.setdefault(str(each.get("backbone")), set()).add(_file(each))
    if alike and any(len(found) > 1 for found in files.values()):
        yield "file alone", _joined({label: {_file(each) for each in several} for label, several in records.items()})


def _joined(sets: Mapping[str, set[str]]) -> dict[str, str]:
    return {label: ", ".join(sorted(values)) for label, values in sets.items()}


def _task(record: Record) -> str:
    return str(record.get("task") or "unknown")


def _version(record: Record) -> tuple[float, str]:
    """What data are told apart by: the share of them and the digest, for want of one the folder."""
    digest = ((record.get("data") or {}).get("train") or {}).get("sha256")
    return record["settings"].get("data.fraction", 1), digest or str(record.get("folder"))


def _data(record: Record) -> str:
    share = record["settings"].get("data.fraction", 1)
    digest = ((record.get("data") or {}).get("train") or {}).get("sha256") or "unknown"
    part = "" if share == 1 else f"{100 * share:g} % of "
    return f"{part}{Path(record.get('folder') or '').name or 'data'} (SHA-256 {digest[:12]})"


def _epochs(record: Record) -> str:
    epoch, whole = record.get("epoch"), record.get("epochs")
    return "unknown" if epoch is None else f"{epoch:g}" if epoch == whole else f"{epoch:g} of {whole}"


def _file(record: Record) -> str:
    return f"SHA-256 {str(record.get('sha256'))[:12]}"


def _recipe_of(records: Records) -> Callable[[Record], str]:
    """Words for a recipe: the settings in which those of one task differ, or none."""
    every = [each["settings"] for several in records.values() for each in several]
    shared = [name for name in (every[0] if every else ()) if all(name in one for one in every)]
    apart = [name for name in shared if name not in _BESIDE and len({json.dumps(one[name]) for one in every}) > 1]

    def read(record: Record) -> str:
        values = [f"{name}={json.dumps(record['settings'][name])}" for name in apart[:LISTED]]
        return " ".join(values) + (f" and {len(apart) - LISTED} more" if len(apart) > LISTED else "")

    return read
