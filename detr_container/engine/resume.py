"""A run's own checkpoint: chosen by one process, checked whole before anything uses it, and the same on all.

A file that is damaged is passed over for the one before it. One that is whole but holds the state of something else
was written so; it is refused, since resuming from an older one would throw work away without having been asked.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from detr_container.base.checked import read_lines
from detr_container.models.weights.fit import listed, state_faults, tensor_fault

from .checkpoint import Checkpoints, load
from .pretraining import faults as pretraining_faults
from .run_files import ProvenanceLine
from .session import Session

FORMAT = 2
"""What is written; 1 held neither `data` nor `trained`, and its dropout was drawn from other random numbers."""
PATIENCE = 30.0
"""Seconds in which a file that another machine has written must appear: NFS may show an old folder for so long."""
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


def newest_on_all(checkpoints: Checkpoints, session: Session) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that the main process can read, read by every process; None when it finds none.

    Raises ValueError or OSError where a process cannot read that very file, and ConnectionError on all others.
    """
    found = None
    with session.together():
        if session.main:
            found = checkpoints.newest()
    name = session.of_main(found[0].name if found else "")
    if not name:
        return None
    with session.together():
        if found is None:
            path = checkpoints.folder / name
            found = path, _load_patiently(path)
    assert found is not None
    session.agree({f"the content of {found[0]}": content_hash(found[1])})
    return found


def _load_patiently(path: Path) -> dict[str, Any]:
    """As `load`; a file that is not there yet is waited for, its folder looked at anew."""
    end = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.5)
        if path.parent.is_dir():
            os.listdir(path.parent)
    return load(path)


def content_hash(value: Any) -> str:
    """A SHA-256 of nested dicts and lists: of tensors their kind, shape and bytes, of anything else what it shows."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{list(value.shape)}".encode()
        if value.layout == torch.strided and not value.is_quantized and value.device.type != "meta":
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield f"{{{len(value)}".encode()
        for key, entry in value.items():
            yield repr(key).encode()
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}".encode()
        for entry in value:
            yield from _parts(entry)
    else:
        yield repr(value).encode()


def check_head(
    path: Path, state: Mapping[str, Any], meters: int, of_task: Callable[[Mapping[str, Any]], list[str]]
) -> None:
    """Raise ValueError unless everything but the tensors is as `train` writes it.

    meters: how many numbers each process keeps; of_task: what is wrong with what is the task's own.
    """
    faults = []
    if not _whole(state.get("format")) or not 1 <= state["format"] <= FORMAT:
        faults.append(f"format is {show(state.get('format'))}, not 1 .. {FORMAT} (a newer version's?)")
    faults += _position_faults(state)
    for key, least in (("step", 1), ("steps_per_epoch", 1)):
        if not _whole(state.get(key)) or not least <= state[key] < 2**53:
            faults.append(f"{key} is {show(state.get(key))}, not a whole number from {least}")
    if not faults and path.name != f"checkpoint-{state['step']:08d}.pt":
        faults.append(f"step is {state['step']}, which is not the file's")
    kept = state.get("meters")
    rows = kept if isinstance(kept, list) and kept else [None]
    if not all(isinstance(row, list) and len(row) == meters and all(map(_number, row)) for row in rows):
        faults.append(f"meters is {show(kept)}, not {meters} numbers for each process")
    if not isinstance(state.get("experiment"), dict):
        faults.append(f"experiment is {show(state.get('experiment'))}, not settings")
    if "ema_updates" in state and (not _whole(state["ema_updates"]) or not 0 <= state["ema_updates"] < 2**53):
        faults.append(f"ema_updates is {show(state['ema_updates'])}, not a whole number from 0")
    if not _hashes(state.get("data", {})):
        faults.append(f"data is {show(state['data'])}, not the hashes of two splits")
    faults += pretraining_faults(state.get("pretraining", {}))
    try:
        faults += of_task(state)
    except ValueError as error:
        refuse(path, faults)
        raise ValueError(f"{path} is {error}") from error
    refuse(path, faults)


def check_tensors(
    path: Path, state: Mapping[str, Any], model: nn.Module, optimizer: AdamW, names: Sequence[str], averaged: bool
) -> None:
    """Raise ValueError unless weights, averages and the optimizer's state are this model's, in every number's kind.

    names: of the optimizer's parameters, in its order. Weights that are not finite pass: the next step names them.
    """
    own = model.state_dict()
    faults = state_faults(own, state.get("model"), exact=True)
    if averaged:
        found = state_faults(own, state.get("ema"), exact=True)
        found = found or [f"{name} is not finite" for name, value in state["ema"].items() if not _finite(value)]
        faults += [f"average: {fault}" for fault in found]
        faults += [] if "ema_updates" in state else ["ema_updates is missing"]
    refuse(path, [*faults, *_optimizer_faults(state, optimizer, names)])


def refuse(path: Path, faults: list[str]) -> None:
    """Raise ValueError when there are any."""
    if faults:
        raise ValueError(
            f"{path} is a checkpoint of another model, or was changed: {listed(faults)}. Rename it to resume from the "
            "one before it, or choose another folder with --run NAME"
        )


def _position_faults(state: Mapping[str, Any]) -> list[str]:
    """Before format 2, learned positions trained with the head, so their moments stand elsewhere."""
    weights = state.get("model")
    if state.get("format") != 1 or not isinstance(weights, dict) or "position.row_embed.weight" not in weights:
        return []
    return ["its learned positions trained at the head's rate, now at the backbone's: start anew with --init"]


def _hashes(data: object) -> bool:
    return isinstance(data, dict) and (
        not data or (data.keys() == {"train", "val"} and all(isinstance(each, str) for each in data.values()))
    )


def _optimizer_faults(state: Mapping[str, Any], optimizer: AdamW, names: Sequence[str]) -> list[str]:
    saved = state.get("optimizer")
    if not isinstance(saved, dict):
        return [f"optimizer is {show(saved)}, not a dict"]
    # Who never had a gradient has no state; since format 2 a checkpoint says who had.
    trained = state.get("trained", list(names))
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        return [f"trained is {show(trained)}, not a list of names"]
    expected = {index for index, name in enumerate(names) if name in trained}
    faults = [f"the optimizer's {show(key)} is none of {len(names)} parameters" for key in saved if not _whole(key)]
    if faults:
        return faults
    faults += [f"optimizer: no state of {names[index]}" for index in sorted(expected - saved.keys())]
    faults += [f"optimizer: more states than parameters ({show(key)})" for key in saved.keys() - expected]
    faults += [f"optimizer: {name!r} is unknown to the model" for name in trained if name not in names]
    if not faults and "trained" in state:
        # In the order of the states: of equal shapes, nothing else would show that they stand in other places.
        moved = [(name, names[index]) for name, index in zip(trained, saved, strict=True) if name != names[index]]
        faults += [f"optimizer: the state of {theirs} stands where that of {ours} is" for theirs, ours in moved]
    if faults:
        return faults
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in saved.items():
        fault = _moment_fault(entry, parameters[index], state["step"])
        faults += [f"optimizer, {names[index]}: {fault}"] if fault else []
    return faults


def _moment_fault(entry: object, parameter: Tensor, steps: int) -> str:
    """What is wrong with AdamW's state of one parameter: the number of its steps, two means of its gradient's shape."""
    if not isinstance(entry, dict) or entry.keys() != _MOMENTS:
        return f"{show(entry)} instead of {', '.join(sorted(_MOMENTS))}"
    for key in ("exp_avg", "exp_avg_sq"):
        fault = tensor_fault(entry[key], parameter.shape, parameter.dtype, exact=True)
        if fault:
            return f"{key} {fault}"
        if not _finite(entry[key]):
            return f"{key} is not finite"
    if bool((entry["exp_avg_sq"] < 0).any()):
        return "exp_avg_sq is negative"
    fault = tensor_fault(entry["step"], (), torch.float32, exact=True)
    if fault:
        return f"step {fault}"
    return "" if 0 <= float(entry["step"]) <= steps else f"step is {float(entry['step']):g} of {steps}"


def restore_optimizer(optimizer: AdamW, saved: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Take over a checked state, each tensor laid out as its parameter: fused AdamW walks through both side by side."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            "step": entry["step"].detach().clone(),
            **{
                key: torch.empty_like(parameters[index]).copy_(entry[key]).detach() for key in ("exp_avg", "exp_avg_sq")
            },
        }
        for index, entry in saved.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def data_changes(state: Mapping[str, Any], folder: Path, now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each split whose data are others than before; now: `Task.versions()`.

    Also for lines that say which it was, and cannot be read. Raises ValueError where none of them can.
    """
    faults: list[str] = []
    before = state.get("data") or _recorded_data(folder / "provenance.jsonl", faults)
    return faults + [
        f"changed since this run was started: {now[split]['annotations']} ({name} data) had SHA-256 "
        f"{before[split]}, now {now[split]['sha256']}: curves and metrics before and after cannot be compared"
        for split, name in (("train", "training"), ("val", "validation"))
        if split in before and before[split] != now[split]["sha256"]
    ]


def _recorded_data(path: Path, faults: list[str]) -> dict[str, str]:
    """The splits' hashes of the last start, which checkpoints of format 1 do not hold."""
    rows = read_lines(path, ProvenanceLine, faults) if path.exists() else []
    noted = [row["data"] for row in rows if row.get("data")]
    return {split: entry["sha256"] for split, entry in noted[-1].items()} if noted else {}


def my_meters(kept: Sequence[Sequence[float]], rank: int, world: int) -> list[float] | None:
    """What this process resumes from; when their number has changed, the first has the sum. None: zeros."""
    if len(kept) == world:
        return list(kept[rank])
    return _sums(kept) if rank == 0 else None


def _sums(rows: Iterable[Sequence[float]]) -> list[float]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, float) or _whole(value)


def show(value: object) -> str:
    """What stands somewhere instead of what should, in a few letters."""
    text = repr(value) if isinstance(value, int | float | str | bool | type(None)) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."
